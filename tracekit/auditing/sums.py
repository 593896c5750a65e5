"""Sums in float32, in the orders in which engines add up, on the numbers that a site really summed.

How far a sum is off depends on its order and its data: one term after the other, a norm's squares of 576 columns are
off by eight roundoff units a row, and by six on average where the terms lie on a coarse grid; in eight lanes by less
than two. Both are worked out here instead of being assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import UNIT_ROUNDOFF

Floats = NDArray[np.float64]
F32 = NDArray[np.float32]
UNIT = UNIT_ROUNDOFF["float32"]

LANES = (4, 8, 16, 32)
"""Partial sums that vector units keep side by side: NEON, AVX2, AVX-512 and unrolled loops or a warp."""
SAMPLED_ROWS, SAMPLED_COLUMNS = 4, 48
"""Dot products of a site that are added up in float32 to see how far its sums are off."""
MOST_TERMS = 1 << 20
"""Products that are added up at a time."""


@dataclass(frozen=True)
class Orders:
    """Relative errors of one sum a row, [rows] each, in each order."""

    errors: tuple[Floats, ...]

    @property
    def spread(self) -> float:
        """Root mean square over the rows, of the order that is off the most."""
        return max(float(np.sqrt(np.mean(np.square(error)))) for error in self.errors)

    @property
    def drift(self) -> float:
        """Average over the rows, of the order that is off the most to one side."""
        return max(abs(float(np.mean(error))) for error in self.errors)


def walked(total: Floats, squares: Floats, terms: int, unit: float, bias: Floats | None = None) -> Floats:
    """Variance of a sum of `terms` products, by what it comes to and the sum of its products' squares, averaged over
    all orders: each partial sum s is rounded, with variance (unit s)^2 / 3. A bias that is added last is in no partial
    sum; one that the sum begins with (`beta C` of a BLAS) is in each of them: the larger of the two."""
    partial = np.square(total) / 3.0
    if bias is not None:
        partial = np.maximum(partial, np.square(bias) + bias * total + partial)
    return np.asarray((partial + squares / 6.0) * (unit**2 * terms / 3.0))


def product(x: Floats, y: Floats, order: NDArray[np.int64] | slice) -> Floats:
    """x [rows, terms] times y [terms, columns], added up in float32 with the terms in this order, one after the other:
    terms that are alike are rounded alike, and their errors add up further than those of partial sums side by side. The
    same on every processor, whose own kernels may even sum equal rows of one product in different orders."""
    with np.errstate(over="ignore", invalid="ignore"):
        return in_turn(x[:, order].astype(np.float32), y[order].astype(np.float32)).astype(np.float64)


def in_turn(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.floating]:
    """x [rows, terms] times y [terms, columns]: products rounded to their own format, then added up one after the
    other in it."""
    out = np.zeros((len(x), y.shape[1]), x.dtype)
    for column, row in zip(np.ascontiguousarray(x.T), np.ascontiguousarray(y), strict=True):
        out += column[:, None] * row
    return out


def total(x: Floats, order: NDArray[np.int64] | slice) -> Floats:
    """The sum of each row of x, [rows, 1], added up in float32 one after the other in this order."""
    return _in_turn(x[:, order].astype(np.float32))[:, None]


def squares(x: Floats) -> Orders:
    """Relative errors of the sum of the squares of each row of x [rows, width], whose values are float32's."""
    exact = np.einsum("ij,ij->i", x, x)
    usable = np.where((exact > 0.0) & np.isfinite(exact), exact, np.inf)
    terms = np.square(x.astype(np.float32))
    made = [_in_turn(terms), _fused_in_turn(x), _pairwise(terms), *(_in_lanes(terms, lanes) for lanes in LANES)]
    errors = [np.where(np.isfinite(usable), (total - exact) / usable, 0.0) for total in made]
    return Orders(tuple(np.where(np.isfinite(error), error, 0.0) for error in errors))


def _in_turn(terms: F32) -> Floats:
    """One after the other; numpy's running sum cannot be taken in any other order."""
    return np.asarray(np.add.accumulate(terms, axis=1, dtype=np.float32)[:, -1], dtype=np.float64)


def _fused_in_turn(x: Floats) -> Floats:
    """The same by fused multiply-adds, whose products are not rounded: exact in float64, then rounded once."""
    total = np.zeros(len(x))
    for column in np.square(x).T:
        total = (total + column).astype(np.float32).astype(np.float64)
    return total


def _pairwise(terms: F32) -> Floats:
    return np.asarray(np.ascontiguousarray(terms).sum(axis=1, dtype=np.float32), dtype=np.float64)


def _in_lanes(terms: F32, lanes: int) -> Floats:
    """`lanes` partial sums, folded in halves at the end; what is left over comes after them."""
    whole = terms.shape[1] // lanes * lanes
    if not whole:
        return _in_turn(terms)
    parts = terms[:, :whole].reshape(len(terms), -1, lanes)
    folded = np.add.accumulate(parts, axis=1, dtype=np.float32)[:, -1]
    while folded.shape[1] > 1:
        half = folded.shape[1] // 2
        folded = folded[:, :half] + folded[:, half:]
    return _in_turn(np.concatenate([folded, terms[:, whole:]], axis=1))


def excess(x: Floats, weight: Floats) -> float:
    """How much more than `walked` says a product x W' is off that is added up in float32, one term after the other:
    1 or more, the root of the mean square of the row that is off the most.

    x [rows, inputs], weight [outputs, inputs]; some rows and columns stand for all. Partial sums that one huge
    term dominates are off by more in the order in which they come than in most others.
    """
    rows, columns = _picked_rows(x), _spaced(weight.shape[0], SAMPLED_COLUMNS)
    fewer = max(1, MOST_TERMS // max(1, len(columns) * x.shape[1]))
    worst = 1.0
    for first in range(0, len(rows), fewer):
        at = rows[first : first + fewer]
        products = x[at].astype(np.float32)[:, None, :] * weight[columns].astype(np.float32)[None]
        exact = x[at] @ weight[columns].T
        powers = np.square(x[at]) @ np.square(weight[columns]).T
        variance = walked(exact, powers, x.shape[1], UNIT) + np.square(UNIT * exact) / 3.0 + 1e-290
        with np.errstate(over="ignore", invalid="ignore"):
            for terms in (products, products[..., ::-1]):
                summed = np.add.accumulate(terms, axis=2, dtype=np.float32)[..., -1]
                ratios = np.square(summed - exact) / variance
                found = np.sqrt(ratios.mean(axis=1).max(initial=0.0))
                worst = max(worst, float(found)) if math.isfinite(found) else worst
    return worst


def _picked_rows(x: Floats) -> NDArray[np.int64]:
    """Rows spread over all, with the largest among them."""
    largest = int(np.abs(x).max(axis=1, initial=0.0).argmax())
    return np.unique(np.append(_spaced(len(x), SAMPLED_ROWS), largest))


def _spaced(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
