"""Temperature: scores are divided by it. Transformers' `TemperatureLogitsWarper`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.formats.file_values import is_number
from tracekit.sampling.other_numbers import another, simplest
from tracekit.sampling.processor import Apply, Processor, Stated, Steps, run
from tracekit.sampling.scores import SMALLEST, rounding
from tracekit.trace import Json

PLACE = 210


def _make(numbers: Json, settings: Json) -> Apply:
    temperature = numbers["temperature"]
    return lambda values, context: values / values.dtype.type(temperature)


def _numbers(stated: Stated, steps: Steps) -> Iterator[float]:
    """From the ratios of survivors' probabilities: the spread of their scores over the spread of their logarithms."""
    before = stated.before(PLACE)
    over, under, least = 0.0, 0.0, np.inf
    for seen in [steps.first, *steps.all]:
        if seen.logits is None or seen.ids is None or seen.probs is None or seen.ids.size < 2:
            continue
        values = run(before, seen.logits, seen.context)[seen.ids].astype(np.float64)
        logs = np.log(np.maximum(seen.probs.astype(np.float64), SMALLEST))
        sound = np.isfinite(values) & (seen.probs > SMALLEST)
        if sound.sum() < 2:
            continue
        values, logs = values[sound], logs[sound]
        least = min(least, rounding(len(stated.chain), values) / max(float(np.ptp(logs)), SMALLEST))
        values, logs = values - values.mean(), logs - logs.mean()
        over, under = over + float(values @ values), under + float(values @ logs)
    if under <= 0.0 or over <= 0.0:
        return
    temperature = over / under
    # A number that is farther off than this changes a probability by more than rounding does.
    rounded = simplest(temperature * (1 - least / 2), temperature * (1 + least / 2))
    if rounded != float(stated.settings.get("temperature") or 1.0):
        yield rounded


PROCESSOR = Processor(
    name="TemperatureLogitsWarper",
    setting="temperature",
    words="temperature",
    place=PLACE,
    arguments=("temperature",),
    make=_make,
    accepts=is_number,
    neutral=(1.0,),
    sampled=True,
    common=True,
    stretch=lambda numbers: 1.0 / float(numbers["temperature"]),
    mistakes=(another("temperature", _numbers),),
)
