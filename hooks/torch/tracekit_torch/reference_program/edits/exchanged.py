"""Operands in another order."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment, Value

COMMUTES = {"add", "mul", "eq", "ne", "bitwise_and", "bitwise_or", "logical_and", "logical_or", "maximum", "minimum"}


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    name, args = node.name.rstrip("_"), node.args
    if args and isinstance(args[0], list | tuple) and len(args[0]) > 1:
        yield Change("list", _reversed)
    elif len(args) > 1 and isinstance(args[0], Value) and name not in COMMUTES:
        if isinstance(args[1], Value) or name in ("sub", "div", "pow", "floor_divide", "remainder"):
            yield Change("pair", _exchanged)
        if name in ("bmm", "mm"):
            yield Change("transposed", _transposed)


def _reversed(given: Given, number: float) -> Result:
    return given.result(given.args[0][::-1], *given.args[1:])


def _exchanged(given: Given, number: float) -> Result:
    one, two = given.args[:2]
    if isinstance(two, torch.Tensor):
        return given.result(two, one, *given.args[2:])
    return given.result(torch.full_like(one, two), one)


def _transposed(given: Given, number: float) -> Result:
    one, two = given.args
    return given.result(two.transpose(-1, -2), one.transpose(-1, -2))


EDIT = Edit(EditKind.EXCHANGED, Freedom.NONE, 3, _changes)
