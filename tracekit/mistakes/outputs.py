"""Mistakes that any module can make: in what it gives, whatever it computes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.auditing.operations import Floats, unit
from tracekit.mistakes.fitting import best_on_grid, logarithmic
from tracekit.mistakes.suspect import Case, Hypothesis, Value, narrowed, plainly

CONSTANT_ROWS = 4
"""Rows from which a constant that is added can be told from what varies."""


def output_mistakes(case: Case) -> Iterator[Hypothesis]:
    """Narrower rounding, rows or columns out of place, a gain, a constant, a soft cap."""
    for dtype in ("float16", "bfloat16"):
        if unit(dtype) > unit(case.dtype) * 1.5:
            text = f"output rounded to {dtype}"
            yield plainly(text, text, narrowed, case, case.right.values, dtype)
    yield plainly("rows shifted", "every position holds the row of the position before", _shifted, case, 1)
    yield plainly("all zero", "all zero", np.zeros_like, case.right.values)
    yield Hypothesis("gain", 2, lambda: _gain(case), _gain_text, lambda gain: case.base * gain)
    if case.recipe.site == "logits" or case.recipe.kind == "linear":
        yield Hypothesis("soft cap", 2, lambda: _softcap(case), lambda value: f"soft cap {_number(value)} applied")
    yield Hypothesis("constant added", 2, lambda: _uniform(case), lambda value: f"{value:.6g} added to every column")
    yield Hypothesis("offset added", 4, lambda: _constant(case), lambda norm: f"an offset of norm {norm:.4g} added")
    yield Hypothesis("columns permuted", 4, lambda: _permuted(case), lambda moved: f"columns permuted: {moved}")


def _number(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _gain_text(value: Value) -> str:
    return f"gain {value:.6g}" if isinstance(value, float) else "gain"


def _shifted(case: Case, by: int) -> Floats | None:
    if len(case.right.values) <= by + 1:
        return None
    values = np.roll(case.right.values, by, axis=0)
    values[:by] = case.recorded[:by]  # what came before is not at hand
    return values


def _gain(case: Case) -> tuple[Floats, Value]:
    weights = case.region[:, None] / case.right.variance
    power = float(np.sum(weights * np.square(case.base)))
    gain = float(np.sum(weights * case.base * case.recorded)) / max(power, 1e-290)
    return case.base * gain, gain


def _softcap(case: Case) -> tuple[Floats, Value]:
    top = float(np.abs(case.right.values).max(initial=1e-9))

    def capped(cap: float) -> Floats:
        return np.asarray(cap * np.tanh(case.right.values / cap))

    cap = best_on_grid(lambda cap: case.distance(capped(cap)), logarithmic(top / 10.0, top * 100.0, 40))
    return capped(cap), cap


def _uniform(case: Case) -> tuple[Floats, Value]:
    constant = float(np.mean((case.recorded - case.right.values)[case.region]))
    return case.right.values + constant, constant


def _constant(case: Case) -> tuple[Floats, Value] | None:
    if int(case.region.sum()) < CONSTANT_ROWS:
        return None
    constant = (case.recorded - case.right.values)[case.region].mean(axis=0)
    return case.right.values + constant, float(np.linalg.norm(constant))


def _permuted(case: Case) -> tuple[Floats, Value] | None:
    """Each recorded column next to the right one that it is most like; only where that is one to one."""
    rows = int(case.region.sum())
    if rows < CONSTANT_ROWS or case.right.values.shape[1] > 4096:
        return None
    one, other = case.recorded[case.region], case.right.values[case.region]
    distances = np.square(one).sum(axis=0)[:, None] + np.square(other).sum(axis=0)[None, :] - 2.0 * one.T @ other
    order = distances.argmin(axis=1)
    if len(np.unique(order)) < len(order):
        return None
    moved = int(np.sum(order != np.arange(len(order))))
    return case.right.values[:, order], f"{moved} of {len(order)}"
