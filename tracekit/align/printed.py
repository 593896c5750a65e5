"""Sites of which only printed values are there: some columns, to some decimals, as llama.cpp's eval-callback has them.

Such a site says in its attributes which columns it holds (`columns`, of `of`) and to how many `decimals`. It is
compared at those columns, and each number as the nearest one to the reference's that prints alike: what a printout
cannot tell apart is equal, and what remains is a difference whatever the number was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tracekit.align.pair import Pair, Side
from tracekit.align.sites import SitePair
from tracekit.dtypes import UNIT_ROUNDOFF, to_float
from tracekit.trace import Array, Sequence, Site, SiteData, Trace
from tracekit.trace_view import SequenceView, TraceView

COLUMNS, OF, DECIMALS = "columns", "of", "decimals"
"""Attributes of such a site."""


@dataclass(frozen=True)
class PrintedOnly:
    """Sites of one side that hold printed values: of the first, how many columns of how many, and the decimals."""

    path: str
    sites: int
    columns: int
    of: int
    decimals: int


@dataclass(frozen=True)
class _Print:
    """How a site was printed."""

    columns: tuple[int, ...]
    of: int
    decimals: int

    @property
    def half(self) -> float:
        """Half a unit of the last decimal: what rounding to it may hide."""
        return float(0.5 * 10.0**-self.decimals)


@dataclass(frozen=True)
class AsPrinted:
    """A pair of which one side was printed, both as they can be compared; `columns` of the whole side by its names."""

    pair: Pair
    side: Side
    note: PrintedOnly
    columns: Mapping[str, tuple[int, ...]]

    def beside(self, yardstick: Trace) -> Trace:
        """An oracle, or another reference: its columns that are compared."""
        return yardstick if self.side is Side.REFERENCE else _whole(yardstick, self.columns)


def as_printed(pair: Pair) -> AsPrinted | None:
    """Both sides with printed sites as they can be compared; None where all sites are whole."""
    for side, trace in zip(Side, pair.traces, strict=True):
        prints = {name: found for name, site in trace.sites.items() if (found := _print_of(site)) is not None}
        if prints:
            return _seen(pair, side, prints)
    return None


def _print_of(site: Site) -> _Print | None:
    columns, of, decimals = (site.attributes.get(name) for name in (COLUMNS, OF, DECIMALS))
    if not isinstance(columns, list) or type(of) is not int or type(decimals) is not int or not 0 <= decimals <= 17:
        return None
    if not columns or not all(type(column) is int and 0 <= column < of for column in columns):
        return None
    return _Print(tuple(columns), of, decimals)


def _seen(pair: Pair, side: Side, prints: Mapping[str, _Print]) -> AsPrinted:
    """`side` was printed; the other one is whole."""
    partner = {_of(site, side): _of(site, side.other) for site in pair.sites.pairs if _of(site, side) in prints}
    columns = {whole: prints[printed].columns for printed, whole in partner.items()}
    ends = {Side.REFERENCE: pair.reference, Side.CANDIDATE: pair.candidate}
    whole = _whole(ends[side.other], columns)
    rows = {sequence.index: sequence for sequence in whole.sequences}
    beside = {
        (each.reference if side is Side.REFERENCE else each.candidate).index: rows[
            (each.candidate if side is Side.REFERENCE else each.reference).index
        ]
        for each in pair.sequences
    }
    near = TraceView(
        ends[side],
        [
            _Nearest(sequence, {name: (prints[name], whole) for name, whole in partner.items()}, beside[sequence.index])
            if sequence.index in beside
            else sequence
            for sequence in ends[side].sequences
        ],
    )
    views = {side: cast(Trace, near), side.other: whole}
    first = next(iter(prints.values()))
    note = PrintedOnly(ends[side].path, len(prints), len(first.columns), first.of, first.decimals)
    return AsPrinted(pair.seen_as(views[Side.REFERENCE], views[Side.CANDIDATE]), side, note, columns)


def _of(site: SitePair, side: Side) -> str:
    return site.name if side is Side.REFERENCE else site.candidate


def _whole(trace: Trace, columns: Mapping[str, tuple[int, ...]]) -> Trace:
    return cast(Trace, TraceView(trace, [_Columns(sequence, columns) for sequence in trace.sequences]))


class _Columns(SequenceView):
    """A sequence of whole sites, of which some columns are read."""

    def __init__(self, sequence: Sequence, columns: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(sequence)
        held = {name: picked for name, picked in columns.items() if name in sequence.sites}
        self._columns = {name: list(held[name]) for name in held if max(held[name]) < sequence.sites[name].width}
        narrow = {name: replace(sequence.sites[name], width=len(picked)) for name, picked in self._columns.items()}
        self.sites: Mapping[str, SiteData] = {**sequence.sites, **narrow}

    def read(self, site: str, first: int, stop: int) -> Array:
        """As `tracekit.trace.Sequence`."""
        rows = self.inner.read(site, first, stop)
        picked = self._columns.get(site)
        return rows if picked is None else np.ascontiguousarray(rows[:, picked])


class _Nearest(SequenceView):
    """A sequence of printed sites, each number the nearest to the other side's that prints alike."""

    def __init__(self, sequence: Sequence, prints: Mapping[str, tuple[_Print, str]], other: Sequence) -> None:
        super().__init__(sequence)
        self._prints, self._other = prints, other

    def read(self, site: str, first: int, stop: int) -> Array:
        """As `tracekit.trace.Sequence`."""
        rows = self.inner.read(site, first, stop)
        known = self._prints.get(site)
        if known is None or known[1] not in self._other.sites:
            return rows
        data = self._other.sites[known[1]]
        if data.width != rows.shape[1] or not data.covers(first, stop):
            return rows
        whole = to_float(self._other.read(known[1], first, stop), data.dtype).astype(np.float64)
        return _nearest(rows, whole, known[0].half)


def _nearest(printed: Array, whole: NDArray[np.float64], half: float) -> Array:
    """What may have been printed, as near to the other side as it can be; what is not finite stays."""
    values = printed.astype(np.float64)
    room = half + np.abs(values) * UNIT_ROUNDOFF["float32"]  # the printed number itself is held in float32
    with np.errstate(invalid="ignore"):
        inside = np.clip(whole, values - room, values + room)
    near = np.where(np.isfinite(values) & np.isfinite(whole), inside, values)
    return near.astype(printed.dtype)
