"""A trace in numbers, a row a sequence: prompt, generated tokens, where it stopped, what the sampler did besides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tracekit.extra.cosyvoice3.speech import (
    PROMPT_SPEECH,
    PROMPT_TEXT,
    SPOKEN_TEXT,
    STOPPED,
    TOKENS_A_SECOND,
    counts,
    dropped,
    generated_count,
    is_speech,
)
from tracekit.inspection.non_finite import first_non_finite
from tracekit.trace import Json, Sequence, Trace

FALLBACK, REDRAW = "repetition_fallback", "redraw"
"""Kinds of events: a second draw because of repetition; a draw again because the sequence was too short to stop."""

COUNTED = {
    PROMPT_TEXT: "prompt_text_tokens",
    SPOKEN_TEXT: "tts_text_tokens",
    PROMPT_SPEECH: "prompt_speech_tokens",
}
"""Tensor of a recorded prompt -> what a text log's counts call its length."""


def summarise(traces: Iterable[Trace]) -> list[Json]:
    """A row a sequence, rows of the same sequence index together; None where a trace does not know a number."""
    rows = [sequence_summary(trace, sequence) for trace in traces for sequence in trace.sequences]
    return sorted(rows, key=lambda row: int(row["sequence"]))


def sequence_summary(trace: Trace, sequence: Sequence) -> Json:
    """One row. Lengths are in tokens, `seconds` in seconds of sound, `stop_step` counts from 0."""
    told = counts(sequence)
    speech = is_speech(trace, sequence)
    made = generated_count(trace, sequence)
    stopped = sequence.end_reason == STOPPED and sequence.step_count > 0
    return {
        "sequence": sequence.index,
        "trace": trace.path,
        "implementation": trace.implementation,
        "prompt_tokens": None if sequence.prompt_ids is None else len(sequence.prompt_ids),
        "prompt_text_tokens": _length(sequence, PROMPT_TEXT, told),
        "text_tokens": _length(sequence, SPOKEN_TEXT, told),
        "prompt_speech_tokens": _length(sequence, PROMPT_SPEECH, told),
        "generated_tokens": made,
        "stop_step": told.get("stop_step", sequence.step_count - 1 if stopped and not told else None),
        "end": _end(sequence, told),
        "seconds": made / TOKENS_A_SECOND if speech else None,
        "dropped_silent_tokens": dropped(trace, sequence) or None,
        **_events(sequence, speech, bool(told)),
        "not_finite": _not_finite(trace, sequence),
    }


def _end(sequence: Sequence, told: Json) -> str | None:
    """How the sequence ended; None where a text log does not say it."""
    if told:
        return STOPPED if "stop_step" in told else None
    return sequence.end_reason or "cut off"


def _length(sequence: Sequence, name: str, told: Json) -> int | None:
    ids = sequence.inputs.get(name)
    number: int | None = told.get(COUNTED[name])
    return number if ids is None else len(ids)


def _not_finite(trace: Trace, sequence: Sequence) -> str | None:
    """The first site with NaN or an infinity, and its position."""
    others = {other.index: 0 for other in trace.sequences if other.index != sequence.index}
    found = first_non_finite(trace, others)
    return None if found is None else f"{found.site} at position {found.position}"


def _events(sequence: Sequence, speech: bool, counted: bool) -> Json:
    """Fallbacks and redraws; None where the run could not have any, or where nobody recorded them."""
    found = Counter(event.kind for event in sequence.events)
    drawn = speech and not counted and any(sequence.step(index).draws for index in range(sequence.step_count))
    known = drawn or bool(found[FALLBACK] or found[REDRAW])
    return {"fallbacks": found[FALLBACK] if known else None, "redraws": found[REDRAW] if known else None}
