"""A result times a number."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    made = segment.made_by(place)
    out = None if made is None else segment.clean[made]
    if out is None or not out.numel() or not out.is_floating_point() or node.name in SHAPES_ONLY:
        return
    width = float(out.shape[-1]) if out.dim() else 1.0
    starts = (2.0, 0.5, -1.0, 0.0, 10.0, 0.1, 2.0**0.5, 0.5**0.5, width**0.5, width**-0.5, width, 1.0 / width)
    yield Change("scaled", _scaled, neutral=1.0, starts=starts)


def _scaled(given: Given, number: float) -> Result:
    return given.result() * number


SHAPES_ONLY = {
    "view", "_unsafe_view", "transpose", "permute", "t", "expand", "unsqueeze", "squeeze", "clone", "slice", "select",
    "split", "split_with_sizes", "unbind", "alias", "detach", "_to_copy", "lift_fresh", "unfold", "as_strided",
}  # fmt: skip
"""Operations that compute nothing."""

EDIT = Edit(EditKind.SCALED, Freedom.NUMBER, 4, _changes)
