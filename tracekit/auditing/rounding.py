"""Values in float64 with the rounding error that correct arithmetic makes, and what the bounds of all operations share.

Every operation gives its result and the variance of the rounding error that a correct implementation makes, by
element. Each rounding to a format with unit roundoff u is taken as a factor 1 + u * uniform(-1, 1), of variance u^2 / 3
(Monte Carlo arithmetic; Parker 1997). A sum of K products rounds each of its partial sums s, u^2 / 3 sum(s^2); over all
orders of the same products with the sum S, sum(s^2) is K (S^2 / 3 + |products|^2 / 6) on average (`sums.walked`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import SIXTEEN_BITS, SMALLEST, UNIT_ROUNDOFF, round_to, to_float

if TYPE_CHECKING:
    from tracekit.auditing.arithmetic import Emulated

Floats = NDArray[np.float64]

ACCUMULATOR = UNIT_ROUNDOFF["float32"]
"""Sums, norms and softmax of 16-bit models are taken in float32; an engine that keeps them narrower is reported."""
LIBRARY = 2.0 * ACCUMULATOR
"""Relative error of a float32 library function (exp, rsqrt, tanh, sin): good to one unit in the last place, which is
two unit roundoffs, and not unbiased."""
SCALE_ROUNDINGS = math.sqrt((0.25 + 0.25 + 1.0 + 1.0) / 3.0)
"""Standard deviation, in unit roundoffs, of a norm's scale beyond its sum of squares: mean and eps, halved by the root,
the root and its reciprocal, a roundoff each, of variance u^2 / 3."""
FITS = 2.0
"""Standard deviations of a norm's scale within which a row was summed in an order."""
MOST_ROWS = 0.75
"""Share of the rows that two orders of summing, of one row and of many, account for where an engine is known to use
them; with a mistake in the norm, fewer rows fall within `FITS` of any two."""


BLOCK_VALUES = 1 << 20
"""Drawn errors that are multiplied with each other at a time."""
PRIOR = 4.0
"""Samples that an estimate of a variance from many elements weighs as much as."""


def shrunk(estimate: Floats, squares: Floats, samples: int) -> Floats:
    """The variance of single elements: a few samples of each, whose mean square is `squares`, drawn towards an estimate
    from all of them. Where a function cancels, single values are off by more than their row and column say."""
    return np.asarray((PRIOR * estimate + samples * squares) / (PRIOR + samples))


def independent_errors(draws: Sequence[Floats], variance: Floats | float = 1.0) -> Floats:
    """How many independent errors each row's mean square is of, [rows]: the square of the sum of the eigenvalues of the
    errors' covariance over the sum of their squares (Satterthwaite 1946). One score of a softmax that is off moves all
    of its head. Both are taken from pairs of different `draws`, [rows, width] each, over their `variance`, and a row's
    are drawn towards all rows', which have more pairs."""
    count, width = draws[0].shape
    if len(draws) < 2:
        return np.full(count, float(width))
    over = np.broadcast_to(np.asarray(variance, dtype=np.float64), (count, width))
    together, apart = np.empty(count), np.empty(count)
    few = max(1, BLOCK_VALUES // (len(draws) * width))
    for first in range(0, count, few):
        rows = slice(first, first + few)
        inverse = 1.0 / np.sqrt(np.maximum(over[rows], 1e-300))
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.stack([draw[rows] * inverse for draw in draws], axis=1)  # [rows, draws, width]
        # Only directions count: of each row as large as they are, their fourth powers would overflow or vanish.
        scaled = np.where(np.isfinite(scaled), scaled, 0.0)
        scaled /= np.maximum(np.abs(scaled).max(axis=(1, 2), keepdims=True), 1e-300)
        products = np.square(scaled @ scaled.transpose(0, 2, 1))
        own = np.diagonal(products, axis1=1, axis2=2)
        together[rows] = products.sum(axis=(1, 2)) - own.sum(axis=1)
        apart[rows] = np.square(np.sqrt(own).sum(axis=1)) - own.sum(axis=1)
    overall = float(together.sum()) / max(float(apart.sum()), 1e-300)
    each = np.divide(together, apart, out=np.full(count, overall), where=apart > 0.0)
    return np.asarray(1.0 / np.clip(shrunk(np.asarray(overall), each, len(draws)), 1.0 / width, 1.0))


@dataclass(frozen=True)
class Result:
    """Values [rows, width], the variance of each one's rounding error, and the relative error that a row shares."""

    values: Floats
    variance: Floats
    shared: float = 0.0
    rounded: tuple[Floats, ...] = ()
    """The values as engines round them on the way, in each usual order. In 16 bits inputs lie on a coarse grid, and a
    factor near a power of two then moves every product the same way: errors that no average takes away. An engine that
    rounds in one of these orders is compared with that."""
    draws: tuple[Floats, ...] = ()
    """Errors of whole runs with drawn roundings at the rows `drawn_rows`, where no closed form gives their spread."""
    drawn_rows: NDArray[np.int64] | None = None
    independent: Floats | None = None
    """Independent errors that each row's size amounts to, [rows], where its values share some (`independent_errors`);
    None where each value is rounded by itself."""
    reordered: Callable[[], tuple[Floats, ...]] = tuple
    """Makes errors of the same products added up in float32 in other orders, all rows: how they spread over rows and
    columns together. Rows that are alike are rounded alike, and an average over them takes nothing away."""
    common: Callable[[], NDArray[np.float64]] | None = None
    """Gives the share of the variance of a column's error that any two rows have in common, [width] (`alike`); None
    where each value is rounded by itself."""
    hows: tuple[Emulated, ...] = ()
    """The arithmetics that an attention core is emulated in, where it is."""
    others: tuple[Result, ...] = ()
    """The same in other precisions that engines use, with their own bounds; the closest is what the engine did."""
    bias: float = 0.0
    """Relative error that no average takes away: of library functions, scalar constants, and sums on a coarse grid."""
    bias_in_order: float = LIBRARY
    """The same where the order of the sums is known (`scales`)."""
    excess: float = 1.0
    """How much more than `variance` says correct arithmetic may be off, measured on the site's own sums."""
    leverage: Floats | None = None
    """How much each row's gain moves with a number that the operation holds, [rows], in any unit: a norm's eps."""
    scales: tuple[Floats, ...] = ()
    """Relative errors [rows, groups] that the scale of each row, or of each of its heads, has in the orders in which
    engines sum its squares. A row that was summed in one of them is compared with that: kernels for one row, for many
    and for what is left over of a block sum differently, in one run."""

    @property
    def errors_in_rows(self) -> Floats:
        """Independent errors that each row's size amounts to, [rows]."""
        rows, width = self.values.shape
        return np.full(rows, float(width)) if self.independent is None else self.independent

    def closest(self, recorded: Floats) -> Result:
        """Itself, one of the others, or one of its own orders, whichever is nearest to what was recorded."""
        if self.scales:
            return self._in_its_order(recorded)

        def distance(option: Result) -> tuple[float, float]:
            return min(typical(recorded - values) for values in (option.values, *option.rounded))

        return min((self, *self.others), key=distance) if self.others else self

    def _in_its_order(self, recorded: Floats) -> Result:
        """The values with the scale of the order that each recorded row shows: kernels for one row, for many and for
        what is left over of a block sum differently, in one run."""
        grouped = (len(self.values), self.scales[0].shape[1], -1)
        values, gap = self.values.reshape(grouped), (recorded - self.values).reshape(grouped)
        with np.errstate(invalid="ignore", over="ignore"):
            gains = (gap * values).sum(axis=2) / np.maximum(np.square(values).sum(axis=2), 1e-290)
        scales = np.stack([np.zeros_like(gains), *self.scales])
        left = np.nan_to_num(np.abs(gains - scales), nan=np.inf)
        fits = (left <= FITS * SCALE_ROUNDINGS * ACCUMULATOR).reshape(len(left), -1)

        def suits(pair: list[int]) -> tuple[float, float]:
            """The share of rows that two orders account for, and how closely."""
            return float(np.mean(fits[pair].any(axis=0))), -float(np.median(left[pair].min(axis=0)))

        pair = max(map(list, combinations(range(len(left)), 2)), key=suits)
        share, _ = suits(pair)
        if share >= MOST_ROWS:
            # Where two orders account for most rows, each of the others may have one of its own.
            allowed = (fits[pair].any(axis=0)[None] & ~np.isin(np.arange(len(left)), pair)[:, None]).reshape(left.shape)
            best = np.where(allowed, np.inf, left).argmin(axis=0)
        else:
            medians = np.median(np.square(left).reshape(len(left), -1), axis=1)
            if not medians.argmin():
                return self
            best = np.full(gains.shape, medians.argmin())
        scale = np.take_along_axis(scales, best[None], axis=0)[0]
        made = (values * (1.0 + scale)[..., None]).reshape(self.values.shape)
        return replace(self, values=made, shared=SCALE_ROUNDINGS * ACCUMULATOR, bias=self.bias_in_order, scales=())


def typical(gap: Floats) -> tuple[float, float]:
    """Median and sum of the rows' squared lengths: a few rows that are wrong do not decide what the others are near."""
    squares = np.einsum("pc,pc->p", gap, gap)
    return float(np.median(squares)), float(squares.sum())


def unit(dtype: str) -> float:
    """Unit roundoff of a float format; float32's for anything else."""
    return UNIT_ROUNDOFF.get(dtype, ACCUMULATOR)


def accumulator(dtype: str) -> float:
    """Unit roundoff of the sums of a model in `dtype`."""
    return min(unit(dtype), ACCUMULATOR)


def rounding(values: Floats, dtype: str, times: float = 1.0) -> Floats:
    """Variance of `times` roundings of `values` to `dtype`."""
    smallest = SMALLEST.get(dtype, 0.0)
    variance = np.square(np.asarray(values, dtype=np.float64))
    variance *= times * (unit(dtype) ** 2 / 3.0)
    variance += smallest * smallest + 1e-290
    return variance


def as_stored(values: Floats, dtype: str) -> Floats:
    """`values` rounded to a float format, as float64."""
    return to_float(round_to(values, dtype), dtype).astype(np.float64)


def in_16_bits(dtype: str, orders: Callable[[], list[Floats]]) -> tuple[Floats, ...]:
    """`orders()` of a 16-bit format, nothing of a wider one."""
    return tuple(orders()) if dtype in SIXTEEN_BITS else ()


def constants(dtype: str, *numbers: float) -> float:
    """Largest relative error of a product with these scalar constants because an engine rounds each of them, or divides
    by its rounded reciprocal: the same for every element, so that no average takes it away."""
    total = 0.0
    for number in numbers:
        if number and math.isfinite(number):
            options = np.array([number, 1.0 / number])
            total += float(np.max(np.abs(as_stored(options, dtype) / options - 1.0)))
    return total


def times(x: Floats, factor: float, dtype: str) -> Result:
    """x times a number, which engines round to the dtype first or do not."""

    def with_factor(number: float) -> Result:
        values = x * number
        orders = in_16_bits(dtype, lambda: [as_stored(values, dtype)])
        variance = rounding(values, dtype) + rounding(values, "float32")
        return Result(values, variance, rounded=orders, bias=constants("float32", number))

    narrow = float(as_stored(np.array([factor]), dtype)[0])
    return replace(with_factor(factor), others=() if narrow == factor else (with_factor(narrow),))
