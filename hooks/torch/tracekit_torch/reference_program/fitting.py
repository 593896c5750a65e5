"""The number with which a changed program comes closest to what was recorded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TypeGuard

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


@dataclass(frozen=True)
class Asked:
    """Numbers of which a fit asks for what they leave, in their order, no further than to one that is enough."""

    numbers: tuple[float, ...]
    enough: Callable[[Floats | None], bool] = lambda error: False


Left = list[Floats | None]
"""What numbers leave, as far as they were asked for; None of one that does not come to values."""
Fit = Generator[list[Asked], list[Left], float | None]
"""Asks, as often as it needs to, for what several numbers leave, and returns the one that leaves the least."""


def fitted(
    left: Callable[[float], Floats | None],
    base: Floats | None,
    neutral: float | None,
    starts: Iterable[float],
    size: float,
) -> float | None:
    """`fit`, with all that it asks for computed by `left`, one after the other."""
    fitting = fit(base, neutral, starts, size)
    try:
        asked = next(fitting)
        while True:
            asked = fitting.send([_answered(each, left) for each in asked])
    except StopIteration as done:
        return None if done.value is None else float(done.value)


def _answered(asked: Asked, left: Callable[[float], Floats | None]) -> Left:
    found: Left = []
    for number in asked.numbers:
        found.append(left(number))
        if asked.enough(found[-1]):
            break
    return found


def fit(base: Floats | None, neutral: float | None, starts: Iterable[float], size: float) -> Fit:
    """The number that minimises the sum of squares of what it leaves; None where nothing comes near.

    What a number leaves is the error in standard deviations. `neutral`: the number that leaves all of it, which is
    `base`; `size`: the values' own size in standard deviations. Gauss and Newton's method from the best of a few
    numbers: a bounded search finds the wrong valley.
    """
    begins: list[tuple[float, float, Floats]] = []
    if neutral is not None and base is not None:
        ((moved,),) = yield [Asked((neutral + _step(neutral),))]
        slope = _slope(moved, base, _step(neutral))
        cosine = 0.0
        if slope is not None:
            power = float(slope @ slope) * float(base @ base)
            cosine = float(slope @ base) ** 2 / power if power else 0.0
        small = float(np.abs(base).max()) < LINEAR * size
        if small and cosine < PARALLEL:
            return None
        begins.append((_size(base), neutral, base))
        starts = () if small else starts
    starts = tuple(starts)
    (errors,) = yield [Asked(starts)]
    for number, error in zip(starts, errors, strict=True):
        if error is not None and np.isfinite(error).all():
            begins.append((_size(error), number, error))
    begins.sort(key=lambda each: each[0])
    first = begins[0][0] if base is None and begins else np.inf if base is None else _size(base)
    found = yield from _beside([_refined(number, error, first) for _, number, error in begins[:2]])
    return min(found, key=lambda each: each[0])[1] if found else None


def _beside(
    refining: list[Generator[Asked, Left, tuple[float, float]]],
) -> Generator[list[Asked], list[Left], list[tuple[float, float]]]:
    """What each returns, of which all ask at once."""
    asked = dict(enumerate(next(each) for each in refining))
    found: dict[int, tuple[float, float]] = {}
    while asked:
        answers = yield list(asked.values())
        for index, answer in zip(list(asked), answers, strict=True):
            try:
                asked[index] = refining[index].send(answer)
            except StopIteration as done:
                found[index] = done.value
                del asked[index]
    return [found[index] for index in sorted(found)]


def deviation(left: Callable[[float], Floats | None], number: float) -> float:
    """The standard deviation of a fitted number, of what `left` leaves with it; infinite where it does nothing."""
    error = left(number)
    slope = None if error is None else _slope(left(number + _step(number)), error, _step(number))
    if error is None or slope is None:
        return float("inf")
    return max(1.0, _size(error)) / float(np.linalg.norm(slope))


def _refined(number: float, error: Floats, base: float) -> Generator[Asked, Left, tuple[float, float]]:
    """The size of what is left, and the number."""
    best = _size(error)

    def better(other: Floats | None) -> TypeGuard[Floats]:
        return other is not None and bool(np.isfinite(other).all()) and _size(other) < best

    for step in range(STEPS):
        (moved,) = yield Asked((number + _step(number),))
        slope = _slope(moved, error, _step(number))
        if slope is None or (step > 2 and best > HOPELESS * base):
            break
        way = -float(slope @ error) / float(slope @ slope)
        tried = tuple(number + shorter * way for shorter in (1.0, 0.25, 0.05))
        others = yield Asked(tried, better)
        found = next(((at, other) for at, other in zip(tried, others, strict=False) if better(other)), None)
        if found is None:
            break
        gained = best / max(_size(found[1]), 1e-300)
        number, error = found
        best = _size(error)
        if gained < 1.0 + 1e-6:
            break
    return best, number


def _step(number: float) -> float:
    return STEP * (abs(number) or 1.0)


def _slope(moved: Floats | None, error: Floats, step: float) -> Floats | None:
    """What a number does, a unit of it, by what is left with it a step further; None where it does nothing."""
    if moved is None or not np.isfinite(moved).all():
        return None
    slope = (moved - error) / step
    return slope if np.any(slope) else None


def _size(error: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(error))))
