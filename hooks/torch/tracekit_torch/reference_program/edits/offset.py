"""A result plus a number."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.edits.scaled import SHAPES_ONLY
from tracekit_torch.reference_program.segment import Given, Result, Segment


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    made = segment.made_by(place)
    out = None if made is None else segment.clean[made]
    if out is not None and out.is_floating_point() and node.name not in SHAPES_ONLY:
        yield Change("added", _added, neutral=0.0, starts=(1.0, -1.0))


def _added(given: Given, number: float) -> Result:
    return given.result() + number


EDIT = Edit(EditKind.OFFSET, Freedom.NUMBER, 9, _changes)
