"""Mistakes in what a site gives, whatever it computes: narrower rounding, rows or columns out of place, a gain, a
constant, a soft cap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.operations import Floats
from tracekit.mistakes.engine_steps import steps_of
from tracekit.mistakes.explanation import Value
from tracekit.mistakes.fitting import best_on_grid, logarithmic
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, Made, moves_nothing, narrowed, narrower, plainly
from tracekit.trace import LOGITS

CONSTANT_ROWS = 4
"""Rows from which a constant that is added can be told from what varies."""
WIDEST = 4096
"""Columns up to which a permutation is looked for."""


def _rounded(case: Case) -> Iterator[Hypothesis]:
    for dtype in narrower(case):
        yield plainly(narrowed, case, case.right.values, dtype, dtype=dtype)


def _shifted(case: Case, by: int) -> Floats | None:
    if len(case.right.values) <= by + 1:
        return None
    values = np.roll(case.right.values, by, axis=0)
    values[:by] = case.recorded[:by]  # what came before is not at hand
    return values


def _gain(case: Case) -> Iterator[Hypothesis]:
    """Of the right values as the usual engines round them, or as one that rounds every step."""
    yield _times(case, lambda: case.base)
    for steps in steps_of(case):
        yield _times(case, cache(steps.made))


def _times(case: Case, base: Callable[[], Floats]) -> Hypothesis:
    return Hypothesis(lambda: _fitted_gain(case, base()), at=lambda gain: base() * gain)


def _fitted_gain(case: Case, base: Floats) -> Made | None:
    """None where the arithmetic alone accounts for it: that is no gain."""
    weights = case.region[:, None] / case.right.variance
    power = float(np.sum(weights * np.square(base)))
    gain = float(np.sum(weights * base * case.recorded)) / max(power, 1e-290)
    return None if moves_nothing(base * gain, base, case.dtype) else (base * gain, {"gain": gain})


def _soft_cap(case: Case) -> Iterator[Hypothesis]:
    if case.recipe.site == LOGITS or case.recipe.kind == "linear":
        yield Hypothesis(lambda: _fitted_cap(case))


def _fitted_cap(case: Case) -> Made:
    top = float(np.abs(case.right.values).max(initial=1e-9))

    def capped(cap: float) -> Floats:
        return np.asarray(cap * np.tanh(case.right.values / cap))

    cap = best_on_grid(lambda cap: case.distance(capped(cap)), logarithmic(top / 10.0, top * 100.0, 40))
    return capped(cap), {"cap": cap}


def _uniform(case: Case) -> Made:
    constant = float(np.mean((case.recorded - case.right.values)[case.region]))
    return case.right.values + constant, {"constant": constant}


def _offset(case: Case) -> Made | None:
    if int(case.region.sum()) < CONSTANT_ROWS:
        return None
    constant = (case.recorded - case.right.values)[case.region].mean(axis=0)
    return case.right.values + constant, {"norm": float(np.linalg.norm(constant))}


def _permuted(case: Case) -> Made | None:
    order = column_order(case)
    return None if order is None else (case.right.values[:, order], moved_columns(order))


def moved_columns(order: NDArray[np.int64]) -> dict[str, Value]:
    """How many of how many are not in their place."""
    return {"moved": int(np.sum(order != np.arange(len(order)))), "columns": len(order)}


def column_order(case: Case, offset: Floats | float = 0.0) -> NDArray[np.int64] | None:
    """Each recorded column next to the right one that it is most like, without an offset; only where that is one to
    one."""
    rows, width = int(case.region.sum()), case.right.values.shape[1]
    if rows < CONSTANT_ROWS or width > WIDEST:
        return None
    one, other = case.recorded[case.region] - offset, case.right.values[case.region] - offset
    distances = np.square(one).sum(axis=0)[:, None] + np.square(other).sum(axis=0)[None, :] - 2.0 * one.T @ other
    order: NDArray[np.int64] = distances.argmin(axis=1)
    if len(np.unique(order)) < len(order):
        return None
    return order


ROUNDED = SiteMistake("output_rounded", "output rounded to {dtype}", main="dtype", hypotheses=_rounded)
ROWS_SHIFTED = SiteMistake(
    "rows_shifted",
    "every position holds the row of the position before",
    hypotheses=lambda case: [plainly(_shifted, case, 1)],
)
ALL_ZERO = SiteMistake("all_zero", "all zero", hypotheses=lambda case: [plainly(np.zeros_like, case.right.values)])
GAIN = SiteMistake(
    "gain",
    "gain {gain:.6g}",
    main="gain",
    complexity=Complexity.NUMBER,
    hypotheses=_gain,
)
SOFT_CAP = SiteMistake(
    "soft_cap", "soft cap {cap:.6g} applied", main="cap", complexity=Complexity.NUMBER, hypotheses=_soft_cap
)
CONSTANT = SiteMistake(
    "constant_added",
    "{constant:.6g} added to every column",
    main="constant",
    complexity=Complexity.NUMBER,
    hypotheses=lambda case: [Hypothesis(lambda: _uniform(case))],
)
OFFSET = SiteMistake(
    "offset_added",
    "an offset of norm {norm:.4g} added",
    main="norm",
    complexity=Complexity.VECTOR,
    hypotheses=lambda case: [Hypothesis(lambda: _offset(case))],
)
PERMUTED = SiteMistake(
    "columns_permuted",
    "columns permuted: {moved} of {columns}",
    main="moved",
    complexity=Complexity.VECTOR,
    hypotheses=lambda case: [Hypothesis(lambda: _permuted(case))],
)
