"""A run of operations left out, or another value read: a result is one of the values before it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.edits.left_out import same, taken
from tracekit_torch.reference_program.segment import Segment

FURTHEST = 24
"""Values before a node that are tried in its place."""


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    if len(node.outputs) != 1:
        return
    out = segment.clean[node.outputs[0]]
    for value in _before(segment, place, out):
        producer = segment.producers[value]
        label = ("run", segment.nodes[producer].place[-1:], segment.nodes[producer].name)
        kind = EditKind.LEFT_OUT if place in segment.after(producer) else EditKind.OTHER_VALUE
        yield Change(label, taken(value), source=value, kind=kind)


def _before(segment: Segment, place: int, out: torch.Tensor) -> Iterator[int]:
    """Earlier values of the same shape that are no operands of the node, the latest first."""
    node, count = segment.nodes[place], 0
    for earlier in range(place - 1, -1, -1):
        for value in segment.nodes[earlier].outputs:
            held = segment.clean[value]
            if value in node.inputs or held.shape != out.shape or held.dtype != out.dtype or not segment.steady(value):
                continue
            if not same(held, out):
                yield value
                count += 1
        if count >= FURTHEST:
            return


EDIT = Edit(EditKind.LEFT_OUT, Freedom.NONE, 5, _changes)
