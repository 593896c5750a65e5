"""A result rounded to a narrower format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tracekit.dtypes import SIXTEEN_BITS
from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.edits.scaled import SHAPES_ONLY
from tracekit_torch.reference_program.segment import Given, Result, Segment


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    made = segment.made_by(place)
    out = None if made is None else segment.clean[made]
    if out is None or not out.is_floating_point() or node.name in SHAPES_ONLY:
        return
    for name in SIXTEEN_BITS:
        yield Change(("rounded", name), _rounded(getattr(torch, name)), other=name)
        each = _rounded(getattr(torch, name))
        yield Change(("onwards", name), each, other=name, onwards=True, kind=EditKind.ROUNDED_ONWARDS)


def _rounded(dtype: torch.dtype) -> Any:
    def rounded(given: Given, number: float) -> Result:
        out = given.result()
        if not isinstance(out, torch.Tensor) or not out.is_floating_point():
            return out
        return out.to(dtype).to(out.dtype)

    return rounded


EDIT = Edit(EditKind.ROUNDED, Freedom.AMONG_FEW, 10, _changes)
