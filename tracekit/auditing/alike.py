"""Rows that are rounded alike: an average over them takes nothing off their error.

Adding a term t to a partial sum that lies on the grid of its format is off by what t is off that grid: the rounding
error depends on the term alone, not on the sum. So rows need not be alike for their errors to be. It is enough that
they have terms in common: a head that attends to nothing but the first token gives the same inputs in every row, and a
column whose sum is large where those terms are added is off to one side in all rows, on one processor to this side, on
another to that. How much of a column's error any two rows have in common is worked out here, from the numbers alone.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Shares = NDArray[np.float64]
"""[width]: the share of the variance of a column's rounding error that any two rows have in common."""

ALIKE = 2.0**-12
"""Relative distance below which two rows have half of float32's bits in common: then they are rounded alike."""
TIED = 2.0**-16
"""Relative distance within which two sums in float32 lie next to the same tie of a 16-bit format, and more."""
PROJECTED = 64
"""Dimensions that rows are projected to before their distances are taken (Johnson and Lindenstrauss 1984)."""
BLOCK_ROWS = 1024
SAMPLED_ROWS = 256
"""Rows whose pairs stand for all pairs."""
SUMMED_ROWS = 8
"""Rows whose partial sums stand for those of all rows."""
BLOCK_TERMS = 1 << 20
"""Partial sums that are worked out at a time."""
CELL = 0.5
"""Part of a grid's spacing within which two terms are rounded alike: errors of terms that are d spacings apart
correlate as 1 - 6 d + 6 d^2, which averages to nothing beyond."""
LEVELS = 48
"""Powers of two, from a column's largest distance down, at which the pairs that are no further apart are counted."""


def sketch(values: Floats) -> Floats:
    """Directions of the rows of `values` [rows, width] in `PROJECTED` random dimensions: [rows, PROJECTED]."""
    drawn = _projection(values.shape[1])
    lengths = np.sqrt(np.einsum("ij,ij->i", values, values))
    directions = values / np.maximum(lengths, 1e-290)[:, None]
    return np.asarray(np.nan_to_num(directions) @ drawn)


@lru_cache(maxsize=8)
def _projection(width: int) -> Floats:
    """Random directions, [width, PROJECTED]."""
    return np.random.default_rng(0).standard_normal((width, PROJECTED)) / math.sqrt(PROJECTED)


def rows_alike(sketches: Floats) -> float:
    """How many rows, itself included, a row is alike to on average."""
    return float(alike_to(sketches).mean())


def alike_to(sketches: Floats) -> Floats:
    """How many rows, itself included, each row is alike to, [rows]."""
    powers = np.einsum("ij,ij->i", sketches, sketches)
    alike = np.ones(len(sketches))
    for first in range(0, len(sketches), BLOCK_ROWS):
        part = slice(first, first + BLOCK_ROWS)
        apart = powers[part, None] + powers[None] - 2.0 * sketches[part] @ sketches.T
        alike[part] = np.maximum(np.count_nonzero(apart <= ALIKE**2, axis=1), 1)
    return alike


def copies(values: Floats) -> Floats:
    """How many values of its column, itself included, each of `values` [rows, width] is alike to, to `TIED` of the
    column's largest."""
    cells = np.floor(values / np.maximum(TIED * np.abs(values).max(axis=0), 1e-290))
    made = np.empty(values.shape)
    for column, cell in enumerate(cells.T):
        _, which, count = np.unique(cell, return_inverse=True, return_counts=True)
        made[:, column] = count[which]
    return made


def common_of_values(values: Floats, unit: float) -> Shares:
    """What rows have in common where each value is rounded by itself: the share of the pairs of rows whose values in a
    column, of `values` [rows, width], are one value to half the spacing of a format of this unit roundoff."""
    rows = np.sort(values[_spaced(len(values), SAMPLED_ROWS)], axis=0)
    largest = np.maximum(np.abs(rows[0]), np.abs(rows[-1]))
    return _pairs(rows, CELL * _spacing(largest, unit))


def common_of_product(x: Floats, weight: Floats, variance: Floats, unit: float) -> Shares:
    """What rows have in common of a product x W' whose sums are kept in a format of this unit roundoff.

    Args:
        x: [rows, inputs].
        weight: [outputs, inputs].
        variance: of each value's rounding error, [rows, outputs].

    Returns:
        [outputs]. May exceed 1 where the terms that are alike come last and find the largest partial sums.
    """
    counted = _Counted(x[_spaced(len(x), SAMPLED_ROWS)])
    some = x[_spaced(len(x), SUMMED_ROWS)]
    usual = np.mean(1.0 / variance, axis=0)
    block = max(1, BLOCK_TERMS // max(1, some.size))
    parts = [weight[first : first + block] for first in range(0, len(weight), block)]
    return np.asarray(np.concatenate([_common_variance(counted, some, part, unit) for part in parts]) * usual)


def _common_variance(counted: _Counted, x: Floats, weight: Floats, unit: float) -> Floats:
    """The variance that any two rows' errors have in common, [outputs], of sums in the order of the inputs or in a
    drawn one, whichever is larger; and of products that are rounded before they are added."""
    size = np.maximum(np.abs(weight), 1e-290)
    terms = x[:, None, :] * weight
    partial = np.add.accumulate(terms, axis=2)
    in_turn = np.sqrt(np.mean(np.square(_spacing(partial, unit)), axis=0))
    # Averaged over all orders, each of K partial sums has this mean square (`sums.walked`).
    drawn = np.mean(np.square(partial[..., -1]) / 3.0 + np.square(terms).sum(axis=2) / 6.0, axis=0)
    drawn = np.broadcast_to(2.0 * unit * np.sqrt(drawn)[:, None], size.shape)
    summed = [np.square(each) / 12.0 * counted.within(CELL * each / size) for each in (in_turn, drawn)]
    grid = np.sqrt(np.mean(np.square(_spacing(terms, unit)), axis=0))
    multiplied = np.square(grid) / 12.0 * counted.within(CELL * grid / size)
    return np.asarray(np.maximum(*(each.sum(axis=1) for each in summed)) + multiplied.sum(axis=1))


class _Counted:
    """Shares of the pairs of rows whose inputs are no further apart than so much, by input."""

    def __init__(self, x: Floats) -> None:
        rows = np.sort(x, axis=0)
        _, most = np.frexp(np.maximum(rows[-1] - rows[0], 1e-290))
        self._lowest = most - LEVELS
        self._shares = np.stack([_pairs(rows, np.ldexp(1.0, self._lowest + level)) for level in range(LEVELS + 2)])

    def within(self, distance: Floats) -> Shares:
        """The share of each input at each distance, [outputs, inputs]."""
        _, power = np.frexp(distance)
        level = np.clip(power - self._lowest, 0, LEVELS + 1)
        return np.asarray(np.take_along_axis(self._shares, level, axis=0))


def _pairs(rows: Floats, cell: Floats) -> Shares:
    """The share of the pairs of different rows that lie in one cell, by column of `rows` [rows, width], sorted; cells
    begin at zero or half a cell off it, whichever holds more pairs together."""
    count = len(rows)
    if count < 2:
        return np.zeros(rows.shape[1])
    scaled, found = rows / np.maximum(cell, 1e-300), []
    for shift in (0.0, 0.5):
        at = np.floor(scaled + shift)
        begins = np.ones(at.shape, bool)
        begins[1:] = at[1:] != at[:-1]
        place = np.arange(count)[:, None]
        since = place - np.maximum.accumulate(np.where(begins, place, 0), axis=0)
        found.append(since.sum(axis=0))
    return np.asarray(np.maximum(*found) / (count * (count - 1) / 2.0))


def _spacing(values: Floats, unit: float) -> Floats:
    """Distance to the next number of a format of this unit roundoff."""
    _, power = np.frexp(values)
    return np.asarray(np.ldexp(unit, power))


def _spaced(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
