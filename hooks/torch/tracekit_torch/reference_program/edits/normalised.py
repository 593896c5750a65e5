"""A result normalised a second time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment

EPS = 1e-6


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    made = segment.made_by(place)
    out = None if made is None else segment.clean[made]
    if out is not None and out.is_floating_point() and out.dim() and out.shape[-1] > 1:
        size = out.shape[-1]
        yield Change("sum", _to_sum_one, other="divided by its sum", along=size)
        yield Change("mean square", _to_mean_square, other="divided by its root mean square", along=size)
        yield Change("softmax", _softmax, other="given to a softmax", along=size)


def _to_sum_one(given: Given, number: float) -> Result:
    out = given.result()
    return out / out.sum(-1, keepdim=True)


def _to_mean_square(given: Given, number: float) -> Result:
    out = given.result()
    return out * torch.rsqrt(out.square().mean(-1, keepdim=True) + EPS)


def _softmax(given: Given, number: float) -> Result:
    return torch.softmax(given.result(), -1)


EDIT = Edit(EditKind.NORMALISED, Freedom.AMONG_FEW, 8, _changes)
