"""An operation, or a run of them, left out: its result is one of the values that went into it."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Number
from typing import Any

import torch

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment, Value

FURTHEST = 24
"""Values before a node that are tried in its place."""


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    if len(node.outputs) != 1 or (node.mutated and node.outputs[0] not in segment.clean):
        return
    out = segment.clean[node.outputs[0]]
    for number, operand in enumerate(node.args):
        if isinstance(operand, Value) and segment.steady(operand.id):
            given = segment.clean[operand.id]
            if given.dtype == out.dtype and not _same(given, out):
                yield Change(("operand", number), _taken(operand.id), source=operand.id)
        elif isinstance(operand, Number) and not isinstance(operand, bool) and out.is_floating_point():
            yield Change(("number", number), _filled(operand))
    for value in _before(segment, place, out):
        producer = segment.producers[value]
        label = ("run", segment.nodes[producer].place[-1:], segment.nodes[producer].name)
        kind = EditKind.LEFT_OUT if place in segment.after(producer) else EditKind.OTHER_VALUE
        yield Change(label, _taken(value), source=value, kind=kind)


def _before(segment: Segment, place: int, out: torch.Tensor) -> Iterator[int]:
    """Earlier values of the same shape that are no operands of the node, the latest first."""
    node, count = segment.nodes[place], 0
    for earlier in range(place - 1, -1, -1):
        for value in segment.nodes[earlier].outputs:
            held = segment.clean[value]
            if value in node.inputs or held.shape != out.shape or held.dtype != out.dtype or not segment.steady(value):
                continue
            if not _same(held, out):
                yield value
                count += 1
        if count >= FURTHEST:
            return


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _taken(value: int) -> Any:
    return lambda given, number: given.value(value)


def _filled(operand: Any) -> Any:
    def filled(given: Given, number: float) -> Result:
        return torch.full_like(given.result(), operand)

    return filled


EDIT = Edit(EditKind.LEFT_OUT, Freedom.NONE, _changes)
