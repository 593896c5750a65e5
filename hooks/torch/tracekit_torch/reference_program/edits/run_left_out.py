"""A run of operations left out, up to a call or a layer as a whole, or another value read: a result is one of the
values before it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

import torch

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.edits.left_out import taken
from tracekit_torch.reference_program.segment import Segment

FURTHEST = 24
"""Values before a node that are tried in its place."""


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    made = segment.made_by(place)
    if made is not None:
        out = segment.clean[made]
        yield from _taken(segment, place, (*_before(segment, place, out), *_begins(segment, place, out)))


def _of_calls(segment: Segment, place: int) -> Iterator[Change]:
    made = segment.made_by(place)
    if made is not None:
        yield from _taken(segment, place, _given(segment, place, segment.clean[made]))


def _taken(segment: Segment, place: int, values: Iterable[int]) -> Iterator[Change]:
    for value in dict.fromkeys(values):
        producer = segment.producers.get(value)
        if producer is None:
            first = segment.readers[value][0]
            label, fed = ("run", "given", segment.nodes[first].place[-1:], segment.nodes[first].name), first
        else:
            label, fed = ("run", "made", segment.nodes[producer].place[-1:], segment.nodes[producer].name), producer
        kind = EditKind.LEFT_OUT if segment.feeds(fed, place) else EditKind.OTHER_VALUE
        yield Change(label, taken(value), source=value, kind=kind)


def _before(segment: Segment, place: int, out: torch.Tensor) -> Iterator[int]:
    """Earlier values that may stand in for the node's, the latest first."""
    count, last = 0, place
    made = segment.made_by_shape.get((out.shape, out.dtype), [])
    for earlier, value in reversed(made[: bisect_left(made, (place, -1))]):
        if count >= FURTHEST and earlier != last:
            return
        if _stands_in(segment, place, value, out):
            yield value
            count, last = count + 1, earlier


def _begins(segment: Segment, place: int, out: torch.Tensor) -> Iterator[int]:
    """What the segment is given, and what the calls that end with the node are given, however far before it: a whole
    layer may never be run."""
    yield from (value for value in segment.leaves if _stands_in(segment, place, value, out))
    yield from _given(segment, place, out)


def _given(segment: Segment, place: int, out: torch.Tensor) -> Iterator[int]:
    """What the calls are given that end with the node."""
    for first in segment.calls_ending(place):
        inside = range(first, place + 1)
        for value in dict.fromkeys(value for each in inside for value in segment.nodes[each].inputs):
            if segment.producers.get(value, -1) < first and _stands_in(segment, place, value, out):
                yield value


def _stands_in(segment: Segment, place: int, value: int, out: torch.Tensor) -> bool:
    """Whether a value is of the same shape and another than the node's, and no operand of it."""
    held = segment.clean[value]
    return (
        value not in segment.nodes[place].inputs
        and held.shape == out.shape
        and held.dtype == out.dtype
        and segment.steady(value)
        and not segment.same(value, segment.nodes[place].outputs[0])
    )


EDIT = Edit(EditKind.LEFT_OUT, Freedom.NONE, 1, _changes, _of_calls)
