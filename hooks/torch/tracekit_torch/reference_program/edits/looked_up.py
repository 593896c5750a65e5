"""Other rows of a table: token ids or positions that are off by some, or counted from another number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Segment

FURTHEST = 8
"""Rows by which a table is tried shifted, and the last number that is tried to count from. OPT's table has two rows
before that of position 0, RoBERTa's one more than its padding token's id."""


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    if node.name != "embedding":
        return
    stated = segment.clean[node.args[1].id]
    rows = len(segment.clean[node.args[0].id])
    if not stated.dim() or stated.shape[-1] < 2:
        return
    counted = torch.arange(stated.shape[-1]).expand(stated.shape)
    for first in range(FURTHEST + 1):
        if not torch.equal(counted + first, stated) and first + stated.shape[-1] <= rows:
            yield Change(("counted", first), _at(counted + first), other=f"counted by position from {first}")
    for by in range(-FURTHEST, FURTHEST + 1):
        if by and int(stated.min()) + by >= 0 and int(stated.max()) + by < rows:
            yield Change(
                ("shifted", by), _at(stated + by), other=f"{abs(by)} {'after' if by > 0 else 'before'} its own"
            )


def _at(rows: torch.Tensor) -> Any:
    return lambda given, number: given.result(given.args[0], rows, *given.args[2:])


EDIT = Edit(EditKind.LOOKED_UP, Freedom.AMONG_FEW, 0, _changes)
