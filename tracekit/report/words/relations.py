"""How one checkpoint's tensor came from the other's."""

from __future__ import annotations

from tracekit.checkpoints.relations import (
    AdapterTimes,
    Arrangement,
    LowRank,
    Rearranged,
    Reordered,
    RoundedTo,
    Times,
    Transposed,
)
from tracekit.report.words import template, words


@words(RoundedTo)
def _rounded(found: RoundedTo) -> str:
    return f"the {found.side} is the other, {'cut' if found.cut else 'rounded'} to {found.dtype}"


template(Times, "the second is {gain:.6g} times the first")


@words(Reordered)
def _reordered(found: Reordered) -> str:
    axis, width = found.axis, found.width
    match found.order:
        case Arrangement.PAIRED:
            return f"{axis} of each head of {width} in rotary pairs, where the first has halves"
        case Arrangement.HALVED:
            return f"{axis} of each head of {width} in halves, where the first has rotary pairs"
        case Arrangement.BLOCKS:
            return f"blocks of {width} {axis} in another order: {found.moved // width} of {found.count // width} moved"
    return f"{axis} in another order: {found.moved} of {found.count} moved"


template(Rearranged, "the same numbers in another order")
template(Transposed, "the second is the first transposed")
template(LowRank, "the second is the first plus an update of rank {rank}")


@words(AdapterTimes)
def _adapter(found: AdapterTimes) -> str:
    said = f"the second is the first {'plus' if found.factor > 0 else 'minus'} {abs(found.factor):.6g} times the "
    declared = "" if found.declared is None else f"; its scale is {found.declared:.6g}"
    return f"{said}adapter's B A (rank {found.rank}{declared})"
