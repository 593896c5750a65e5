"""The number with which a changed program comes closest to what was recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
STEP = 1e-5
"""Relative step of the derivative."""
STEPS = 12
LINEAR = 0.02
"""Relative error up to which what a number does is taken as proportional to it."""
PARALLEL = 0.9
"""Square of the cosine between a small error and what a number does that a fit needs to be tried."""
HOPELESS = 0.9
"""What may be left of the error after the first steps for a fit to go on."""


def fitted(
    left: Callable[[float], Floats | None], neutral: float | None, starts: Iterable[float], size: float
) -> float | None:
    """The number that minimises the sum of squares of `left(number)`; None where nothing comes near.

    `left`: the error, in standard deviations, that a number leaves; `neutral`: the number that leaves all of it;
    `size`: the values' own size in standard deviations. Gauss and Newton's method from the best of a few numbers: a
    bounded search finds the wrong valley.
    """
    begins: list[tuple[float, float, Floats]] = []
    base = None if neutral is None else left(neutral)
    if neutral is not None and base is not None:
        slope = _slope(left, neutral, base)
        cosine = 0.0
        if slope is not None:
            power = float(slope @ slope) * float(base @ base)
            cosine = float(slope @ base) ** 2 / power if power else 0.0
        small = float(np.abs(base).max()) < LINEAR * size
        if small and cosine < PARALLEL:
            return None
        begins.append((_size(base), neutral, base))
        starts = () if small else starts
    for number in starts:
        error = left(number)
        if error is not None and np.isfinite(error).all():
            begins.append((_size(error), number, error))
    begins.sort(key=lambda each: each[0])
    first = begins[0][0] if base is None and begins else np.inf if base is None else _size(base)
    found = [_refined(left, number, error, first) for _, number, error in begins[:2]]
    return min(found, key=lambda each: each[0])[1] if found else None


def deviation(left: Callable[[float], Floats | None], number: float) -> float:
    """The standard deviation of a fitted number, of what `left` leaves with it; infinite where it does nothing."""
    error = left(number)
    slope = None if error is None else _slope(left, number, error)
    if error is None or slope is None:
        return float("inf")
    return max(1.0, _size(error)) / float(np.linalg.norm(slope))


def _refined(left: Callable[[float], Floats | None], number: float, error: Floats, base: float) -> tuple[float, float]:
    """The size of what is left, and the number."""
    best = _size(error)
    for step in range(STEPS):
        slope = _slope(left, number, error)
        if slope is None or (step > 2 and best > HOPELESS * base):
            break
        way, moved = -float(slope @ error) / float(slope @ slope), False
        for shorter in (1.0, 0.25, 0.05):
            other = left(number + shorter * way)
            if other is not None and np.isfinite(other).all() and _size(other) < best:
                moved, gained = True, best / max(_size(other), 1e-300)
                number, error, best = number + shorter * way, other, _size(other)
                break
        if not moved or gained < 1.0 + 1e-6:
            break
    return best, number


def _slope(left: Callable[[float], Floats | None], number: float, error: Floats) -> Floats | None:
    """What a number does, a unit of it; None where it does nothing."""
    step = STEP * (abs(number) or 1.0)
    moved = left(number + step)
    if moved is None or not np.isfinite(moved).all():
        return None
    slope = (moved - error) / step
    return slope if np.any(slope) else None


def _size(error: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(error))))
