"""Does the error of the logits change over the steps? A fault of the cache starts late, or grows with what is in it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tracekit.trace import Json

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


def drift(ratios: Floats) -> Json | None:
    """What becomes of the error over the steps: `kind` (`jump` or `growth`), `step`, `before`, `after`, `text`; None
    where it stays as it is.

    `ratios` [steps] are the errors of the logits over their yardstick. A jump is the split into two levels that leaves
    the least scatter of the logarithms, growth their straight line.
    """
    if len(ratios) < LEAST_STEPS or not np.isfinite(ratios).any():
        return None
    values = np.log(np.clip(np.where(np.isfinite(ratios), ratios, 1e9), NOTHING, 1e9))
    jump, growth = _jump(values), _growth(values)
    found = [one for one in (jump, growth) if one is not None]
    return min(found, key=lambda one: one[0])[1] if found else None


def _jump(values: Floats) -> tuple[float, Json] | None:
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
    early = f"{levels[0]:.2g}x its yardstick" if levels[0] > 2.0 * NOTHING else "next to nothing"
    text = f"the logits' error is {early} before step {at}, {levels[1]:.2g}x its yardstick from there"
    return left[at - LEAST_BEFORE], {"kind": "jump", "step": at, "before": levels[0], "after": levels[1], "text": text}


def _growth(values: Floats) -> tuple[float, Json] | None:
    steps = np.arange(len(values), dtype=np.float64)
    slope, base = np.polyfit(steps, values, 1)
    rest = float(np.square(values - base - slope * steps).sum())
    error = math.sqrt(rest / max(len(values) - 2, 1) / float(np.square(steps - steps.mean()).sum()))
    if slope * (len(values) - 1) < math.log(FACTOR) or slope < CERTAIN * error:
        return None
    ends = math.exp(base), math.exp(base + slope * (len(values) - 1))
    text = f"the logits' error grows from {ends[0]:.2g}x to {ends[1]:.2g}x its yardstick over {len(values)} steps"
    return rest, {"kind": "growth", "step": 0, "before": ends[0], "after": ends[1], "text": text}
