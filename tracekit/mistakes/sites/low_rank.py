"""A linear layer whose weight differs by an update of low rank: an adapter that is merged, or not, or with another
scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.auditing.operations import Floats, unit
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, Made

LOW = 4
"""Times its rank that the error must have of rows and of columns: any matrix has a rank."""
EDGE = 1.5
"""Times the largest singular value of rounding alone, sqrt(rows) + sqrt(columns) of its spread (Marchenko and Pastur
1967), from which on one counts."""


def _hypotheses(case: Case) -> Iterator[Hypothesis]:
    """The sum of weight and update is rounded as weights are."""
    weight = case.run.parameters.matrix(case.recipe).weight
    rounded = np.square(case.inputs[0]) @ (np.square(weight) * (unit(case.dtype) ** 2 / 3.0)).T
    yield Hypothesis(lambda: _fitted(case, case.right.variance + rounded), variance=rounded)


def _fitted(case: Case, variance: Floats) -> Made | None:
    """The error as the sum of its largest singular parts: inputs times an update of that rank."""
    region = np.flatnonzero(case.region)
    error = (case.recorded - case.right.values)[region]
    scale = np.sqrt(np.maximum(variance[region].mean(axis=1, keepdims=True), 1e-290))
    if not np.isfinite(error).all():
        return None
    left, values, right = np.linalg.svd(error / scale, full_matrices=False)
    rank = int(np.sum(values > EDGE * (np.sqrt(error.shape[0]) + np.sqrt(error.shape[1]))))
    if not 0 < rank <= min(error.shape) // LOW:
        return None
    low = (left[:, :rank] * values[:rank]) @ right[:rank] * scale
    beyond = np.abs(low) > 4.0 * np.sqrt(variance[region])
    if beyond.any(axis=0).sum() < LOW * rank:
        return None  # columns of their own
    made = case.right.values.copy()
    made[region] += low
    return made, {"rank": rank}


LOW_RANK = SiteMistake(
    "weight_low_rank",
    "the weight differs by an update of rank {rank}",
    main="rank",
    at=("linear",),
    complexity=Complexity.VECTOR,
    hypotheses=_hypotheses,
)
