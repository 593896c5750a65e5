"""What a generation of a speech-token language model counts: its prompt's parts, its speech tokens, its stop token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.generations import counts
from tracekit.trace import Array, Json, Sequence, Trace, TraceError

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
FALLBACK, REDRAW = "repetition_fallback", "redraw"
"""Kinds of events: a second draw because of repetition; a draw again because the sequence was too short to stop."""
PROMPT_PARTS = {
    "prompt_text_tokens": (PROMPT_TEXT, "prompt_text_tokens"),
    "text_tokens": (SPOKEN_TEXT, "tts_text_tokens"),
    "prompt_speech_tokens": (PROMPT_SPEECH, "prompt_speech_tokens"),
}
"""Column of a summary -> tensor of a recorded prompt, and what a text log's counts call its length."""


@dataclass(frozen=True)
class SilenceDropped:
    """A filter makes a sound of another length than the tokens say, and not the same on both sides."""

    path: str
    sequence: int
    dropped: int
    dropped_elsewhere: int | None  # by the other side; None: it has no such filter
    seconds: float  # of sound, that the two differ by for it


class Speech:
    """CosyVoice's: 25 tokens are a second of sound, and neither a stop token nor a fill token is one of them."""

    prompt_columns: Mapping[str, str] = {
        "prompt_text_tokens": "prompt text",
        "text_tokens": "text",
        "prompt_speech_tokens": "prompt speech",
    }
    columns: Mapping[str, str] = {
        "seconds": "seconds",
        "dropped_silent_tokens": "silent, dropped",
        "fallbacks": "fallbacks",
        "redraws": "redraws",
    }

    def knows(self, trace: Trace, sequence: Sequence) -> bool:
        """By the model's type, the sampler, or a prompt of speech tokens."""
        kind = (trace.config.get("model") or {}).get("model_type")
        return (
            (isinstance(kind, str) and kind.startswith("cosyvoice"))
            or sequence.sampling.get("sampler") == "ras"
            or PROMPT_SPEECH in sequence.inputs
            or counts(sequence).get("speech") is True
        )

    def generated(self, sequence: Sequence) -> Array:
        """Neither the stop token that ends it nor the fill tokens that ask for more text."""
        tokens = sequence.tokens
        if not tokens.size:
            return tokens
        last = tokens.size - (sequence.end_reason == STOPPED)
        kept = np.ones(last, dtype=bool)
        for index in np.flatnonzero(np.isin(tokens[:last], sequence.sampling.get("stop_token_ids") or [])):
            kept[index] = all(event.kind != FILL for event in sequence.step(int(index)).events)
        return np.asarray(tokens[:last][kept])

    def numbers(self, sequence: Sequence, generated: int) -> Json:
        """Lengths in tokens, `seconds` of sound; what the sampler and the filter of silence did."""
        told = counts(sequence)
        found = Counter(event.kind for event in sequence.events)
        drawn = not told and any(sequence.step(index).draws for index in range(sequence.step_count))
        known = drawn or bool(found[FALLBACK] or found[REDRAW])
        return {
            **{
                key: len(sequence.inputs[name]) if name in sequence.inputs else told.get(word)
                for key, (name, word) in PROMPT_PARTS.items()
            },
            "seconds": generated / TOKENS_A_SECOND,
            "dropped_silent_tokens": self.dropped(sequence) or None,
            "fallbacks": found[FALLBACK] if known else None,
            "redraws": found[REDRAW] if known else None,
        }

    def dropped(self, sequence: Sequence) -> int | None:
        """How many generated tokens the program's filter of silence took out before the sound was made; None where the
        trace says nothing of such a filter."""
        silent = sequence.info.get(SILENT)
        if not isinstance(silent, list) or counts(sequence):
            return None
        run = out = 0
        for is_silent in np.isin(self.generated(sequence), silent):
            run = run + 1 if is_silent else 0
            out += run > SILENT_KEPT
        return out

    def differences(self, reference: tuple[Trace, Sequence], candidate: tuple[Trace, Sequence]) -> tuple[object, ...]:
        """`SilenceDropped` of a side that drops other than the other does."""
        out = []
        for (trace, one), (_, other) in ((reference, candidate), (candidate, reference)):
            count, others = self.dropped(one), self.dropped(other)
            if count and count != others:
                seconds = abs(count - (others or 0)) / TOKENS_A_SECOND
                out.append(SilenceDropped(trace.path, one.index, count, others or None, seconds))
        return tuple(out)


SPEECH = Speech()


def prompt_speech_ids(trace: Trace, sequence: int | None = None) -> dict[str, NDArray[np.int64]]:
    """`speech_token_ids` -> i64 [n]: the prompt's speech tokens, of one sequence or of all where they are the same.

    Raises TraceError where there are none, or different ones and no sequence is asked for.
    """
    found = [one for one in trace.sequences if sequence in (None, one.index) and PROMPT_SPEECH in one.inputs]
    if not found:
        where = "" if sequence is None else f"sequence {sequence} of "
        raise TraceError(f"{where}{trace.path}: holds no prompt speech tokens; record a CosyVoice program")
    ids = [one.inputs[PROMPT_SPEECH].astype(np.int64) for one in found]
    if not all(np.array_equal(ids[0], other) for other in ids):
        raise TraceError(f"{trace.path}: its sequences have different prompt speech tokens; choose one with --sequence")
    return {PROMPT_SPEECH: ids[0]}
