"""An edit: one way to get an operation wrong, and every form that it takes at an operation of a segment."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.segment import Given, Result, Segment


class Freedom(IntEnum):
    """How much an edit is free to choose. Of those that hold equally well, the one with the least is named first."""

    NONE = 0
    AMONG_FEW = 1
    CONSTANT = 2
    NUMBER = 3


@dataclass(frozen=True)
class Change:
    """One form of an edit at one node."""

    label: Hashable
    """Tells the forms of an edit at one node apart, and is the same at the same node of another layer."""
    make: Callable[[Given, float], Result]
    """What the node makes with the change, and a number where one is fitted."""
    neutral: float | None = None
    """The number with which nothing changes."""
    starts: tuple[float, ...] = ()
    """Numbers to begin the fit with."""
    source: int | None = None
    """The value that is taken in the place of the result: all operations from it to the node are passed over."""
    number: float | None = None
    stated: float | None = None
    other: str = ""
    onwards: bool = False
    """Whether every later result is changed in the same way."""
    places: tuple[int, ...] = ()
    """Positions of the nodes that are changed, where they are others than the one."""
    kind: EditKind | None = None
    """Of this form, where it is not the edit's."""
    along: int | None = None
    """Size of the dimension that it acts along, where it acts along one: along the positions, what it does to the first
    of them depends on how many come after them."""


@dataclass(frozen=True)
class Edit:
    """One way to get an operation wrong."""

    kind: EditKind
    freedom: Freedom
    often: int
    """How often ports make it: 1 is most often. Those are tried first."""
    changes: Callable[[Segment, int], Iterator[Change]]
    """Its forms at the node at a position of a segment; none where it cannot be made there."""
    of_calls: Callable[[Segment, int], Iterator[Change]] | None = None
    """Those of its forms that are of a call which ends with the node: no round of a loop, but the loop and all around
    it."""
