"""An operation left out: its result is one of its operands."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Number
from typing import Any

import torch

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment, Value

ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "pow"}
"""Operations of which a number may be what is left."""


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    made = segment.made_by(place)
    if made is None or (node.mutated and made not in segment.clean):
        return
    out = segment.clean[made]
    for number, operand in enumerate(node.args):
        if isinstance(operand, Value) and segment.steady(operand.id):
            given = segment.clean[operand.id]
            if given.dtype == out.dtype and not segment.same(operand.id, made):
                yield Change(("operand", number), taken(operand.id), source=operand.id)
        elif node.name.rstrip("_") in ARITHMETIC and isinstance(operand, Number) and out.is_floating_point():
            yield Change(("number", number), _filled(operand))


def taken(value: int) -> Any:
    return lambda given, number: given.value(value)


def _filled(operand: Any) -> Any:
    def filled(given: Given, number: float) -> Result:
        return torch.full_like(given.result(), operand)

    return filled


EDIT = Edit(EditKind.LEFT_OUT, Freedom.NONE, 0, _changes)
