"""A culprit under examination: what it was given, what it gave, and whether a hypothesis accounts for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing import operations
from tracekit.auditing.audit import Culprit
from tracekit.auditing.evidence import Statistic
from tracekit.auditing.operations import Core, Floats, Result
from tracekit.auditing.operations.operation import Effort
from tracekit.auditing.own_error import LARGEST, Statistics, Tally, root_mean_square, spread_width
from tracekit.auditing.recipe import Recipe, Recipes
from tracekit.auditing.recompute import Recomputation, Window, joined
from tracekit.dtypes import SIXTEEN_BITS
from tracekit.inspection.positions import prompt_length
from tracekit.mistakes.explanation import EVERYWHERE, Extent, Mistake, Value, Where
from tracekit.trace import LOGITS

ROWS = 256
"""Rows that a hypothesis is tried on; of longer recordings, those around the first wrong one and the last."""
SHARE_LEFT = 0.1
MOSTLY = 0.85
"""Share of heads and positions that a mistake of rounding must account for. One score in 500 lies so near a tie of
float16 that float32's error decides it; a head at 20 positions has 20 of them."""
SAME_BITS = 0.98
"""Share of the values that a choice of precision must give bit for bit."""
SAME_BITS_OF_SUMS = 0.75
"""The same where scores are sums that engines add up in any order: one that falls to the other side of a tie moves its
row of a head. Another arithmetic gives less than 70 % of the bits of an attention core."""
MOST_LEFT = 0.3
"""Share of the error of its wrong rows that a site may be left with by a choice of precision."""
BLOCK_LIMIT = 8.0
"""Error over its bound up to which a head at one position counts as accounted for by a mistake of rounding: one value
that fell to the other side of a tie moves it by some units, one that was not rounded at all by thousands."""
FLIPPED = 2.0
"""Times the most that a mistake of rounding moves any head at one position, up to which a value that fell to the other
side of a tie may move one. More is the work of another mistake."""
NEARLY = 4.0
"""Times its limit up to which what another core leaves is judged again, by rounding errors that are drawn of that core:
until then they are taken as large as those of the right one, in proportion to its values."""
NICE_DIGITS = (1, 2, 3, 4)
"""A fitted number is rounded to the fewest digits with which it still holds."""

SAMPLES = (8, 32)
"""Rows on which values in an engine's arithmetic are tried before all: most hypotheses are far off on each of them."""
CERTAINLY = 1.001
"""Times its limit from which an error on some rows is beyond it, whatever the last bits of sums are."""

Rows = NDArray[np.int64] | slice
"""Indexes into the rows of a case."""


@dataclass(frozen=True)
class InOrders:
    """A result with what it becomes in each arithmetic of engines, which is worked out on the rows that are asked for:
    emulating an attention core takes a hundred times as long as computing it."""

    exact: Result
    orders: tuple[Callable[[Rows], Floats], ...]

    def all(self) -> Result:
        """In every arithmetic at all rows."""
        return replace(self.exact, rounded=tuple(order(slice(None)) for order in self.orders))


Values = Floats | Result | InOrders
"""What a site would hold, [rows, width]; a Result where the orders of rounding are known."""
Made = tuple[Values, Mapping[str, Value]]
"""The same with what was fitted, by the names that the mistake's words have."""


@dataclass(frozen=True)
class Hypothesis:
    """One thing changed."""

    make: Callable[[], Made | None]
    """None where the change cannot be made here."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """What the mistake's words name and is known beforehand."""
    at: Callable[[float], Values] | None = None
    """Values at another number than the fitted one, to round it."""
    variance: Floats | None = None
    """Of rounding errors that come with the change."""
    flips: bool = False
    """It rounds on the way: what lies next to a tie may fall to the other side."""
    core: Core | None = None
    """The attention core with the change, where it is one of a core without a number to fit."""
    core_at: Callable[[Any], Core] | None = None
    """The same with a number: the core at it."""
    changes: int = 1
    """Things that are changed: of hypotheses that fit alike, the one that changes fewest is the simplest."""

    def core_with(self, number: Value | None) -> Core | None:
        """The core with the change; with what was fitted, where a number is."""
        return self.core_at(number) if self.core_at is not None and number is not None else self.core


def exactly_of(values: Values) -> Floats:
    """Without the engines' roundings."""
    match values:
        case InOrders():
            return values.exact.values
        case Result():
            return values.values
    return values


def plainly(make: Callable[..., Values | None], *arguments: object, **values: Value) -> Hypothesis:
    """A hypothesis without a number to fit: the site would hold `make(*arguments)`."""

    def made() -> Made | None:
        result = make(*arguments)
        return None if result is None else (result, {})

    return Hypothesis(made, values)


def unchanged(values: Floats) -> Floats:
    """What is given."""
    return values


def product(x: Floats, weight: Floats, bias: Floats | None) -> Floats:
    """A linear layer in float64."""
    values = x @ weight.T
    return values if bias is None else values + bias


def moves_nothing(values: Floats, base: Floats, dtype: str) -> bool:
    """Whether a change moves every value by no more than a roundoff of its format, of float32 by four: what it would
    explain is rounding, and a number fitted to that is the roundoff's own (a gain of 1.0000001)."""
    roundoff = max(operations.unit(dtype), 4.0 * operations.ACCUMULATOR)
    return bool(np.all(np.abs(values - base) <= roundoff * np.abs(base)))


def narrower(case: Case) -> list[str]:
    """16-bit formats with fewer bits than a case's own; of a 16-bit program, those that occur in it."""
    coarser = [each for each in ("float16", "bfloat16") if operations.unit(each) > operations.unit(case.dtype) * 1.5]
    return coarser if case.dtype not in SIXTEEN_BITS else [each for each in coarser if each in case.formats]


def narrowed(case: Case, values: Floats, dtype: str) -> Floats:
    """`values` rounded to a narrower format; where rounding errors decide which way, the way that was recorded."""
    reach = 4.0 * np.sqrt(case.right.variance)
    low, high = operations.as_stored(values - reach, dtype), operations.as_stored(values + reach, dtype)
    return np.clip(case.recorded, low, high)


@dataclass(frozen=True)
class Fit:
    """A hypothesis that was tried."""

    values: Mapping[str, Value]
    residual: float  # root mean square of what is left, over the rounding bound
    holds: bool
    where: Where = EVERYWHERE
    changes: int = 1

    @property
    def partial(self) -> bool:
        """Whether it was tried on some rows alone."""
        return self.where != EVERYWHERE


@dataclass(frozen=True)
class Case:
    """One culprit: its recipe, the rows looked at, their inputs, the recorded and the right values."""

    recipe: Recipe
    run: Recomputation
    recipes: Recipes
    window: Window
    inputs: list[Floats]
    recorded: Floats
    right: Result
    wrong: NDArray[np.bool_]  # [rows]
    needed: float  # residual that a hypothesis must come down to
    level: float  # probability of a false alarm of each statistic

    @classmethod
    def of(cls, culprit: Culprit, run: Recomputation, recipes: Recipes) -> Case:
        recipe, windows = culprit.own.recipe, culprit.own.windows
        rows = np.concatenate([window.rows for window in windows])
        first = int(rows[int(culprit.own.wrong_rows().argmax())])
        window = _chosen(list(windows), first)
        inputs = run.inputs(recipe, window)
        wrong = culprit.own.wrong_rows()[(rows >= window.first) & (rows < window.stop)]
        recorded = run.recorded(recipe.stored, window)
        right = run.result(recipe, window, inputs, Effort.FULL).closest(recorded)
        # An error within its bound was found by comparing with the site's peers: next to nothing may be left of it.
        own = culprit.own
        needed = np.inf if max(own.over.values()) > 1.0 else SHARE_LEFT * own.statistics.size
        return cls(recipe, run, recipes, window, inputs, recorded, right, wrong, needed, own.level)

    @cached_property
    def dtype(self) -> str:
        return self.run.computed_in(self.recipe)

    @cached_property
    def formats(self) -> frozenset[str]:
        """Formats that occur in the run: of its sites and its parameters."""
        held = {weight.dtype for weight in self.run.parameters.trace.weights.values()}
        return frozenset(held | {data.dtype for data in self.run.sequence.sites.values()})

    @cached_property
    def prompt(self) -> int:
        return prompt_length(self.run.sequence)

    def prompt_and_decoding(self) -> list[Case]:
        """The case cut in two, where rows are wrong on both sides; none where they are not."""
        rows = self.window.rows
        reading = rows < self.prompt
        if self.recipe.site == LOGITS or not self.wrong[reading].any() or not self.wrong[~reading].any():
            return []
        cut = self.prompt
        windows = (Window(self.window.first, cut), Window(cut, self.window.stop))
        return [self._part(window, part) for window, part in zip(windows, (reading, ~reading), strict=True)]

    def _part(self, window: Window, rows: NDArray[np.bool_]) -> Case:
        inputs, recorded = self.run.inputs(self.recipe, window), self.run.recorded(self.recipe.stored, window)
        right = self.run.result(self.recipe, window, inputs, Effort.FULL).closest(recorded)
        return replace(self, window=window, inputs=inputs, recorded=recorded, right=right, wrong=self.wrong[rows])

    @cached_property
    def base(self) -> Floats:
        """The right values as the engine would round them."""
        options = (self.right.values, *self.right.rounded)
        return min(options, key=lambda values: operations.typical(self.recorded - values))

    @cached_property
    def region(self) -> NDArray[np.bool_]:
        """Rows that the mistake acts on: all, or only the prompt's, or only what comes from the first wrong row on,
        where the others are right."""
        rows = self.window.rows
        if self.recipe.site == LOGITS:
            return np.ones(len(rows), dtype=bool)
        for part in (rows < self.prompt, rows >= self.prompt, rows >= rows[int(self.wrong.argmax())]):
            if self.wrong.any() and part.any() and not self.wrong[~part].any() and self.wrong[part].mean() > 0.5:
                return np.asarray(part)
        reading = rows < self.prompt  # a window acts on its last rows alone
        alone = self.wrong.any() and not reading.all() and not self.wrong[~reading].any()
        return np.asarray(reading) if alone else np.ones(len(rows), dtype=bool)

    def tried(self, mistake: Mistake, hypothesis: Hypothesis) -> Iterator[Fit]:
        """The hypothesis on all rows, and where only some rows are wrong, on those alone."""
        made = hypothesis.make()
        if made is None:
            return
        values, found = made[0], {**hypothesis.values, **made[1]}
        if mistake.precision:
            yield self._precise(exactly_of(values), found)
            return
        plain = exactly_of(values)
        if mistake.main in made[1] and moves_nothing(plain, self.right.values, self.dtype):
            return
        core = hypothesis.core_with(made[1].get(mistake.main or ""))
        fit = self._fit(hypothesis, values, found, core)
        if mistake.main in made[1] and hypothesis.at is not None and (fit.holds or len(self.right.rounded) > 0):
            fit = self._rounded(mistake.main, hypothesis, fit)
        yield fit
        if not fit.holds and not self.region.all():
            part = np.where(self.region[:, None], plain, self.base)
            yield replace(self._fit(hypothesis, part, found, core), where=self._where())

    def _where(self) -> Where:
        rows = self.window.rows
        if np.array_equal(self.region, rows < self.prompt):
            return Where(Extent.PROMPT)
        first = int(rows[int(self.region.argmax())])
        return Where(Extent.DECODING) if first == self.prompt else Where(Extent.ONWARDS, first)

    def _fit(self, hypothesis: Hypothesis, values: Values, found: Mapping[str, Value], core: Core | None) -> Fit:
        if isinstance(values, InOrders):
            if self._refuted(values, hypothesis.variance):
                return Fit(found, math.inf, False, changes=hypothesis.changes)
            values = values.all()
        statistics, worst = self.judge(values, hypothesis.variance)
        if 1.0 < worst <= NEARLY and core is not None:
            statistics, worst = self.judge(self._drawn(values, core), hypothesis.variance)
        holds, residual = worst <= 1.0 and statistics.size <= self.needed, statistics.size
        wide = operations.unit(self.dtype) <= operations.ACCUMULATOR
        if wide and not holds and hypothesis.flips:
            holds, residual = self._mostly(exactly_of(values))
        return Fit(found, residual, holds, changes=hypothesis.changes)

    def _drawn(self, values: Floats | Result, core: Core) -> Result:
        """What another attention core gives, with the variance of rounding errors drawn of it where it acts."""
        operation = self.recipe.operation
        assert isinstance(operation, operations.Attention)
        recipe = replace(self.recipe, operation=replace(operation, core=core))
        drawn = self.run.result(recipe, self.window, self.inputs, Effort.FULL).closest(self.recorded)
        made = values if isinstance(values, Result) else replace(self.right, values=values, rounded=())
        return replace(made, variance=np.where(self.region[:, None], drawn.variance, made.variance))

    def _precise(self, values: Floats, found: Mapping[str, Value]) -> Fit:
        """A choice of precision holds where it gives the recorded bits, but for what lay next to a tie: more may be the
        work of a wrong formula. What it leaves is compared with what was wrong on the wrong rows: ties of all the
        others, which are right with and without it, may be more than one wrong row of theirs."""
        same = float(np.mean(self.recorded == values))
        statistics, worst = self.judge(values)
        enough = SAME_BITS if self.recipe.operation.block == 1 else SAME_BITS_OF_SUMS
        mended = self._size_where_wrong(values) <= MOST_LEFT * self._size_where_wrong(self.right.values)
        holds = same >= enough and worst <= 1.0 and mended and statistics.size <= self.needed
        return Fit(found, statistics.size, holds)

    def _size_where_wrong(self, values: Floats) -> float:
        """Root mean square of what values [rows, width] are off by on the wrong rows, over the rounding bound."""
        rows = self.wrong if self.wrong.any() else slice(None)
        squares = np.square(self.recorded[rows] - values[rows]) / self.right.variance[rows]
        return float(np.sqrt(np.mean(np.minimum(np.nan_to_num(squares, nan=math.inf), LARGEST))))

    def _mostly(self, values: Floats) -> tuple[bool, float]:
        """Whether nearly all blocks of columns hold (a head each, in the attention core), and their median residual:
        a value next to a tie is rounded the other way now and then, and moves its whole row of that head. Only rows
        that were wrong count: the others hold without any mistake."""
        blocks = self._blocks(self.recorded - values)
        median = float(np.median(blocks))
        most = max(BLOCK_LIMIT, FLIPPED * float(self._blocks(values - self.right.values).max()))
        nearly = float(np.mean(blocks <= BLOCK_LIMIT)) >= MOSTLY and bool(np.all(blocks <= most))
        return median <= 2.0 and nearly, median

    def _blocks(self, apart: Floats) -> Floats:
        """Root mean square of each block of columns of the wrong rows, over the rounding bound, [rows, blocks]."""
        squares = (np.square(apart) / self.right.variance)[self.wrong]
        return np.asarray(np.sqrt(squares.reshape(len(squares), -1, self.recipe.operation.block).mean(axis=2)))

    def _rounded(self, name: str | None, hypothesis: Hypothesis, fit: Fit) -> Fit:
        """The same with the number rounded, if that holds as well: of 16-bit values a number is fitted to some three
        digits, and the one that was meant may be the only one that holds."""
        number = fit.values[name or ""]
        assert hypothesis.at is not None and isinstance(number, float)
        for digits in NICE_DIGITS:
            nice = float(f"{number:.{digits}g}")
            if abs(nice / number - 1.0) > 0.02 if number else True:
                continue
            core = hypothesis.core_with(nice)
            other = self._fit(hypothesis, hypothesis.at(nice), {**fit.values, name or "": nice}, core)
            if other.holds and (not fit.holds or other.residual <= max(1.0, 1.5 * fit.residual)):
                return other
        return fit

    def _refuted(self, values: InOrders, more: Floats | None) -> bool:
        """Whether a few rows alone are off by more than all may be, in every arithmetic: then `judge` finds so too."""
        plain, shape = values.exact.values, self.recorded.shape
        variance = self._variance(values.exact, more)
        stored = operations.in_16_bits(self.dtype, lambda: [operations.as_stored(plain, self.dtype)])
        made: list[Callable[[Rows], Floats]] = [each.__getitem__ for each in (plain, *stored)]
        level, width = self.level, self._width
        independent = self.right.errors_in_rows
        row = root_mean_square(float(independent.min()), level) * max(1.0, width.get(Statistic.ROW, 1.0))
        size = root_mean_square(float(independent.sum()), level) * max(1.0, width.get(Statistic.SIZE, 1.0))

        def beyond(order: Callable[[Rows], Floats], rows: NDArray[np.int64]) -> bool:
            error = np.nan_to_num(np.square(self.recorded[rows] - order(rows)) / variance[rows], nan=math.inf)
            squares = np.minimum(error.mean(axis=1), float(LARGEST))
            least = math.sqrt(float(squares.sum()) / shape[0])
            largest = math.sqrt(float(squares.max()))
            return least > CERTAINLY * min(size, self.needed) or largest > CERTAINLY * row

        def by_a_few(order: Callable[[Rows], Floats]) -> bool:
            return any(beyond(order, rows) for rows in self._samples)

        return all(map(by_a_few, [*made, *values.orders]))

    @cached_property
    def _samples(self) -> list[NDArray[np.int64]]:
        """Few rows and more of them, spread over those that are wrong, where more than that are at hand."""
        wrong = np.flatnonzero(self.wrong)
        wrong = wrong if wrong.size else np.arange(len(self.recorded))
        counts = [count for count in SAMPLES if 2 * count <= len(self.recorded)]
        spread = [np.linspace(0, len(wrong) - 1, min(count, len(wrong))) for count in counts]
        return [np.unique(wrong[at.astype(np.int64)]) for at in spread]

    def _variance(self, made: Result, more: Floats | None) -> Floats:
        """Of what may be left: of the right values, of those that were made, and of two roundings of these."""
        variance = np.maximum(
            np.maximum(self.right.variance, made.variance), operations.rounding(made.values, self.dtype, 2.0)
        )
        return variance if more is None else variance + more

    def judge(self, values: Floats | Result, more: Floats | None = None) -> tuple[Statistics, float]:
        """Statistics of what is left, and the largest over its limit."""
        made = values.closest(self.recorded) if isinstance(values, Result) else replace(self.right, values=values)
        plain = made.values
        variance = self._variance(made, more)
        orders = operations.in_16_bits(self.dtype, lambda: [operations.as_stored(plain, self.dtype)])
        orders = (*orders, *(made.rounded if isinstance(values, Result) else ()))
        tally = Tally()
        right = Result(plain, variance, made.shared, orders, independent=self.right.independent, bias=made.bias)
        tally.add(self.recorded, right)
        statistics = tally.statistics()
        width = {kind: max(factor, made.excess) for kind, factor in self._width.items()}
        limits = statistics.limits(self.level, width)
        return statistics, max(peak / limits[kind] for kind, peak in statistics.peaks().items())

    @cached_property
    def _width(self) -> dict[Statistic, float]:
        return spread_width(self.right)

    def distance(self, values: Floats, rows: NDArray[np.int64] | slice = slice(None)) -> float:
        """Squared error that is left, over the bound: what fits minimise."""
        gap = (self.recorded[rows] - values) ** 2 / self.right.variance[rows]
        total = float(np.mean(gap))
        return total if math.isfinite(total) else math.inf


def _chosen(windows: list[Window], first: int) -> Window:
    """The rows to look at: the run of rows without a gap that holds the first wrong one, around it where it is long."""
    run = joined(windows, first)
    if run.stop - run.first <= ROWS:
        return run
    begin = max(run.first, min(first - ROWS // 4, run.stop - ROWS))
    return Window(begin, begin + ROWS)
