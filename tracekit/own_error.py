"""A site's own error: what it made by itself, given the input that it really got, judged by what rounding may do.

The error is taken in units of what correct arithmetic may be off (`operations`), as its size and as the simplest
structured statistics, which see in 16 bits what size cannot: a gain, the gain of a row, the offset and the gain of a
column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit import operations
from tracekit.operations import Floats, Result
from tracekit.recipe import Recipe
from tracekit.recompute import Recomputation, Window

BLOCK_ROWS, FEWEST_ROWS, BLOCK_VALUES = 1024, 64, 1 << 20
"""Positions recomputed at a time: as many as hold about a million values, whose memory the allocator gives out again
without asking the system for it."""
CACHED = 64 << 10
"""Elements whose statistics are taken at a time: their dozen arrays stay in the cache."""
CLOSELY = ("linear", "attention")
"""Kinds of sites with a cheap bound and a full one."""
LARGEST = np.float32(1e15)
"""Error over its bound that stands for all larger ones, and for what is not finite; its square fits float32."""

LARGEST_NUMBER = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028234e38, "float64": 1.7976931e308}
"""Largest finite number of each format, rounded down."""

SIZE_LIMIT = 5.0
"""Root mean square of a site's own error over its bound. Healthy sites of SmolLM2 stay below 1.9 in PyTorch and candle,
float32, bfloat16 and float16; a gain of 1.00001 in float32 gives 10."""
ROW_LIMIT = 8.0
"""The same of one row: healthy rows stay below 3.9."""
COLUMN_LIMIT = 8.0
"""The same of one column. Healthy columns stay below 5.7: where a massive activation runs through them, a column's
errors come from few rows."""
DEVIATIONS_LIMIT = 9.0
"""Standard deviations of a gain or an offset. Healthy sites stay below 4.5 over some 600,000 rows and columns tested at
once; of independent errors, 9 would be exceeded once in 1e18."""
GAIN_LIMIT = 5.0
"""Standard deviations of the gain of a whole site. There is one a site; healthy ones stay below 1.1, and below 2.3
where attention is emulated in 16 bits."""
ODD = 0.05
"""Error over its bound from which a value is another than the emulated one: in 16 bits the next number is 1 away."""
STANDS_OUT = 4.0
"""Times the median that a row's error must be to say that the mistake is in such rows alone."""
STANDS_OUT_ROWS = 8.0
"""Times the median that a row's error is, of a site that is wrong, to be one of the wrong ones. Healthy rows in float32
reach 3.9, eight times their median."""
BIAS_UNITS = 2.0
"""Roundoff units of the sums by which a row or a column may be off to one side: exp, rsqrt and tanh of real libraries
are good to one unit in the last place, not unbiased."""
GAIN_BIAS = 0.25
"""Share of it that is left over all rows and columns. Gains of healthy sites stay below 0.7 units; a function that is
off by a whole unit in the last place everywhere, two roundoff units, still is within the limit."""


class Tally:
    """Statistics of one site's own error, in units of its rounding bound, collected over blocks of rows."""

    def __init__(self, bias: float) -> None:
        self.bias = bias  # relative error that no average takes away
        self.rows: list[Floats] = []  # mean square of each row
        self.row_gains: list[Floats] = []
        self.row_spreads: list[Floats] = []
        self.columns: Floats = np.zeros(0)  # [squares, offsets, products, powers, weights, odd rows] of each column
        self.count = 0

    def add(self, recorded: Floats, result: Result) -> None:
        """One block of rows, [rows, width]."""
        gaps = [recorded - values for values in (result.values, *result.rounded)]
        gap = gaps[0] if len(gaps) == 1 else min(gaps, key=operations.typical)
        few = max(1, CACHED // gap.shape[1])
        for first in range(0, len(gap), few):
            rows = slice(first, first + few)
            self._add_few(gap[rows], result.values[rows], result.variance[rows], result.shared)

    def _add_few(self, gap: Floats, values: Floats, variance: Floats, shared: float) -> None:
        """As many rows as stay in the cache; statistics need no more than float32, and no more do their sums."""
        inverse = np.sqrt(variance)
        np.reciprocal(inverse, out=inverse)
        with np.errstate(invalid="ignore", over="ignore"):
            error = (gap * inverse).astype(np.float32)
            size = np.abs(error)
            np.copyto(error, LARGEST, where=~(size < LARGEST))
            signal = (values * inverse).astype(np.float32)
            np.clip(signal, -LARGEST, LARGEST, out=signal)
        squares, products, powers = np.square(error), error * signal, np.square(signal)
        power = _across(powers)
        safe, common = np.maximum(power, 1e-290), shared**2 + self.bias**2
        self.rows.append(_across(squares) / (error.shape[1] + common * power))
        self.row_gains.append(_across(products) / safe)
        self.row_spreads.append(np.sqrt(1.0 / safe + common))
        # A row's shared error is no column's fault.
        loose = np.float32(common) * powers
        loose += np.float32(1.0)
        np.reciprocal(loose, out=loose)
        for part in (squares, products, powers):
            part *= loose
        error *= loose
        odd = (size > np.float32(ODD)).astype(np.float32)
        block = np.stack([_down(part) for part in (squares, error, products, powers, loose, odd)])
        self.columns = block if not self.count else self.columns + block
        self.count += len(error)

    def statistics(self) -> Statistics:
        """What was collected, as numbers of standard deviations and ratios."""
        rows = np.sqrt(np.concatenate(self.rows))
        gains, spreads = np.concatenate(self.row_gains), np.concatenate(self.row_spreads)
        weights = 1.0 / np.maximum(np.square(spreads) - self.bias**2, 1e-290)
        gain = float((gains * weights).sum() / weights.sum())
        spread = float(np.sqrt(1.0 / weights.sum() + (GAIN_BIAS * self.bias) ** 2))
        squares, offsets, products, powers, loose, odd = self.columns
        column_spread = np.sqrt(np.maximum(powers, 1e-290) + np.square(self.bias * powers))
        return Statistics(
            size=float(np.sqrt(np.mean(np.square(rows)))),
            rows=rows,
            gain=gain,
            gain_deviations=gain / spread,
            row_gains=gains / spreads,
            columns=np.sqrt(squares / self.count),
            column_offsets=offsets / np.sqrt(np.maximum(loose, 1e-290) + np.square(self.bias) * powers * self.count),
            column_gains=products / column_spread,
            odd=odd / self.count,
        )


def _across(values: NDArray[np.float32]) -> Floats:
    """Sum of each row: a product with ones, several times as fast as numpy's own sum."""
    return (values @ np.ones(values.shape[1], np.float32)).astype(np.float64)


def _down(values: NDArray[np.float32]) -> Floats:
    """Sum of each column."""
    return (np.ones(values.shape[0], np.float32) @ values).astype(np.float64)


@dataclass(frozen=True)
class Statistics:
    """A site's own error. Sizes are ratios to the rounding bound, the rest numbers of standard deviations."""

    size: float  # root mean square over all rows
    rows: Floats  # [rows]
    gain: float  # fitted, 0 where correct
    gain_deviations: float
    row_gains: Floats  # [rows]
    columns: Floats  # [width]
    column_offsets: Floats  # [width]
    column_gains: Floats  # [width]
    odd: Floats  # [width], share of rows that are not the emulated value

    def peaks(self) -> dict[str, float]:
        """The largest of each kind."""
        return {
            "size": self.size,
            "row": float(self.rows.max(initial=0.0)),
            "column": float(self.columns.max(initial=0.0)),
            "gain": abs(self.gain_deviations),
            "row gain": float(np.abs(self.row_gains).max(initial=0.0)),
            "column offset": float(np.abs(self.column_offsets).max(initial=0.0)),
            "column gain": float(np.abs(self.column_gains).max(initial=0.0)),
        }

    def over(self, width: Mapping[str, float]) -> dict[str, float]:
        """Each peak over its limit, widened where drawn rounding errors spread more; above 1 is wrong."""
        return {kind: value / (LIMITS[kind] * max(1.0, width.get(kind, 1.0))) for kind, value in self.peaks().items()}


LIMITS = {
    "size": SIZE_LIMIT,
    "row": ROW_LIMIT,
    "column": COLUMN_LIMIT,
    "gain": GAIN_LIMIT,
    "row gain": DEVIATIONS_LIMIT,
    "column offset": DEVIATIONS_LIMIT,
    "column gain": DEVIATIONS_LIMIT,
}
INDEPENDENT_PEAK = 2.0
"""What the largest of some hundred independent errors is at least, in standard deviations. Rounding errors that share a
cause (a rotary table, a score) peak higher; how much is measured on drawn ones, and the limits widen by that. Attention
written out by hand peaks at 10 where the drawn ones peak at 3."""


@dataclass(frozen=True)
class Own:
    """A site's own error in one sequence, judged."""

    recipe: Recipe
    windows: tuple[Window, ...]
    statistics: Statistics
    over: Mapping[str, float]  # each statistic over its limit
    width: Mapping[str, float]  # how much wider than independent errors the drawn ones spread
    beside: str | None = None  # what tells it from its peers, where its error is within its bound

    @property
    def wrong(self) -> bool:
        return self.beside is not None or max(self.over.values()) > 1.0

    @property
    def statistic(self) -> str:
        """The statistic furthest beyond its limit; size where it is beyond its own."""
        return "size" if self.over["size"] > 1.0 else max(self.over, key=lambda kind: self.over[kind])

    def wrong_rows(self) -> NDArray[np.bool_]:
        """Rows that are wrong by themselves; where only an average over all of them is, every row."""
        rows = self.statistics.rows
        if self.beside is not None:
            return np.asarray(rows > ODD if (rows > ODD).any() else np.ones(len(rows), dtype=bool))
        # The site is wrong; from which row on, its other rows tell: in emulated 16 bits they are nearly exact.
        usual = max(STANDS_OUT_ROWS * float(np.median(rows)), 1.5)
        limit = min(SIZE_LIMIT if self.over["size"] > 1.0 else ROW_LIMIT, usual)
        deviations = DEVIATIONS_LIMIT * max(1.0, self.width.get("row gain", 1.0))
        wrong = (rows > limit) | (np.abs(self.statistics.row_gains) > deviations)
        if wrong.any():
            return np.asarray(wrong)
        top = float(rows.max(initial=0.0))
        late = top > STANDS_OUT * float(np.median(rows))
        return np.asarray(rows > top / 2.0 if late else np.ones_like(wrong))


def own_error(run: Recomputation, recipe: Recipe, stop: int = 1 << 62) -> Own | None:
    """A site's own error in one sequence, below position `stop`; None where it was not recorded with its inputs."""
    if recipe.site != "logits" and recipe.stored not in run.sequence.sites:
        return None
    width = run.width(recipe)
    blocks = [part for window in run.windows(recipe, stop) for part in _blocks(window, width)]
    windows = [part for block in blocks for part in run.finite(recipe, block)]
    if not windows:
        return None
    own = _judged(run, recipe, windows, closely=False)
    # The cheap bounds take a product's sizes as spread evenly, and the core's errors as alike between the rows where
    # they were drawn; judge by the full ones.
    return _judged(run, recipe, windows, closely=True) if own.wrong and recipe.kind in CLOSELY else own


def _blocks(window: Window, width: int) -> list[Window]:
    rows = min(BLOCK_ROWS, max(FEWEST_ROWS, BLOCK_VALUES // width))
    return [Window(first, min(first + rows, window.stop)) for first in range(window.first, window.stop, rows)]


def _judged(run: Recomputation, recipe: Recipe, windows: list[Window], closely: bool) -> Own:
    bias = BIAS_UNITS * operations.accumulator(run.computed_in(recipe))
    tally = Tally(bias)
    width: dict[str, float] = {}
    for window in windows:
        recorded = run.recorded(recipe.stored, window)
        result = run.result(recipe, window, run.inputs(recipe, window), closely).closest(recorded)
        tally.add(_overflowed(recorded, result.values, run.dtype(recipe.stored)), result)
        for kind, factor in drawn_width(result, bias).items():
            width[kind] = max(width.get(kind, 1.0), factor)
    statistics = tally.statistics()
    return Own(recipe, tuple(windows), statistics, statistics.over(width), width)


def _overflowed(recorded: Floats, values: Floats, dtype: str) -> Floats:
    """What was recorded, with infinities taken for the exact value where that is beyond the format's largest number: an
    engine that rounds it to infinity computes right."""
    infinite = np.isinf(recorded)
    if dtype not in LARGEST_NUMBER or not infinite.any():
        return recorded
    right = infinite & (np.abs(values) >= LARGEST_NUMBER[dtype]) & (np.sign(values) == np.sign(recorded))
    return np.where(right, values, recorded)


def drawn_width(result: Result, bias: float) -> dict[str, float]:
    """How much wider than independent errors the drawn ones spread, by statistic."""
    out: dict[str, float] = {}
    rows = result.drawn_rows
    for error in result.draws:
        part = Result(result.values[rows], result.variance[rows], result.shared)
        tally = Tally(bias)
        tally.add(part.values + error, part)
        for kind, peak in tally.statistics().peaks().items():
            out[kind] = max(out.get(kind, 1.0), peak / INDEPENDENT_PEAK)
    return out
