"""The weight of a linear layer: another parameter's, transposed, rounded, scaled, or off in one entry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.auditing import operations
from tracekit.auditing.operations import Floats, Result, as_stored, unit
from tracekit.dtypes import SIXTEEN_BITS
from tracekit.mistakes.quantised import BLOCK, ROUNDINGS, Rounding
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, Made, narrower, plainly, product

LINEAR = ("linear",)


def multiplied(case: Case, weight: Floats, bias: Floats | None) -> Result:
    """The product with another matrix, with what its own sums may be off."""
    return operations.linear(operations.Matrix(weight, bias), case.inputs[0], case.dtype, closely=True)


def columns(case: Case) -> int:
    """Columns of the weight. What is multiplied has more of them where the sums of blocks of the inputs are multiplied
    with the blocks' smallest values, apart from the rest."""
    wide: int = case.inputs[0].shape[1]
    return wide * BLOCK // (BLOCK + 1) if case.recipe.operation.reads_minima else wide


def _transposed(case: Case) -> Iterator[Hypothesis]:
    matrix = case.run.parameters.matrix(case.recipe)
    if matrix.weight.shape[0] == matrix.weight.shape[1]:
        yield plainly(multiplied, case, matrix.weight.T, matrix.bias)


def _other_head(case: Case) -> Iterator[Hypothesis]:
    """The head with the embeddings' table where it has one of its own, and the reverse."""
    checkpoint, asked = case.run.parameters.checkpoint, case.recipe.parameters["weight"]
    used, other = checkpoint.find(asked), checkpoint.other_head(asked)
    if used is None or other is None or checkpoint.shape(used) != checkpoint.shape(other):
        return
    tied = str(bool(checkpoint.config.get("tie_word_embeddings"))).lower()
    bias = case.run.parameters.matrix(case.recipe).bias
    values = checkpoint.values(other).astype(np.float64)
    values = np.pad(values, ((0, 0), (0, case.inputs[0].shape[1] - values.shape[1])))
    yield plainly(multiplied, case, values, bias, found=other, stated=used, tied=tied)


def _rounded(case: Case) -> Iterator[Hypothesis]:
    matrix = case.run.parameters.matrix(case.recipe)
    for dtype in narrower(case):
        yield plainly(product, case.inputs[0], as_stored(matrix.weight, dtype), matrix.bias, dtype=dtype)


def _quantised(case: Case) -> Iterator[Hypothesis]:
    for rounding in ROUNDINGS:
        yield plainly(_with_rounding, case, rounding, format=rounding.words)


def _with_rounding(case: Case, rounding: Rounding) -> Floats | None:
    matrix = case.run.parameters.matrix(case.recipe)
    if rounding.blocks and matrix.weight.shape[1] % BLOCK:
        return None
    return product(case.inputs[0], rounding.rounded(matrix.weight), matrix.bias)


def _gain(case: Case) -> Iterator[Hypothesis]:
    if case.dtype in SIXTEEN_BITS:
        yield Hypothesis(lambda: _fitted_gain(case))


def _fitted_gain(case: Case) -> Made:
    """The weight multiplied, and rounded again, before it is used."""
    matrix, dtype = case.run.parameters.matrix(case.recipe), case.dtype
    power = max(float(np.sum(np.square(case.right.values) / case.right.variance)), 1e-290)
    fitted = float(np.sum(case.right.values * case.recorded / case.right.variance)) / power
    steps: Floats = fitted * (1.0 + 2.0 * unit(dtype) * np.arange(-3.0, 4.0))
    gains = [float(gain) for gain in np.unique(as_stored(steps, dtype)) if gain != 1.0]

    def changed(gain: float) -> Result:
        return multiplied(case, as_stored(matrix.weight * gain, dtype), matrix.bias)

    best = min(gains, key=lambda gain: case.distance(changed(gain).values))
    return changed(best), {"gain": best}


def _one_entry(case: Case) -> Made:
    """One column's error is one input column times a number."""
    x, error = case.inputs[0][:, : columns(case)], case.recorded - case.right.values
    column = int(np.sum(np.square(error) / case.right.variance, axis=0).argmax())
    powers = np.maximum(np.square(x).sum(axis=0), 1e-290)
    gains = x.T @ error[:, column] / powers
    row = int((np.square(gains) * powers).argmax())
    values = case.right.values.copy()
    values[:, column] += gains[row] * x[:, row]
    return values, {"row": column, "column": row, "off": float(gains[row])}


TRANSPOSED = SiteMistake("weight_transposed", "weight transposed", at=LINEAR, hypotheses=_transposed)
ANOTHER_HEAD = SiteMistake(
    "another_head",
    "the head's table is {found} instead of {stated} (tie_word_embeddings {tied})",
    main="found",
    at=LINEAR,
    hypotheses=_other_head,
)
ROUNDED = SiteMistake("weight_rounded", "weight rounded to {dtype}", main="dtype", at=LINEAR, hypotheses=_rounded)
QUANTISED = SiteMistake(
    "weight_quantised", "weight rounded to {format}", main="format", at=LINEAR, hypotheses=_quantised
)
GAIN = SiteMistake(
    "weight_gain",
    "weight times {gain:.6g}",
    main="gain",
    at=LINEAR,
    complexity=Complexity.NUMBER,
    hypotheses=_gain,
)
ONE_ENTRY = SiteMistake(
    "one_weight",
    "weight[{row}, {column}] off by {off:.4g}",
    main="off",
    at=LINEAR,
    complexity=Complexity.ENTRY,
    hypotheses=lambda case: [Hypothesis(lambda: _one_entry(case))],
)
