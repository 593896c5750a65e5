"""A whole number that is another one: an axis, a bound, an index, how many are taken."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment, Value

SHAPES = {"view", "_unsafe_view", "expand", "reshape", "as_strided", "zeros", "ones", "empty", "full", "new_zeros"}
"""Operations whose numbers are shapes."""
LARGEST = 2**31
"""Bounds above this stand for the end."""


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    if node.name in SHAPES or not node.args:
        return
    arguments = node.func._schema.arguments
    rank = segment.clean[node.inputs[0]].dim() if node.inputs else 0
    for number, stated in enumerate(node.args):
        kind = str(arguments[number].type)
        if "int" not in kind or isinstance(stated, Value):
            continue
        axis = "dim" in arguments[number].name
        if isinstance(stated, int):
            for other in _others(stated, rank, axis):
                yield _of(number, other, stated, other, other if axis else other - stated)
        elif isinstance(stated, list | tuple) and axis and all(isinstance(each, int) for each in stated):
            for item, each in enumerate(stated):
                for other in _others(each, rank, axis):
                    yield _of(number, [*stated[:item], other, *stated[item + 1 :]], each, other, (item, other))


def _others(stated: int, rank: int, axis: bool) -> Iterator[int]:
    if axis:
        yield from (other for other in range(rank) if other != stated % max(rank, 1))
    elif abs(stated) < LARGEST:
        yield from (stated + 1, stated - 1)


def _of(at: int, value: Any, stated: int, other: int, label: Hashable) -> Change:
    def changed(given: Given, number: float) -> Result:
        return given.result(*given.args[:at], value, *given.args[at + 1 :])

    return Change(("index", at, label), changed, number=float(other), stated=float(stated))


EDIT = Edit(EditKind.INDEX, Freedom.AMONG_FEW, 6, _changes)
