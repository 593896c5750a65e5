"""Hypotheses on the attention core: the core with one thing changed, or with one number fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing import operations
from tracekit.auditing.arithmetic import Exact
from tracekit.auditing.operations import Attention, Core, Floats, Result
from tracekit.auditing.operations.attention_core import variance_of_other
from tracekit.dtypes import SIXTEEN_BITS
from tracekit.mistakes.engine_steps import attended_as, core_steps
from tracekit.mistakes.explanation import Value
from tracekit.mistakes.fitting import best_on_grid
from tracekit.mistakes.suspect import Case, Hypothesis, InOrders, Made, Rows, Values, plainly

ATTENTION = (Attention.kind,)
FITTED_ROWS = 12
"""Query positions that a fitted number is searched on."""


def core_of(case: Case) -> Core:
    """The core that the checkpoint declares."""
    assert isinstance(case.recipe.operation, Attention)
    return case.recipe.operation.core


def changed(case: Case, values: Mapping[str, Value] | None = None, **changes: Any) -> Hypothesis:
    """The core with other fields; `values`: what the mistake's words name."""
    core = replace(core_of(case), **changes)
    return replace(plainly(attended, case, core, **(values or {})), flips=rounds(core), core=core)


def rounds(core: Core) -> bool:
    """Whether something on the way is rounded to a narrower format: what lies next to a tie may fall to either side."""
    parts = (core.scores, core.weights, core.softmax, core.table, core.angles, core.frequencies, core.places)
    return any(part is not None for part in parts)


def fitted(case: Case, change: Callable[[float], Core], grid: list[float], name: str, **values: Value) -> Hypothesis:
    """A number, called `name`, fitted on the last rows, where most keys are seen."""

    def make() -> Made:
        wrong = np.flatnonzero(case.wrong & case.region)
        rows = np.unique(np.concatenate([wrong[:3], wrong[-FITTED_ROWS:]])).astype(np.int64)
        number = best_on_grid(lambda at: case.distance(exactly(case, change(at), rows), rows), grid)
        return attended(case, change(number)), {name: number}

    flips = rounds(core_of(case))
    return Hypothesis(make, values, at=lambda number: attended(case, change(number)), flips=flips, core_at=change)


def exactly(case: Case, core: Core, rows: NDArray[np.int64]) -> Floats:
    """The core in float64 at some rows (indexes into the case's): what numbers are fitted on."""
    q, k, v = case.inputs
    return operations.attend(core, q[rows], k, v, case.window.rows[rows], _exact(case))


def _exact(case: Case) -> Exact:
    """Without rounding but that of the cache that the engine states: a mistake is made in its arithmetic."""
    assert isinstance(case.recipe.operation, Attention)
    return Exact(case.recipe.operation.cache)


def attended(case: Case, core: Core) -> Values:
    """The core at all rows, also as the engines that are emulated round it."""
    return attended_from(case, core, *case.inputs)


def attended_from(case: Case, core: Core, q: Floats, k: Floats, v: Floats) -> Values:
    """The same from other inputs, [positions, heads * head_dim] each."""
    values = operations.attend(core, q, k, v, case.window.rows, _exact(case))
    exact = Result(values, variance_of_other(core, case.right, values))
    if case.dtype not in SIXTEEN_BITS:
        return exact
    orders: list[Callable[[Rows], Floats]] = [
        partial(attended_as, case, core, [q, k, v], how) for how in case.right.hows
    ]
    orders += [steps.at for steps in core_steps(case, core, [q, k, v]) if steps.at is not None]
    return InOrders(exact, tuple(orders))
