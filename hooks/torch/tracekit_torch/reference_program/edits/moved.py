"""A result rolled by one along a dimension, or turned round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment

ROLLED = {1: "rolled by one", -1: "rolled back by one"}


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    made = segment.made_by(place)
    out = None if made is None else segment.clean[made]
    if out is None or out.dim() == 0:
        return
    for dim, size in enumerate(out.shape):
        if size > 1:
            for by, words in ROLLED.items():
                yield Change(("rolled", dim, by), _rolled(by, dim), other=f"{words} along dimension {dim}", along=size)
            yield Change(("flipped", dim), _flipped(dim), other=f"reversed along dimension {dim}", along=size)
    if out.dim() > 1 and out.shape[-1] == out.shape[-2] > 1:
        yield Change("transposed", _transposed, other="transposed", along=size)


def _rolled(by: int, dim: int) -> Any:
    return lambda given, number: torch.roll(given.result(), by, dim)


def _flipped(dim: int) -> Any:
    return lambda given, number: torch.flip(given.result(), (dim,))


def _transposed(given: Given, number: float) -> Result:
    return given.result().transpose(-1, -2)


EDIT = Edit(EditKind.MOVED, Freedom.AMONG_FEW, 11, _changes)
