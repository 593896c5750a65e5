"""A whole number that is another one: an axis, a bound, an index, how many are taken."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment, Value

SHAPES = {"view", "_unsafe_view", "expand", "reshape", "as_strided", "zeros", "ones", "empty", "full", "new_zeros"}
"""Operations whose numbers are shapes."""
TAKES = {"slice", "select", "narrow"}
"""Operations whose numbers are a dimension, and bounds or an index along it."""
LARGEST = 2**31
"""Bounds above this stand for the end."""


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    if node.name in SHAPES or not node.args:
        return
    arguments = node.func._schema.arguments
    shape = segment.clean[node.inputs[0]].shape if node.inputs else ()
    rank = len(shape)
    for number, stated in enumerate(node.args):
        schema = str(arguments[number].type)
        if "int" not in schema or isinstance(stated, Value):
            continue
        axis = "dim" in arguments[number].name
        if isinstance(stated, int):
            for other in _others(stated, rank, axis):
                size = _size(node.args[1] if node.name in TAKES and not axis else other, shape)
                yield _of(number, other, stated, other, other if axis else other - stated, size)
        elif isinstance(stated, list | tuple) and all(isinstance(each, int) for each in stated):
            for item, each in enumerate(stated):
                for other in _others(each, rank, axis):
                    others = [*stated[:item], other, *stated[item + 1 :]]
                    size = _size(other, shape) if axis else None
                    yield _of(number, others, each, other, (item, other if axis else other - each), size)


def _others(stated: int, rank: int, axis: bool) -> Iterator[int]:
    if axis:
        yield from (other for other in range(rank) if other != stated % max(rank, 1))
    elif abs(stated) < LARGEST:
        yield from (stated + 1, stated - 1)


def _size(dim: Any, shape: Sequence[int]) -> int | None:
    return shape[dim] if isinstance(dim, int) and -len(shape) <= dim < len(shape) else None


def _of(at: int, value: Any, stated: int, other: int, label: Hashable, along: int | None) -> Change:
    def changed(given: Given, number: float) -> Result:
        return given.result(*given.args[:at], value, *given.args[at + 1 :])

    return Change(("index", at, label), changed, number=float(other), stated=float(stated), along=along)


EDIT = Edit(EditKind.INDEX, Freedom.AMONG_FEW, 6, _changes)
