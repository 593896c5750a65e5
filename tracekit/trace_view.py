"""A trace seen otherwise: under other names, with columns in another order, or in part. All else is the trace's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from tracekit.interactive import Browsable, BrowsableSequence
from tracekit.trace import Sequence, Trace


class SequenceView(BrowsableSequence):
    """A sequence whose members are those of `inner`, where a subclass does not say otherwise."""

    def __init__(self, inner: Sequence) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class TraceView(Browsable):
    """A trace with other sequences, whose members are those of `inner`, where a subclass does not say otherwise."""

    def __init__(self, inner: Trace, sequences: Iterable[Sequence | SequenceView]) -> None:
        self.inner = inner
        self.sequences = [cast(Sequence, sequence) for sequence in sequences]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __enter__(self) -> TraceView:
        return self

    def __exit__(self, *exc: object) -> None:
        self.inner.close()
