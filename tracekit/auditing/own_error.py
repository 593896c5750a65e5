"""A site's own error: what it made by itself, given the input that it really got, judged by what rounding may do.

The error is taken in units of what correct arithmetic may be off (`operations`), as its size and as the simplest
structured statistics, which see in 16 bits what size cannot: a gain, the gain of a row, the offset and the gain of a
column.

Each statistic is judged against its own spread: what rounding makes of it on the site's own numbers. The error of a
value is taken as an independent Gaussian one of the variance that `operations` gives; errors of sums spread as much
more as they do where they are added up in float32 on the same rows (`sums`), those of the attention core as drawn ones;
what rows have in common is rounded alike in all of them, and no average takes it away (`alike`).
All tests of a trace together raise a false alarm with the probability `FALSE_ALARMS` (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing import operations
from tracekit.auditing.alike import Shares, common_of_values, rows_alike, sketch
from tracekit.auditing.evidence import Outlier, Statistic
from tracekit.auditing.operations import Floats, Result
from tracekit.auditing.operations.operation import Effort
from tracekit.auditing.recipe import Recipe
from tracekit.auditing.recompute import Recomputation, Window
from tracekit.trace import LOGITS

BLOCK_ROWS, FEWEST_ROWS, BLOCK_VALUES = 1024, 64, 1 << 20
"""Positions recomputed at a time: as many as hold about a million values, whose memory the allocator gives out again
without asking the system for it."""
CACHED = 64 << 10
"""Elements whose statistics are taken at a time: their dozen arrays stay in the cache."""
LARGEST = np.float32(1e15)
"""Error over its bound that stands for all larger ones, and for what is not finite; its square fits float32."""

LARGEST_NUMBER = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028234e38, "float64": 1.7976931e308}
"""Largest finite number of each format, rounded down."""

FALSE_ALARMS = 1e-4
"""Probability that the audit of one trace without a fault says that something is off, over all that it tests."""
ONE_SITE = FALSE_ALARMS / 1e6
"""Probability of a false alarm of one test where the number of tests is not known: a trace has a million of them."""
ODD = 0.05
"""Error over its bound from which a value is another than the emulated one: in 16 bits the next number is 1 away."""
NEAR_LIMIT = 4.0
"""Times its limit up to which a statistic is judged again, by more draws."""
STANDS_OUT = 4.0
"""Times the median that a row's error must be to say that the mistake is in such rows alone."""
STANDS_OUT_ROWS = 8.0
"""Times the median that a row's error is, of a site that is wrong, to be one of the wrong ones. Healthy rows in float32
reach 3.9, eight times their median."""


def deviations(level: float) -> float:
    """Standard deviations that a Gaussian error exceeds, to either side, with this probability."""
    return -NormalDist().inv_cdf(max(min(level, 1.0), 1e-300) / 2.0)


def root_mean_square(freedom: float, level: float) -> float:
    """What the root mean square of `freedom` independent Gaussian errors of variance 1 exceeds with this probability
    (Wilson and Hilferty 1931)."""
    share = 2.0 / (9.0 * max(freedom, 1.0))
    beyond = -NormalDist().inv_cdf(max(min(level, 1.0), 1e-300))
    return float(max(1.0 - share + beyond * share**0.5, 0.0) ** 1.5)


class Tally:
    """Statistics of one site's own error, in units of its rounding bound, collected over blocks of rows."""

    def __init__(self) -> None:
        self.rows: list[Floats] = []  # mean square of each row
        self.freedoms: list[Floats] = []  # independent errors in it
        self.row_gains: list[Floats] = []
        self.row_variances: list[Floats] = []
        self.biases: list[Floats] = []
        self.leverages: list[Floats] = []  # of each row's gain, by the operation's own number
        self.columns: Floats = np.zeros(0)  # [squares, offsets, products, powers, weights, odd rows] of each column
        self.count = 0

    def add(self, recorded: Floats, result: Result) -> None:
        """One block of rows, [rows, width]."""
        gaps = [recorded - values for values in (result.values, *result.rounded)]
        gap = gaps[0] if len(gaps) == 1 else min(gaps, key=operations.typical)
        few, independent = max(1, CACHED // gap.shape[1]), result.errors_in_rows
        for first in range(0, len(gap), few):
            rows = slice(first, first + few)
            self._add_few(gap[rows], result.values[rows], result.variance[rows], independent[rows], result)
        self.leverages.append(np.ones(len(gap)) if result.leverage is None else result.leverage)

    def _add_few(self, gap: Floats, values: Floats, variance: Floats, independent: Floats, result: Result) -> None:
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
        power, width = _across(powers), error.shape[1]
        safe, common = np.maximum(power, 1e-290), result.shared**2 + result.bias**2
        self.rows.append(_across(squares) / (width + common * power))
        # What a row shares is one error, however many values it moves.
        shared = np.square(common * power)
        self.freedoms.append(np.square(width + common * power) / (width**2 / independent + shared))
        self.row_gains.append(_across(products) / safe)
        self.row_variances.append(1.0 / safe + result.shared**2)
        self.biases.append(np.full(len(error), result.bias))
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

    def statistics(self, common: Shares | float = 0.0) -> Statistics:
        """What was collected, as numbers of standard deviations and ratios. A bias of unknown sign is no deviation.
        `common`: the share of the variance of a column's error that any two rows have in common."""
        rows, freedoms = np.sqrt(np.concatenate(self.rows)), np.concatenate(self.freedoms)
        gains, variances = np.concatenate(self.row_gains), np.concatenate(self.row_variances)
        biases = np.concatenate(self.biases)
        weights = 1.0 / np.maximum(variances, 1e-290)
        gain, bias = float((gains * weights).sum() / weights.sum()), float(biases.max())
        squares, offsets, products, powers, loose, odd = self.columns
        safe = np.maximum(powers, 1e-290)
        spread = 1.0 + (self.count - 1.0) * np.broadcast_to(common, powers.shape)
        over_all = float((safe * spread).sum() / safe.sum())
        directions = (np.ones(len(gains)), np.concatenate(self.leverages))
        deviates = [_along(each, gains, weights / over_all, bias) for each in directions]
        which = int(np.argmax(np.abs(deviates)))
        return Statistics(
            size=float(np.sqrt(np.mean(np.square(rows)))),
            rows=rows,
            gain=gain,
            gain_deviations=deviates[which],
            gains=gains * np.sqrt(weights),
            direction=directions[which] * np.sqrt(weights),
            row_gains=_beyond(gains, biases) / np.sqrt(variances),
            columns=np.sqrt(squares / self.count),
            column_offsets=_beyond(offsets, bias * np.sqrt(powers * self.count))
            / np.sqrt(np.maximum(loose, 1e-290) * spread),
            column_gains=_beyond(products, bias * powers) / np.sqrt(safe * spread),
            odd=odd / self.count,
            freedoms=freedoms,
            repeats=spread,
        )


def _along(direction: Floats, gains: Floats, weights: Floats, bias: float) -> float:
    """Standard deviations of the rows' gains [rows] along a direction [rows], less what a bias of any sign in each row
    makes of it: where a number of the operation is another, each row's gain moves by its leverage."""
    power = max(float(weights @ np.square(direction)), 1e-290)
    return float(_beyond((weights * direction) @ gains, bias * float(weights @ np.abs(direction))) / np.sqrt(power))


def _beyond(values: Floats | float, bias: Floats | float) -> Floats:
    """What is left of an error when as much as the bias may be is taken off it."""
    return np.asarray(np.sign(values) * np.maximum(np.abs(values) - bias, 0.0))


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
    gain_deviations: float  # along `direction`
    gains: Floats  # [rows], each over its spread, biases included
    direction: Floats  # [rows], in which the gains deviate the most: alike, or as a number of the operation moves them
    row_gains: Floats  # [rows]
    columns: Floats  # [width]
    column_offsets: Floats  # [width]
    column_gains: Floats  # [width]
    odd: Floats  # [width], share of rows that are not the emulated value
    freedoms: Floats  # [rows], independent errors in each row's size
    repeats: Floats  # [width], rows that are rounded as one: 1 where they have nothing in common

    def peaks(self) -> dict[Statistic, float]:
        """The largest of each kind."""
        return {
            Statistic.SIZE: self.size,
            Statistic.ROW: float(self.rows[self.worst_row]) if self.rows.size else 0.0,
            Statistic.COLUMN: float(self.columns[self.worst_column]) if self.columns.size else 0.0,
            Statistic.GAIN: abs(self.gain_deviations),
            Statistic.ROW_GAIN: float(np.abs(self.row_gains).max(initial=0.0)),
            Statistic.COLUMN_OFFSET: float(np.abs(self.column_offsets).max(initial=0.0)),
            Statistic.COLUMN_GAIN: float(np.abs(self.column_gains).max(initial=0.0)),
        }

    @property
    def column_freedom(self) -> Floats:
        """Independent errors in each column's size, [width]."""
        return np.asarray(np.maximum(len(self.rows) / self.repeats, 1.0))

    @cached_property
    def worst_column(self) -> int:
        """The column whose size is furthest beyond what so many errors exceed."""
        return _furthest_beyond(self.columns, self.column_freedom)

    @cached_property
    def worst_row(self) -> int:
        """The row whose size is furthest beyond what so many errors exceed."""
        return _furthest_beyond(self.rows, self.freedoms)

    @property
    def freedom(self) -> float:
        """Independent errors in the size of the site."""
        return len(self.rows) ** 2 / float(np.sum(1.0 / self.freedoms)) / float(self.repeats.mean())

    def since(self, wrong: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The rows from which on the gains follow that of the wrong ones, [rows]: the least squares of two parts."""
        steep = float(np.median(self.gains[wrong] / np.maximum(self.direction[wrong], 1e-290)))
        less = np.square(self.gains) - np.square(self.gains - steep * self.direction)
        first = int(np.argmin(np.concatenate([[0.0], np.cumsum(less)])))
        return np.asarray(np.arange(len(self.gains)) >= first)

    def counts(self) -> dict[Statistic, int]:
        """How many there are of each kind: so many tests are made."""
        rows, columns = len(self.rows), len(self.columns)
        by_row, by_column = (
            dict.fromkeys((Statistic.ROW, Statistic.ROW_GAIN), rows),
            dict.fromkeys(COLUMN_KINDS, columns),
        )
        return {Statistic.SIZE: 1, Statistic.GAIN: 2, **by_row, **by_column}

    def limits(
        self, level: Mapping[Statistic, float] | float, width: Mapping[Statistic, float]
    ) -> dict[Statistic, float]:
        """What each peak exceeds with probability `level` where only rounding is at work; `width`: how much wider than
        independent errors those of this site spread."""

        def of(kind: Statistic) -> float:
            return level if isinstance(level, float) else level[kind]

        plain = {
            Statistic.SIZE: root_mean_square(self.freedom, of(Statistic.SIZE)),
            Statistic.ROW: root_mean_square(
                float(self.freedoms[self.worst_row]) if self.rows.size else 1.0, of(Statistic.ROW)
            ),
            Statistic.COLUMN: root_mean_square(
                float(self.column_freedom[self.worst_column]) if self.columns.size else 1.0, of(Statistic.COLUMN)
            ),
            **{
                kind: deviations(of(kind))
                for kind in (Statistic.GAIN, Statistic.ROW_GAIN, Statistic.COLUMN_OFFSET, Statistic.COLUMN_GAIN)
            },
        }
        return {kind: limit * max(1.0, width.get(kind, 1.0)) for kind, limit in plain.items()}


def _furthest_beyond(sizes: Floats, freedoms: Floats) -> int:
    """The size that is furthest beyond what so many independent errors exceed."""
    return int((sizes / _exceeded(freedoms, ONE_SITE)).argmax())


def _exceeded(freedoms: Floats, level: float) -> Floats:
    """`root_mean_square` of each."""
    distinct, which = np.unique(freedoms, return_inverse=True)
    return np.array([root_mean_square(float(each), level) for each in distinct])[which]


COLUMN_KINDS = (Statistic.COLUMN, Statistic.COLUMN_OFFSET, Statistic.COLUMN_GAIN)


def tests_of(rows: int, columns: int) -> int:
    """Tests that are made of a site."""
    return 3 + 2 * rows + len(COLUMN_KINDS) * columns


@dataclass(frozen=True)
class Own:
    """A site's own error in one sequence, judged."""

    recipe: Recipe
    windows: tuple[Window, ...]
    statistics: Statistics
    limits: Mapping[Statistic, float]  # of each statistic
    width: Mapping[Statistic, float]  # how much wider than independent errors those of this site spread
    level: float = ONE_SITE  # probability of a false alarm of one test
    beside: Outlier | None = None  # what tells it from its peers, where its error is within its bound

    def held_to(self, level: float) -> Own:
        """The same, judged with this probability of a false alarm of each test."""
        return replace(self, limits=self.statistics.limits(level, self.width), level=level)

    @property
    def over(self) -> dict[Statistic, float]:
        """Each statistic over its limit; above 1 is wrong."""
        return {kind: value / self.limits[kind] for kind, value in self.statistics.peaks().items()}

    @property
    def wrong(self) -> bool:
        return self.beside is not None or max(self.over.values()) > 1.0

    @property
    def statistic(self) -> Statistic:
        """The statistic furthest beyond its limit; size where it is beyond its own."""
        over = self.over
        return Statistic.SIZE if over[Statistic.SIZE] > 1.0 else max(over, key=lambda kind: over[kind])

    @property
    def _row_limits(self) -> Floats:
        """What each row's size exceeds with the probability of a false alarm, [rows]: of few independent errors more
        often than of many."""
        spread = max(1.0, self.width.get(Statistic.ROW, 1.0))
        return spread * _exceeded(self.statistics.freedoms, self.level)

    def wrong_rows(self) -> NDArray[np.bool_]:
        """Rows that are wrong by themselves; where only an average over all of them is, every row."""
        rows = self.statistics.rows
        if self.beside is not None:
            return np.asarray(rows > ODD if (rows > ODD).any() else np.ones(len(rows), dtype=bool))
        # The site is wrong; from which row on, its other rows tell: in emulated 16 bits they are nearly exact.
        usual = max(STANDS_OUT_ROWS * float(np.median(rows)), 1.5)
        by_size = rows > np.minimum(self._row_limits, usual)
        if self.over[Statistic.SIZE] > 1.0 and not by_size.any():  # no single row tells
            by_size = rows > min(self.limits[Statistic.SIZE], usual)
        wrong = by_size | (np.abs(self.statistics.row_gains) > self.limits[Statistic.ROW_GAIN])
        if wrong.any():
            by_gain_alone = self.over[Statistic.GAIN] > 1.0 and not by_size.any()
            return np.asarray(wrong | self.statistics.since(wrong) if by_gain_alone else wrong)
        top = float(rows.max(initial=0.0))
        late = top > STANDS_OUT * float(np.median(rows))
        return np.asarray(rows > top / 2.0 if late else np.ones_like(wrong))


def own_error(run: Recomputation, recipe: Recipe, stop: int = 1 << 62, level: float = ONE_SITE) -> Own | None:
    """A site's own error in one sequence, below position `stop`; None where it was not recorded with its inputs.
    `level`: the probability of a false alarm of each statistic, of each row and column."""
    operation = recipe.operation.within(run.sequence)
    recipe = recipe if operation is recipe.operation else replace(recipe, operation=operation)
    windows = [part for block in site_windows(run, recipe, stop) for part in run.finite(recipe, block)]
    if not windows:
        return None
    own = _judged(run, recipe, windows, level, Effort.QUICK)
    # The cheap bounds take a product's sizes as spread evenly, the core's errors as alike between the rows where they
    # were drawn, and those of all rows as independent; judge by the full ones.
    own = _judged(run, recipe, windows, level, Effort.FULL) if own.wrong else own
    # Few draws may miss what a single value is off by, where others cancel in it.
    near = recipe.operation.draws_errors and own.wrong and max(own.over.values()) < NEAR_LIMIT
    return _judged(run, recipe, windows, level, Effort.MOST_DRAWS) if near else own


def site_windows(run: Recomputation, recipe: Recipe, stop: int) -> list[Window]:
    """The rows of a site that can be judged, in blocks."""
    if recipe.site != LOGITS and recipe.stored not in run.sequence.sites:
        return []
    width = run.width(recipe)
    return [part for window in run.windows(recipe, stop) for part in _blocks(window, width)]


def _blocks(window: Window, width: int) -> list[Window]:
    rows = min(BLOCK_ROWS, max(FEWEST_ROWS, BLOCK_VALUES // width))
    return [Window(first, min(first + rows, window.stop)) for first in range(window.first, window.stop, rows)]


def _judged(run: Recomputation, recipe: Recipe, windows: list[Window], level: float, effort: Effort) -> Own:
    tally = Tally()
    width: dict[Statistic, float] = {}
    sketches, rows, shares = [], [], []
    for window in windows:
        recorded, dtype = run.recorded(recipe.stored, window), run.dtype(recipe.stored)
        result = run.result(recipe, window, run.inputs(recipe, window), effort).closest(recorded)
        tally.add(_overflowed(recorded, result.values, dtype), result)
        common: Shares | float = 0.0
        if effort is not Effort.QUICK:
            sketches.append(sketch(result.values))
            common = (
                common_of_values(result.values, operations.unit(dtype)) if result.common is None else result.common()
            )
            rows.append(len(recorded))
            shares.append(common)
        for kind, factor in (*spread_width(result).items(), *common_width(result, level, common).items()):
            width[kind] = max(width.get(kind, 1.0), factor)
    alike = rows_alike(np.concatenate(sketches)) if sketches else 1.0
    statistics = tally.statistics(shared_by(shares, rows, alike) if shares else 0.0)
    return Own(recipe, tuple(windows), statistics, statistics.limits(level, width), width, level)


def shared_by(shares: list[Shares], rows: list[int], alike: float) -> Shares:
    """What any two rows have in common over all blocks of so many rows, of which each row is alike to `alike`."""
    return np.asarray(np.maximum(np.average(shares, axis=0, weights=rows), (alike - 1.0) / max(sum(rows) - 1.0, 1.0)))


def _overflowed(recorded: Floats, values: Floats, dtype: str) -> Floats:
    """What was recorded, with infinities taken for the exact value where that is beyond the format's largest number: an
    engine that rounds it to infinity computes right."""
    infinite = np.isinf(recorded)
    if dtype not in LARGEST_NUMBER or not infinite.any():
        return recorded
    right = infinite & (np.abs(values) >= LARGEST_NUMBER[dtype]) & (np.sign(values) == np.sign(recorded))
    return np.where(right, values, recorded)


def spread_width(result: Result, common: Shares | float = 0.0) -> dict[Statistic, float]:
    """How much wider than independent errors those of a site spread, by statistic: of products as their sums show, of
    the attention core as the largest of the drawn errors over what as many independent ones exceed once. `common`: as
    `Tally.statistics` takes it."""
    made: list[Statistics] = []
    for error in result.draws:
        rows = result.drawn_rows
        # Drawn errors have no bias; taking as much off them would leave nothing of their common gain.
        independent = result.errors_in_rows[rows]
        part = Result(result.values[rows], result.variance[rows], result.shared, independent=independent)
        tally = Tally()
        tally.add(part.values + error, part)
        made.append(tally.statistics(common))
    if not made:
        return dict.fromkeys(
            (Statistic.SIZE, Statistic.ROW, *COLUMN_KINDS, Statistic.GAIN, Statistic.ROW_GAIN), result.excess
        )
    return _peaked(made)


def common_width(result: Result, level: float, common: Shares | float = 0.0) -> dict[Statistic, float]:
    """How much wider than independent errors those of a product spread because its rows have much in common, by
    statistic: from the second moments of errors in other orders. A mean square of errors that varies as one of fewer
    would has that many degrees of freedom (Satterthwaite 1946). `common`: as `Tally.statistics` takes it."""
    made: list[Statistics] = []
    for error in result.reordered():
        tally = Tally()
        tally.add(result.values + error, Result(result.values, result.variance, result.shared, result.rounded))
        made.append(tally.statistics(common))
    if not made:
        return {}
    columns = np.square(np.concatenate([one.columns for one in made]))
    rows = np.square(np.concatenate([one.rows for one in made]))
    count, width, freedom = float(made[0].column_freedom.mean()), len(made[0].columns), float(made[0].freedoms.min())
    column, row = _freedom(columns, count), _freedom(rows, freedom)
    gains = _moment([one.column_gains for one in made])
    moments = {
        Statistic.SIZE: _wider(min(column * width, made[0].freedom), made[0].freedom, level)
        * max(1.0, float(columns.mean())) ** 0.5,
        Statistic.COLUMN: _wider(column, count, level) * max(1.0, float(columns.mean())) ** 0.5,
        Statistic.ROW: _wider(row, freedom, level) * max(1.0, float(rows.mean())) ** 0.5,
        Statistic.GAIN: gains,
        Statistic.COLUMN_GAIN: gains,
        Statistic.COLUMN_OFFSET: _moment([one.column_offsets for one in made]),
        Statistic.ROW_GAIN: _moment([one.row_gains for one in made]),
    }
    # A few columns whose terms happen to fall next to ties together are off by more than the moments say.
    return {kind: max(moments[kind], peak) for kind, peak in _peaked(made).items()}


def _peaked(made: list[Statistics]) -> dict[Statistic, float]:
    """The largest of drawn statistics over what as many independent errors exceed once, by kind."""
    once = {kind: 1.0 / (count * len(made)) for kind, count in made[0].counts().items()}
    usual = made[0].limits(once, {})
    peaks = {kind: max(statistics.peaks()[kind] for statistics in made) for kind in usual}
    return {kind: peak / max(usual[kind], 0.5) for kind, peak in peaks.items()}


def _moment(deviations: list[Floats]) -> float:
    """Root mean square of numbers of standard deviations: 1 where the errors are independent."""
    return float(np.sqrt(np.mean(np.square(np.concatenate(deviations)))))


def _freedom(squares: Floats, most: float) -> float:
    """Degrees of freedom of mean squares, by how much they vary; no more than `most`."""
    variance = float(squares.var())
    return min(2.0 * float(squares.mean()) ** 2 / variance, most) if variance > 0.0 else most


def _wider(freedom: float, independent: float, level: float) -> float:
    """How much more a root mean square of `freedom` errors exceeds than one of `independent` errors does."""
    return root_mean_square(freedom, level) / root_mean_square(independent, level)
