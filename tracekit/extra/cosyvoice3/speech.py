"""What a generation of a speech-token language model counts: its prompt's parts, its speech tokens, its stop token."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracekit.trace import Array, Sequence, Trace

TOKENS_A_SECOND = 25
"""Speech tokens of one second of CosyVoice's sound."""
PROMPT_SPEECH = "speech_token_ids"
PROMPT_TEXT = "prompt_text_token_ids"
SPOKEN_TEXT = "tts_text_token_ids"
STOPPED = "stop"
FILL = "fill"
"""Kind of the event that a program fed a fill token by itself."""
SILENT = "silent_token_ids"
"""Key of a sequence's metadata: speech tokens that stand for silence, where the program drops some of them."""
SILENT_KEPT = 5
"""Silent tokens in a row that upstream's `llm_job` passes on; it drops those that follow."""
COUNTS = "counts"
"""Key of a sequence's metadata: the numbers of a run of which only a text log is left (docs/format.md)."""


def is_speech(trace: Trace, sequence: Sequence) -> bool:
    """Whether the tokens are speech: 25 of them are a second of sound, and a stop token is none of them."""
    kind = (trace.config.get("model") or {}).get("model_type")
    return (
        (isinstance(kind, str) and kind.startswith("cosyvoice"))
        or sequence.sampling.get("sampler") == "ras"
        or PROMPT_SPEECH in sequence.inputs
        or counts(sequence).get("speech") is True
    )


def counts(sequence: Sequence) -> dict[str, Any]:
    """Numbers that were read from a text log; empty for a recorded sequence."""
    told = sequence.info.get(COUNTS)
    return told if isinstance(told, dict) else {}


def generated(trace: Trace, sequence: Sequence) -> Array:
    """i64 [n]: the tokens that a caller got; of a speech generation neither the stop token that ends it nor the fill
    tokens that ask for more text."""
    tokens = sequence.tokens
    if not is_speech(trace, sequence) or counts(sequence) or not tokens.size:
        return tokens
    last = tokens.size - (sequence.end_reason == STOPPED)
    kept = np.ones(last, dtype=bool)
    for index in np.flatnonzero(np.isin(tokens[:last], sequence.sampling.get("stop_token_ids") or [])):
        kept[index] = all(event.kind != FILL for event in sequence.step(int(index)).events)
    return np.asarray(tokens[:last][kept])


def dropped(trace: Trace, sequence: Sequence) -> int | None:
    """How many generated tokens the program's filter of silence took out before the sound was made; None where the
    trace says nothing of such a filter."""
    silent = sequence.info.get(SILENT)
    if not isinstance(silent, list) or counts(sequence):
        return None
    run = out = 0
    for is_silent in np.isin(generated(trace, sequence), silent):
        run = run + 1 if is_silent else 0
        out += run > SILENT_KEPT
    return out


def not_listed(sequence: Sequence) -> int:
    """How many tokens at the end a text log counts without saying which they are."""
    said = counts(sequence).get("generated_tokens")
    return max(0, said - sequence.step_count) if isinstance(said, int) and sequence.step_count else 0


def generated_count(trace: Trace, sequence: Sequence) -> int:
    """How many tokens a caller got: of the steps, or as a text log says it."""
    told = counts(sequence)
    said = told.get("generated_tokens", told.get("stop_step"))
    return said if isinstance(said, int) else len(generated(trace, sequence))
