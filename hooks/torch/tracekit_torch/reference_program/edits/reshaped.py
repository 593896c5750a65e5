"""Values taken in the order in which they lie: a transposition written as a reshape, or two sizes of a view
exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment

TRANSPOSES = {"transpose", "permute", "t", "movedim", "swapaxes"}
VIEWS = {"view", "_unsafe_view", "reshape"}


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    made = segment.made_by(place)
    if made is None or not node.inputs:
        return
    shape = segment.clean[made].shape
    if node.name in TRANSPOSES and sum(size > 1 for size in shape) > 1:
        yield Change("transposed", _as_it_lies, along=max(shape))
    elif node.name in VIEWS:
        for one in range(len(shape)):
            for two in range(one + 1, len(shape)):
                if shape[one] != shape[two]:
                    yield Change(("sizes", one, two), _sizes_exchanged(one, two), along=max(shape[one], shape[two]))


def _as_it_lies(given: Given, number: float) -> Result:
    return given.args[0].reshape(given.result().shape)


def _sizes_exchanged(one: int, two: int) -> Any:
    def exchanged(given: Given, number: float) -> Result:
        result = given.result()
        sizes = list(result.shape)
        sizes[one], sizes[two] = sizes[two], sizes[one]
        return result.reshape(sizes)

    return exchanged


EDIT = Edit(EditKind.RESHAPED, Freedom.AMONG_FEW, 5, _changes)
