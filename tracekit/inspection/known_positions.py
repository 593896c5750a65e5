"""Up to where it is known what a sequence was computed with: its masks, and the weights of its trace's table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tracekit.trace import Sequence, Trace

MASK_UNKNOWN = "mask_unknown"
"""Of a sequence: the first position whose call was given a mask that the trace does not hold."""
WEIGHTS_UNKNOWN = "weights_unknown"
"""Of a sequence: the first position that was computed with other weights than those of the trace's table."""


@dataclass(frozen=True)
class MaskNotRecorded:
    """A sequence whose calls were given a mask from a position on that a trace cannot hold."""

    path: str
    sequence: int
    position: int
    """Those before it are judged."""


@dataclass(frozen=True)
class WeightsChanged:
    """Sequences that a program computed after it had changed the weights of its model, as training does."""

    path: str
    sequence: int
    """The first."""
    position: int
    """Of it, those before this one are judged."""
    more: int
    """Sequences after it."""


def known_positions(sequence: Sequence) -> int:
    """Positions before the first one whose mask or weights are not known; all of them where each is."""
    told = (sequence.info.get(name) for name in (MASK_UNKNOWN, WEIGHTS_UNKNOWN))
    return min([sequence.positions, *(int(first) for first in told if first is not None)])


def not_known(trace: Trace) -> list[MaskNotRecorded | WeightsChanged]:
    """Why sequences of a trace are not judged to their end."""
    masks = [MaskNotRecorded(trace.path, index, first) for index, first in _told(trace, MASK_UNKNOWN)]
    changed = list(_told(trace, WEIGHTS_UNKNOWN))
    weights = [WeightsChanged(trace.path, *first, len(changed) - 1) for first in changed[:1]]
    return [*masks, *weights]


def _told(trace: Trace, name: str) -> Iterator[tuple[int, int]]:
    for sequence in trace.sequences:
        first = sequence.info.get(name)
        if first is not None and int(first) < sequence.positions:
            yield sequence.index, int(first)
