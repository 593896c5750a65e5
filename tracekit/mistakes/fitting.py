"""Fitting one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tracekit.auditing.operations import Floats

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def best_on_grid(loss: Callable[[float], float], grid: Sequence[float], rounds: int = 40) -> float:
    """The number of least loss: the best of an ascending positive grid, then golden-section search on a logarithmic
    scale between its neighbours (Kiefer 1953)."""
    losses = [loss(number) for number in grid]
    at = min(range(len(grid)), key=losses.__getitem__)
    low, high = math.log(grid[max(at - 1, 0)]), math.log(grid[min(at + 1, len(grid) - 1)])
    inner, outer = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    left, right = loss(math.exp(inner)), loss(math.exp(outer))
    for _ in range(rounds):
        if left <= right:
            high, outer, right = outer, inner, left
            inner = high - GOLDEN * (high - low)
            left = loss(math.exp(inner))
        else:
            low, inner, left = inner, outer, right
            outer = low + GOLDEN * (high - low)
            right = loss(math.exp(outer))
    found = math.exp((low + high) / 2.0)
    return found if loss(found) <= losses[at] else grid[at]


def logarithmic(low: float, high: float, count: int) -> list[float]:
    """`count` numbers from low to high, evenly spaced on a logarithmic scale."""
    step = (math.log(high) - math.log(low)) / (count - 1)
    return [math.exp(math.log(low) + step * index) for index in range(count)]


def best_factor(part: Floats, values: Floats, variance: Floats) -> float:
    """The number that brings `part` nearest to `values`, in units of their rounding bound: weighted least squares."""
    weights = 1.0 / variance
    power = max(float(np.sum(weights * np.square(part))), 1e-290)
    return float(np.sum(weights * part * values)) / power
