"""A trace in numbers, a row a sequence: prompt, generated tokens, where it stopped, what its kind counts besides."""

from __future__ import annotations

from collections.abc import Iterable

from tracekit.generations import counts, generated_count, generation_of, kinds
from tracekit.inspection.non_finite import first_non_finite
from tracekit.trace import Json, Sequence, Trace

STOPPED = "stop"


def summarise(traces: Iterable[Trace]) -> list[Json]:
    """A row a sequence, rows of the same sequence index together; None where a trace does not know a number."""
    rows = [sequence_summary(trace, sequence) for trace in traces for sequence in trace.sequences]
    return sorted(rows, key=lambda row: int(row["sequence"]))


def columns() -> dict[str, str]:
    """Key of a row -> head of its column, in order; those of every kind of generation among them."""
    return {
        "sequence": "sequence",
        "trace": "trace",
        "implementation": "side",
        "prompt_tokens": "prompt",
        **{key: head for kind in kinds() for key, head in kind.prompt_columns.items()},
        "generated_tokens": "generated",
        "stop_step": "stop step",
        "end": "end",
        **{key: head for kind in kinds() for key, head in kind.columns.items()},
        "not_finite": "not finite from",
    }


def lengths() -> list[str]:
    """Those of the columns that count tokens of a prompt's parts and of what was generated."""
    return [*(key for kind in kinds() for key in kind.prompt_columns), "generated_tokens"]


def sequence_summary(trace: Trace, sequence: Sequence) -> Json:
    """One row. Lengths are in tokens, `stop_step` counts from 0."""
    told = counts(sequence)
    made = generated_count(trace, sequence)
    stopped = sequence.end_reason == STOPPED and sequence.step_count > 0
    return dict.fromkeys(columns()) | {
        "sequence": sequence.index,
        "trace": trace.path,
        "implementation": trace.implementation,
        "prompt_tokens": None if sequence.prompt_ids is None else len(sequence.prompt_ids),
        "generated_tokens": made,
        "stop_step": told.get("stop_step", sequence.step_count - 1 if stopped and not told else None),
        "end": _end(sequence, told),
        **generation_of(trace, sequence).numbers(sequence, made),
        "not_finite": _not_finite(trace, sequence),
    }


def _end(sequence: Sequence, told: Json) -> str | None:
    """How the sequence ended; None where a text log does not say it."""
    if told:
        return STOPPED if "stop_step" in told else None
    return sequence.end_reason or "cut off"


def _not_finite(trace: Trace, sequence: Sequence) -> str | None:
    """The first site with NaN or an infinity, and its position."""
    others = {other.index: 0 for other in trace.sequences if other.index != sequence.index}
    found = first_non_finite(trace, others)
    return None if found is None else f"{found.site} at position {found.position}"
