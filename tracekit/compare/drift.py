"""Does the error of the logits change over the steps? A fault of the cache starts late, or grows with what is in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_STEPS = 8
LEAST_BEFORE = 3
"""Steps that it takes to speak of a change, and before one."""
FACTOR = 4.0
"""How much larger the error is late than early. That of harmless rewrites, followed over 100 steps of SmolLM2, stays
within a factor of 2 of its geometric mean over any ten."""
CERTAIN = 6.0
"""Standard errors that the change is beyond: steps scatter by half of their own size."""
NOTHING = 1e-3
"""Ratio to the yardstick that stands for all smaller ones: where nothing differs there is no logarithm."""


class Trend(StrEnum):
    """How an error changes over the steps."""

    JUMP = "jump"
    GROWTH = "growth"


@dataclass(frozen=True)
class Drift:
    """A change of the logits' error over the steps, in units of the tolerance."""

    kind: Trend
    step: int  # of the jump; 0 of a growth
    before: float  # level before the jump, or at the first step
    after: float
    steps: int  # looked at

    @property
    def from_nothing(self) -> bool:
        """Whether the error before the jump is too small to state."""
        return self.before <= 2.0 * NOTHING


def drift(ratios: Floats) -> Drift | None:
    """What becomes of the error over the steps; None where it stays as it is.

    `ratios` [steps] are the errors of the logits over their yardstick. A jump is the split into two levels that leaves
    the least scatter of the logarithms, growth their straight line.
    """
    if len(ratios) < LEAST_STEPS or not np.isfinite(ratios).any():
        return None
    values = np.log(np.clip(np.where(np.isfinite(ratios), ratios, 1e9), NOTHING, 1e9))
    jump, growth = _jump(values), _growth(values)
    found = [one for one in (jump, growth) if one is not None]
    return min(found, key=lambda one: one[0])[1] if found else None


def _jump(values: Floats) -> tuple[float, Drift] | None:
    """Scatter left, and the finding."""
    steps = len(values)
    splits = range(LEAST_BEFORE, steps)
    left = [
        float(np.square(values[:at] - values[:at].mean()).sum() + np.square(values[at:] - values[at:].mean()).sum())
        for at in splits
    ]
    at = LEAST_BEFORE + int(np.argmin(left))
    before, after = float(values[:at].mean()), float(values[at:].mean())
    error = math.sqrt(left[at - LEAST_BEFORE] / max(steps - 2, 1) * (1.0 / at + 1.0 / (steps - at)))
    if after - before < math.log(FACTOR) or after - before < CERTAIN * error:
        return None
    levels = math.exp(before), math.exp(after)
    return left[at - LEAST_BEFORE], Drift(Trend.JUMP, at, *levels, steps)


def _growth(values: Floats) -> tuple[float, Drift] | None:
    steps = np.arange(len(values), dtype=np.float64)
    slope, base = np.polyfit(steps, values, 1)
    rest = float(np.square(values - base - slope * steps).sum())
    error = math.sqrt(rest / max(len(values) - 2, 1) / float(np.square(steps - steps.mean()).sum()))
    if slope * (len(values) - 1) < math.log(FACTOR) or slope < CERTAIN * error:
        return None
    ends = math.exp(base), math.exp(base + slope * (len(values) - 1))
    return rest, Drift(Trend.GROWTH, 0, *ends, len(values))
