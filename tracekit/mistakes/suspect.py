"""A culprit under examination: what it was given, what it gave, and whether a hypothesis accounts for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing import operations
from tracekit.auditing.audit import Culprit
from tracekit.auditing.operations import Floats, Result
from tracekit.auditing.own_error import Statistics, Tally, spread_width
from tracekit.auditing.recipe import Recipe, Recipes
from tracekit.auditing.recompute import Recomputation, Window, joined
from tracekit.inspection.positions import prompt_length
from tracekit.trace import Json

ROWS = 256
"""Rows that a hypothesis is tried on; of longer recordings, those around the first wrong one and the last."""
SHARE_LEFT = 0.1
MOSTLY = 0.85
"""Share of heads and positions that a mistake of rounding must account for. One score in 500 lies so near a tie of
float16 that float32's error decides it; a head at 20 positions has 20 of them."""
BLOCK_LIMIT = 8.0
"""Error over its bound up to which a head at one position counts as accounted for by a mistake of rounding: one value
that fell to the other side of a tie moves it by some units, one that was not rounded at all by thousands."""
NICE_DIGITS = (1, 2, 3, 4)
"""A fitted number is rounded to the fewest digits with which it still holds."""

Value = float | str | None
Values = Floats | Result
"""What a site would hold; a Result where the orders of rounding are known."""


@dataclass(frozen=True)
class Hypothesis:
    """One thing changed. `make` gives the values that the site would then hold, and the fitted number if there is one;
    None where the change cannot be made here."""

    kind: str
    complexity: int
    make: Callable[[], tuple[Values, Value] | None]
    said: Callable[[Value], str] | None = None
    at: Callable[[float], Values] | None = None  # values at another number, to round the fitted one
    variance: Floats | None = None  # of rounding errors that come with the change
    flips: bool = False  # it rounds on the way: what lies next to a tie may fall to the other side


def narrowed(case: Case, values: Floats, dtype: str) -> Floats:
    """`values` rounded to a narrower format; where rounding errors decide which way, the way that was recorded."""
    reach = 4.0 * np.sqrt(case.right.variance)
    low, high = operations.as_stored(values - reach, dtype), operations.as_stored(values + reach, dtype)
    return np.clip(case.recorded, low, high)


def plainly(kind: str, text: str, make: Callable[..., Values | None], *arguments: object) -> Hypothesis:
    """A hypothesis without a number: the site would hold `make(*arguments)`."""

    def made() -> tuple[Values, Value] | None:
        values = make(*arguments)
        return None if values is None else (values, None)

    return Hypothesis(kind, 1, made, lambda _: text)


@dataclass(frozen=True)
class Fit:
    """A hypothesis that was tried."""

    kind: str
    value: Value
    complexity: int
    residual: float  # root mean square of what is left, over the rounding bound
    holds: bool
    text: str
    partial: bool = False  # on some rows alone

    def to_json(self) -> Json:
        return {"kind": self.kind, "value": self.value, "residual": self.residual, "text": self.text}


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
        right = run.result(recipe, window, inputs, closely=True).closest(recorded)
        # An error within its bound was found by comparing with the site's peers: next to nothing may be left of it.
        own = culprit.own
        needed = np.inf if max(own.over.values()) > 1.0 else SHARE_LEFT * own.statistics.size
        return cls(recipe, run, recipes, window, inputs, recorded, right, wrong, needed, own.level)

    @cached_property
    def dtype(self) -> str:
        return self.run.computed_in(self.recipe)

    @cached_property
    def prompt(self) -> int:
        return prompt_length(self.run.sequence)

    def prompt_and_decoding(self) -> list[Case]:
        """The case cut in two, where rows are wrong on both sides; none where they are not."""
        rows = self.window.rows
        reading = rows < self.prompt
        if self.recipe.site == "logits" or not self.wrong[reading].any() or not self.wrong[~reading].any():
            return []
        cut = self.prompt
        windows = (Window(self.window.first, cut), Window(cut, self.window.stop))
        return [self._part(window, part) for window, part in zip(windows, (reading, ~reading), strict=True)]

    def _part(self, window: Window, rows: NDArray[np.bool_]) -> Case:
        inputs, recorded = self.run.inputs(self.recipe, window), self.run.recorded(self.recipe.stored, window)
        right = self.run.result(self.recipe, window, inputs, closely=True).closest(recorded)
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
        if self.recipe.site == "logits":
            return np.ones(len(rows), dtype=bool)
        for part in (rows < self.prompt, rows >= self.prompt, rows >= rows[int(self.wrong.argmax())]):
            if self.wrong.any() and part.any() and not self.wrong[~part].any() and self.wrong[part].mean() > 0.5:
                return np.asarray(part)
        return np.ones(len(rows), dtype=bool)

    def tried(self, hypothesis: Hypothesis) -> Iterator[Fit]:
        """The hypothesis on all rows, and where only some rows are wrong, on those alone."""
        made = hypothesis.make()
        if made is None:
            return
        values, value = made
        fit = self._fit(hypothesis, values, value)
        if isinstance(value, float) and hypothesis.at is not None and (fit.holds or len(self.right.rounded) > 0):
            fit = self._rounded(hypothesis, fit)
        yield fit
        if not fit.holds and not self.region.all():
            plain = values.values if isinstance(values, Result) else values
            part = np.where(self.region[:, None], plain, self.base)
            text = self._said(hypothesis, value) + self._where()
            yield replace(self._fit(hypothesis, part, value), text=text, partial=True)

    def _where(self) -> str:
        rows = self.window.rows
        if np.array_equal(self.region, rows < self.prompt):
            return ", in the prompt alone"
        first = int(rows[int(self.region.argmax())])
        return ", in decoding alone" if first == self.prompt else f", from position {first}"

    def _said(self, hypothesis: Hypothesis, value: Value) -> str:
        return hypothesis.said(value) if hypothesis.said else hypothesis.kind

    def _fit(self, hypothesis: Hypothesis, values: Values, value: Value) -> Fit:
        statistics, worst = self.judge(values, hypothesis.variance)
        holds, residual = worst <= 1.0 and statistics.size <= self.needed, statistics.size
        wide = operations.unit(self.dtype) <= operations.ACCUMULATOR
        if wide and not holds and hypothesis.flips:
            holds, residual = self._mostly(values.values if isinstance(values, Result) else values)
        return Fit(hypothesis.kind, value, hypothesis.complexity, residual, holds, self._said(hypothesis, value))

    def _mostly(self, values: Floats) -> tuple[bool, float]:
        """Whether nearly all blocks of columns hold (a head each, in the attention core), and their median residual:
        a value next to a tie is rounded the other way now and then, and moves its whole row of that head. Only rows
        that were wrong count: the others hold without any mistake."""
        wide = self.recipe.core.head_dim if self.recipe.core else 1
        error = (np.square(self.recorded - values) / self.right.variance)[self.wrong]
        blocks = np.sqrt(error.reshape(len(error), -1, wide).mean(axis=2))
        median = float(np.median(blocks))
        return median <= 2.0 and float(np.mean(blocks <= BLOCK_LIMIT)) >= MOSTLY, median

    def _rounded(self, hypothesis: Hypothesis, fit: Fit) -> Fit:
        """The same with the number rounded, if that holds as well: of 16-bit values a number is fitted to some three
        digits, and the one that was meant may be the only one that holds."""
        assert hypothesis.at is not None and isinstance(fit.value, float)
        for digits in NICE_DIGITS:
            nice = float(f"{fit.value:.{digits}g}")
            if abs(nice / fit.value - 1.0) > 0.02 if fit.value else True:
                continue
            other = self._fit(hypothesis, hypothesis.at(nice), nice)
            if other.holds and (not fit.holds or other.residual <= max(1.0, 1.5 * fit.residual)):
                return other
        return fit

    def judge(self, values: Values, more: Floats | None = None) -> tuple[Statistics, float]:
        """Statistics of what is left, and the largest over its limit."""
        made = values.closest(self.recorded) if isinstance(values, Result) else replace(self.right, values=values)
        plain = made.values
        variance = np.maximum(
            np.maximum(self.right.variance, made.variance), operations.rounding(plain, self.dtype, 2.0)
        )
        variance = variance if more is None else variance + more
        orders = operations.in_16_bits(self.dtype, lambda: [operations.as_stored(plain, self.dtype)])
        orders = (*orders, *(made.rounded if isinstance(values, Result) else ()))
        tally = Tally()
        tally.add(self.recorded, Result(plain, variance, made.shared, orders, bias=made.bias))
        statistics = tally.statistics()
        width = {kind: max(factor, made.excess) for kind, factor in self._width.items()}
        limits = statistics.limits(self.level, width)
        return statistics, max(peak / limits[kind] for kind, peak in statistics.peaks().items())

    @cached_property
    def _width(self) -> dict[str, float]:
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
