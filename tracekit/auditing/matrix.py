"""A product with a matrix in float64, and how far correct arithmetic may be off."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing import sums
from tracekit.auditing.alike import Shares, common_of_product, common_of_values
from tracekit.auditing.rounding import (
    ACCUMULATOR,
    Floats,
    Result,
    accumulator,
    as_stored,
    in_16_bits,
    rounding,
    unit,
)


@dataclass(frozen=True)
class Matrix:
    """A linear layer's weight in float64, [outputs, inputs], and the sums that its bound needs."""

    weight: Floats
    bias: Floats | None
    squares: NDArray[np.float32] = field(init=False)  # [outputs, inputs]; a bound needs no more digits
    by_input: NDArray[np.float32] = field(init=False)  # [inputs], squares summed over the outputs

    def __post_init__(self) -> None:
        squares = self.weight.astype(np.float32)
        np.square(squares, out=squares)
        object.__setattr__(self, "squares", squares)
        object.__setattr__(self, "by_input", np.ones(len(squares), np.float32) @ squares)


def linear(matrix: Matrix, x: Floats, dtype: str, closely: bool = False) -> Result:
    """x W' + b. Unless `closely`, the products' squares are summed over rows and over columns only, and their outer
    product stands for each element's sum, which would cost a second multiplication."""
    product = x @ matrix.weight.T
    values = product if matrix.bias is None else product + matrix.bias
    squares = np.square(x)
    if closely:
        walked = squares @ np.square(matrix.weight).T
    else:
        by_row = squares @ matrix.by_input.astype(np.float64)
        # In float32 the sums over all rows would overflow where one value is huge; their sizes alone matter.
        power = squares.sum(axis=0)
        largest = float(power.max(initial=0.0)) or 1.0
        by_column = (matrix.squares @ (power / largest).astype(np.float32)) * largest
        walked = by_row[:, None] * (by_column / max(by_row.sum(), 1e-290))
    variance = rounding(values, dtype)
    variance += walked * _stored_between(x.shape[1], dtype)
    variance += sums.walked(product, walked, x.shape[1], accumulator(dtype), matrix.bias)
    # What a site that looks sound by the smaller bound need not be measured for.
    excess = sums.excess(x, matrix.weight) if closely and dtype == "float32" else 1.0

    def reordered() -> tuple[Floats, ...]:
        return _reordered(matrix, x, values, dtype)

    def common() -> Shares:
        summed = common_of_product(x, matrix.weight, variance, accumulator(dtype))
        return summed + common_of_values(values, unit(dtype)) if unit(dtype) > ACCUMULATOR else summed

    orders, shares = (reordered, common) if closely else (tuple, None)
    bias = matrix.bias
    rounded = in_16_bits(dtype, lambda: [as_stored(values, dtype)])
    if bias is not None:
        variance = variance + rounding(product, dtype)
        rounded += in_16_bits(dtype, lambda: [as_stored(as_stored(product, dtype) + bias, dtype)])
    return Result(values, variance, rounded=rounded, excess=excess, reordered=orders, common=shares)


def in_two_sums(matrix: Matrix, x: Floats, width: int, dtype: str, closely: bool = False) -> Result:
    """The same where an engine adds up the first `width` products and the others apart: each sum is rounded as it goes,
    and they may be larger than what is left of them."""
    parts = slice(width), slice(width, None)
    one, other = (linear(Matrix(matrix.weight[:, part], None), x[:, part], dtype, closely) for part in parts)
    values = one.values + other.values
    variance = one.variance + other.variance + rounding(values, dtype)
    if matrix.bias is not None:
        values = values + matrix.bias
        variance += rounding(values, dtype)

    def reordered() -> tuple[Floats, ...]:
        return tuple(first + second for first, second in zip(one.reordered(), other.reordered(), strict=True))

    return Result(values, variance, excess=max(one.excess, other.excess), reordered=reordered if closely else tuple)


ORDERS = 8
"""Orders in which a product is added up again: with a site's columns, some hundred errors to take a variance of."""


def _reordered(matrix: Matrix, x: Floats, values: Floats, dtype: str) -> tuple[Floats, ...]:
    """Errors of x W' + b whose products are added up in float32, of float64 in that, in `ORDERS` drawn orders, and one
    after the other with each product rounded first, [rows, width] each. A multiplication that is fused into the sum
    rounds no product; one that is not rounds those of the largest input all to one side, where weights have few
    digits."""
    generator, errors = np.random.default_rng(0), []
    kind: type[np.floating[Any]] = np.float64 if dtype == "float64" else np.float32
    narrow, weight = x.astype(kind), matrix.weight.astype(kind)
    with np.errstate(over="ignore", invalid="ignore"):
        for drawn in range(ORDERS + 1):
            order = generator.permutation(x.shape[1])
            total = narrow[:, order] @ weight[:, order].T if drawn else sums.in_turn(narrow, weight.T)
            if matrix.bias is not None:
                total += matrix.bias.astype(kind)
            errors.append(as_stored(total.astype(np.float64), dtype) - values)
    return tuple(np.where(np.isfinite(error), error, 0.0) for error in errors)


SPLIT = 256
"""Products that a matrix multiplication sums before it adds them to what is stored: 16-bit kernels (candle's float16,
split-K ones on GPUs) keep the sum of these blocks in the stored format. 256 is the smallest usual block: what 32 KB of
first-level cache hold of a panel (Goto and van de Geijn 2008)."""


def _stored_between(terms: int, dtype: str) -> float:
    """Variance of what is lost where blocks of a sum are stored in 16 bits, over the sum of the products' squares."""
    blocks = math.ceil(terms / SPLIT) - 1 if unit(dtype) > ACCUMULATOR else 0
    return unit(dtype) ** 2 / 3.0 * blocks
