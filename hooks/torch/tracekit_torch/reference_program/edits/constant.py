"""A number in the source that is another one: an eps, a scale, an exponent, a cap, a window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment

FACTORS = (2.0, 0.5, 10.0, 0.1, 1.01, 0.01, 100.0, 1e-3, 1e3)


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    node = segment.nodes[place]
    arguments = node.func._schema.arguments
    for number, stated in enumerate(node.args):
        # Where the schema asks for a whole number, it is an axis or a size.
        if "int" not in str(arguments[number].type) and _is_number(stated):
            yield from _of(number, float(stated))
            if isinstance(stated, int):
                yield from (_whole(number, stated, other) for other in (stated + 1, stated - 1))
    for name, stated in node.kwargs.items():
        if isinstance(stated, float):
            yield from _of(name, stated)


def _of(at: int | str, stated: float) -> Iterator[Change]:
    def changed(given: Given, number: float) -> Result:
        if isinstance(at, str):
            return given.result(**{at: number})
        return given.result(*given.args[:at], number, *given.args[at + 1 :])

    starts = (stated + 1.0, stated - 1.0, *(stated * factor for factor in FACTORS), -stated, 0.0)
    yield Change(("constant", at), changed, neutral=stated, starts=starts, stated=stated)
    if stated:  # its own form: a bound beyond the other one does the same as any beyond it, and no number is fitted
        yield Change(("negated", at), lambda given, _: changed(given, -stated), number=-stated, stated=stated)


def _whole(at: int, stated: int, other: int) -> Change:
    def changed(given: Given, number: float) -> Result:
        return given.result(*given.args[:at], other, *given.args[at + 1 :])

    return Change(("whole", at, other - stated), changed, number=float(other), stated=float(stated))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


EDIT = Edit(EditKind.CONSTANT, Freedom.CONSTANT, 2, _changes)
