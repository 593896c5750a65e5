"""What a generation gave its caller, and what its kind of program counts besides.

To most programs every token counts. A kind of program that counts in its own way (a stop token that is none of its
tokens, tokens that last so many seconds) brings a `Generation`, found by the entry points `tracekit.generations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tracekit.plugins import plugins
from tracekit.trace import Array, Json, Sequence, Trace

GROUP = "tracekit.generations"
COUNTS = "counts"
"""Key of a sequence's metadata: the numbers of a run of which only a text log is left (docs/format.md)."""


class Generation(Protocol):
    """A kind of generation. Its columns are those of a summary, key -> head; None stands for what is not known."""

    @property
    def prompt_columns(self) -> Mapping[str, str]:
        """Lengths of a prompt's parts, in tokens."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Other numbers of its own."""

    def knows(self, trace: Trace, sequence: Sequence) -> bool:
        """Whether a sequence is of this kind."""

    def generated(self, sequence: Sequence) -> Array:
        """i64 [n]: the tokens that a caller got of a recorded sequence."""

    def numbers(self, sequence: Sequence, generated: int) -> Json:
        """Values of its columns; `generated` is the number of tokens that a caller got."""

    def differences(self, reference: tuple[Trace, Sequence], candidate: tuple[Trace, Sequence]) -> tuple[object, ...]:
        """Findings, typed, about what became of the tokens of two generations after they were made."""


class _Plain:
    """Every token counts."""

    prompt_columns: Mapping[str, str] = {}
    columns: Mapping[str, str] = {}

    def knows(self, trace: Trace, sequence: Sequence) -> bool:
        return True

    def generated(self, sequence: Sequence) -> Array:
        return sequence.tokens

    def numbers(self, sequence: Sequence, generated: int) -> Json:
        return {}

    def differences(self, reference: tuple[Trace, Sequence], candidate: tuple[Trace, Sequence]) -> tuple[object, ...]:
        return ()


PLAIN = _Plain()


def kinds() -> tuple[Generation, ...]:
    """The kinds that are not plain. Raises TraceError where one cannot be loaded."""
    return plugins(GROUP)


def generation_of(trace: Trace, sequence: Sequence) -> Generation:
    """The kind of a sequence."""
    return next((kind for kind in kinds() if kind.knows(trace, sequence)), PLAIN)


def counts(sequence: Sequence) -> dict[str, Any]:
    """Numbers that were read from a text log; empty for a recorded sequence."""
    told = sequence.info.get(COUNTS)
    return told if isinstance(told, dict) else {}


def generated(trace: Trace, sequence: Sequence) -> Array:
    """i64 [n]: the tokens that a caller got."""
    return sequence.tokens if counts(sequence) else generation_of(trace, sequence).generated(sequence)


def generated_count(trace: Trace, sequence: Sequence) -> int:
    """How many tokens a caller got: of the steps, or as a text log says it."""
    told = counts(sequence)
    said = told.get("generated_tokens", told.get("stop_step"))
    return said if isinstance(said, int) else len(generated(trace, sequence))


def not_listed(sequence: Sequence) -> int:
    """How many tokens at the end a text log counts without saying which they are."""
    said = counts(sequence).get("generated_tokens")
    return max(0, said - sequence.step_count) if isinstance(said, int) and sequence.step_count else 0
