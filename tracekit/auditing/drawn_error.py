"""A site's own error judged by runs with drawn roundings: for whatever a program computes, no closed form is needed.

Each run's error is one sample of what rounding does to every value. A few runs say little of a single value, but much
of a row and of a column: the variance of a value is shrunk towards the product of its row's and its column's, and how
much wider than independent errors the statistics spread is measured on the runs themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.alike import Shares, common_of_values, rows_alike, sketch
from tracekit.auditing.operations import Floats, Operation, Result
from tracekit.auditing.operations.operation import Given, Shape
from tracekit.auditing.own_error import Own, Tally, shared_by, spread_width
from tracekit.auditing.recipe import Recipe
from tracekit.auditing.recompute import Window
from tracekit.auditing.rounding import PRIOR, independent_errors, shrunk
from tracekit.dtypes import SMALLEST_BY_UNIT

SMALLEST = 1e-300


@dataclass(frozen=True)
class Segment(Operation):
    """All that a reference program computes between the recorded sites before a site and that site."""

    kind: ClassVar[str] = "segment"

    def result(self, given: Given) -> Result:
        raise NotImplementedError("a segment is computed by its program")

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        return True


def drawn_result(values: Floats, draws: NDArray[np.float32], unit: float) -> Result:
    """What a site should hold, [rows, width], with the variance of its rounding errors.

    Args:
        values: what exact arithmetic gives, [rows, width].
        draws: errors of runs with drawn roundings, [runs, rows, width].
        unit: unit roundoff of the format that the site is stored in.
    """
    squares = np.zeros(values.shape)
    for draw in draws:
        squares += np.square(draw, dtype=np.float64)
    squares /= max(len(draws), 1)
    by_row, by_column = squares.mean(axis=1), squares.mean(axis=0)
    shape = by_row[:, None] * (by_column / max(float(by_row.mean()), SMALLEST))[None, :]
    variance = shrunk(shape, squares, len(draws))
    size = np.abs(values)
    # Steps between the smallest numbers of a format are all as large.
    least = SMALLEST_BY_UNIT.get(unit, 0.0) / 2.0
    stored = np.square(np.maximum(size * unit, np.minimum(size, least))) / 3.0
    variance = np.maximum(variance, stored) + SMALLEST
    rows, made = np.arange(len(values)), tuple(draws)
    return Result(values, variance, draws=made, drawn_rows=rows, independent=independent_errors(made, variance))


def _common_of_draws(result: Result) -> Shares:
    """What any two rows' errors have in common, [width], by how far the columns of drawn errors are off to one side."""
    # A value that is exact has no error to divide by; the squares of what stands for it fit float32.
    inverse = np.minimum(1.0 / np.sqrt(result.variance), 1e18).astype(np.float32)
    offsets = [np.einsum("rc,rc->c", error, inverse) for error in result.draws]
    squares = np.mean(np.square(offsets), axis=0) / len(inverse)
    # Of a few samples a single column's is not known well.
    moments = (PRIOR * squares.mean() + len(offsets) * squares) / (PRIOR + len(offsets))
    return np.asarray(np.maximum(moments - 1.0, 0.0) / max(len(result.values) - 1.0, 1.0))


def judged(site: str, rows: NDArray[np.int64], recorded: Floats, result: Result, level: float, unit: float) -> Own:
    """The own error of a site. `rows`: positions, or steps of the logits; `level`: the probability of a false alarm of
    one test; `unit`: unit roundoff of the format that the site is stored in."""
    tally = Tally()
    tally.add(recorded, result)
    alike = rows_alike(sketch(result.values))
    common = np.maximum(common_of_values(result.values, unit), _common_of_draws(result))
    common = shared_by([common], [len(recorded)], alike)
    statistics = tally.statistics(common)
    width = spread_width(result, common)
    windows = tuple(_windows(rows))
    return Own(Recipe(site, site, Segment()), windows, statistics, statistics.limits(level, width), width, level)


def _windows(rows: NDArray[np.int64]) -> Iterator[Window]:
    """Runs of rows without a gap."""
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        yield Window(int(run[0]), int(run[-1]) + 1)
