"""Columns of a linear layer's weight in another order: its inputs meet each other's weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.operations import Floats
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.sites.outputs import moved_columns
from tracekit.mistakes.sites.weights import multiplied
from tracekit.mistakes.suspect import Case, Hypothesis, Made

Order = NDArray[np.int64]
WIDEST = 4096
"""Columns that are compared with each other."""
ALONE = 0.1
"""Most that the second direction of an error may be of the first, for it to be one pair's."""


def _permuted(case: Case) -> Made | None:
    matrix = case.run.parameters.matrix(case.recipe)
    if not _comparable(case) or matrix.weight.shape[0] < matrix.weight.shape[1]:
        return None
    order = _met(case.inputs[0], matrix.weight, case.recorded - (0.0 if matrix.bias is None else matrix.bias))
    if order is None:
        return None
    return multiplied(case, matrix.weight[:, order], matrix.bias), moved_columns(order)


def _exchanged(case: Case) -> Made | None:
    matrix = case.run.parameters.matrix(case.recipe)
    found = _pair(case.inputs[0], matrix.weight, case.recorded - case.right.values) if _comparable(case) else None
    if found is None:
        return None
    one, other = found
    weight = matrix.weight.copy()
    weight[:, [one, other]] = matrix.weight[:, [other, one]]
    return multiplied(case, weight, matrix.bias), {"one": one, "other": other}


def _comparable(case: Case) -> bool:
    """Whether the columns are the inputs' own and few enough, and all values are finite."""
    wide = case.run.parameters.matrix(case.recipe).weight.shape[1]
    return case.inputs[0].shape[1] == wide and 1 < wide <= WIDEST and bool(np.isfinite(case.recorded).all())


def _met(x: Floats, weight: Floats, given: Floats) -> Order | None:
    """Which column of the weight each input met, from what the outputs say of the inputs; only where that is one to
    one."""
    seen = np.linalg.lstsq(weight, given.T, rcond=None)[0]  # [inputs, rows], in the order of the weight's columns
    distances = np.square(seen).sum(axis=1)[:, None] + np.square(x).sum(axis=0)[None, :] - 2.0 * seen @ x
    inputs: Order = distances.argmin(axis=1)
    return np.argsort(inputs) if len(np.unique(inputs)) == len(inputs) else None


def _pair(x: Floats, weight: Floats, error: Floats) -> tuple[int, int] | None:
    """The two columns that were exchanged: the error is the difference of their inputs times that of the columns."""
    left, sizes, right = np.linalg.svd(error, full_matrices=False)
    if not sizes[0] or (len(sizes) > 1 and sizes[1] > ALONE * sizes[0]):
        return None
    alike = np.abs(_differences(x, left[:, 0]) * _differences(weight, right[0]))
    one, other = sorted(int(at) for at in np.unravel_index(int(alike.argmax()), alike.shape))
    return one, other


def _differences(values: Floats, direction: Floats) -> Floats:
    """The cosine between a direction and the difference of each two columns, [columns, columns]."""
    along, squares = direction @ values, np.square(values).sum(axis=0)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2.0 * values.T @ values, 0.0)
    return np.asarray((along[:, None] - along[None, :]) / np.sqrt(np.maximum(apart, 1e-12 * squares.max())))


WEIGHT_COLUMNS = SiteMistake(
    "weight_columns_permuted",
    "columns of the weight in another order: {moved} of {columns}",
    main="moved",
    at=("linear",),
    complexity=Complexity.VECTOR,
    hypotheses=lambda case: [Hypothesis(lambda: _permuted(case))],
)
EXCHANGED = SiteMistake(
    "weight_columns_exchanged",
    "columns {one} and {other} of the weight exchanged",
    at=("linear",),
    complexity=Complexity.ENTRY,
    hypotheses=lambda case: [Hypothesis(lambda: _exchanged(case))],
)
