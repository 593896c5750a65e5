"""Two values taken for each other: what reads the one reads the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment, Value

PAIRS = 12
"""Values before a node that are tried in its place."""


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    mine = next((value for value in node.inputs if _readable(segment, value)), None)
    if mine is None or segment.readers[mine][0] != place:
        return
    others = (
        value
        for value in segment.read_by_shape[segment.clean[mine].shape]
        if value != mine
        and segment.readers[value][0] > place
        and segment.producers.get(value, -1) < place
        and not segment.same(mine, value)
    )
    for other in islice(others, PAIRS):
        places = tuple(sorted({*segment.readers[mine], *segment.readers[other]}))
        at = segment.nodes[segment.readers[other][0]]
        yield Change(("pair", at.place[-1:], at.name), _swapped(mine, other), places=places)


def _readable(segment: Segment, value: int) -> bool:
    return segment.steady(value) and segment.clean[value].is_floating_point() and segment.clean[value].dim() > 1


def _swapped(one: int, other: int) -> Any:
    other_of = {one: other, other: one}

    def changed(given: Given, number: float) -> Result:
        def exchanged(named: Any, plain: Any) -> Any:
            if isinstance(named, Value) and named.id in other_of:
                return given.value(other_of[named.id])
            if isinstance(named, list | tuple):  # tensors that are put one after the other
                return [exchanged(*each) for each in zip(named, plain, strict=True)]
            return plain

        return given.result(*(exchanged(*each) for each in zip(given.node.args, given.args, strict=True)))

    return changed


EDIT = Edit(EditKind.TAKEN_FOR, Freedom.AMONG_FEW, 7, _changes)
