"""What the error function of libraries is off by, as GELU in float32 uses it: which one runs, the processor decides."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

SLOPE = 0.3275911
TERMS = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
"""Abramowitz and Stegun 1964, 7.1.26, which torch's vectorised GELU takes, and oneDNN without AVX-512."""
DEGREE, PIECES = 5, 4
"""oneDNN with AVX-512 (`gelu_erf_minimax` in jit_uni_eltwise_injector.cpp) takes polynomials of this degree in x², one
for each of so many equal parts of an octave."""
OCTAVES = range(-3, 3)
"""Powers of two where those begin. Below, their steps are smaller than one of the result; above, it is 1."""


def formula_off(value: Tensor) -> Tensor:
    """By how much GELU is off where its error function is that of Abramowitz and Stegun, computed exactly. Shape and
    dtype of `value`."""
    size = value.abs() * math.sqrt(0.5)
    inner = 1.0 / (1.0 + SLOPE * size)
    sum_ = torch.zeros_like(size)
    for term in reversed(TERMS):
        sum_ = (sum_ + term) * inner
    return 0.5 * value.abs() * (torch.erfc(size) - sum_ * torch.exp(-size.square()))


def pieces_off(value: Tensor) -> Tensor:
    """By how much the error function of value / √2 may be off in unit roundoffs, where it is value times a piecewise
    polynomial in value² in Horner's form: each coefficient and each step rounds, and they cancel. Shape of `value`."""
    edges, table = _pieces()
    size = value.abs().double().clamp_max(2.0**OCTAVES.stop)
    piece = torch.bucketize(size, edges, right=True)
    off, tail = torch.zeros_like(size), torch.zeros_like(size)
    for degree in reversed(range(DEGREE + 1)):
        term = table[degree][piece] * size.pow(2 * degree)
        tail += term
        off += term.square()
        if degree < DEGREE:
            off += tail.square()
    return size * off.sqrt()


@cache
def _pieces() -> tuple[Tensor, Tensor]:
    """Where the pieces begin and the last one ends [pieces + 1], and the coefficients of each degree [degrees,
    pieces + 2], 0 below the first piece and above the last."""
    edges = [2.0**octave * (1.0 + part / PIECES) for octave in OCTAVES for part in range(PIECES)]
    edges.append(2.0**OCTAVES.stop)

    @np.vectorize
    def wanted(square: float) -> float:
        return math.erf(math.sqrt(square / 2.0)) / math.sqrt(square)

    rows = [np.zeros(DEGREE + 1)]
    for first, last in pairwise(edges):
        fitted = Chebyshev.interpolate(wanted, DEGREE, domain=[first**2, last**2])
        coefficients = fitted.convert(kind=Polynomial).coef
        rows.append(np.pad(coefficients, (0, DEGREE + 1 - len(coefficients))))
    rows.append(np.zeros(DEGREE + 1))
    return torch.tensor(edges, dtype=torch.float64), torch.tensor(np.stack(rows, axis=1))
