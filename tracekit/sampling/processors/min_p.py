"""Min-p: tokens of less than this share of the largest probability are removed. Transformers' `MinPLogitsWarper`."""

from __future__ import annotations

import numpy as np

from tracekit.formats.file_values import is_number
from tracekit.sampling.other_numbers import Interval, last_in_and_first_out, within
from tracekit.sampling.processor import (
    Apply,
    Processor,
    Stated,
    Steps,
    Unit,
    by_number,
    instead,
    removed_nothing,
    run,
)
from tracekit.sampling.scores import GONE, Floats, Rounded, softmax
from tracekit.trace import Json

NAME, SETTING, PLACE = "MinPLogitsWarper", "min_p", 250


def _keep_min_p(values: Floats, share: float) -> Floats:
    probs = softmax(values)
    return np.where(probs < share * probs.max(), GONE, values)


def _cut(numbers: Json, values: Floats) -> tuple[Floats, Unit]:
    probs = softmax(values)
    return probs - float(numbers["min_p"]) * probs.max(), Unit.MASS


def _rounds(numbers: Json, values: Floats, rounded: Rounded) -> Floats:
    """The sum that both probabilities are divided by cancels."""
    probs, logs = softmax(values), rounded.logs(values)
    return np.asarray(probs * (logs + float(logs[np.argmax(values)]) + 4.0 * rounded.unit))


def _on_logits(share: float) -> Apply:
    return lambda values, context: np.where(values < min(share * values.max(), values.max()), GONE, values)


def _interval(stated: Stated, steps: Steps) -> Interval | None:
    before = stated.before(PLACE)
    low, high = 0.0, 1.0
    for seen in steps.all:
        if seen.logits is None:
            continue
        values = run(before, seen.logits, seen.context)
        share = np.exp(values.astype(np.float64) - float(values.max()))
        last, following = last_in_and_first_out(values, seen)
        high = min(high, float(share[last]))
        low = max(low, float(share[following]) if following is not None else 0.0)
    return (low, high) if 0.0 < low < high else None


PROCESSOR = Processor(
    name=NAME,
    setting=SETTING,
    words="min-p",
    place=PLACE,
    arguments=("min_p",),
    make=by_number(lambda share: lambda values, context: _keep_min_p(values, share)),
    accepts=is_number,
    neutral=(0.0,),
    sampled=True,
    common=True,
    cut=_cut,
    rounds=_rounds,
    unexercised=removed_nothing,
    mistakes=(
        instead(
            "min_p_on_logits",
            "min-p {min_p:g} is taken as a share of the largest logit, not of the largest probability",
            (NAME, SETTING, "min_p"),
            _on_logits,
        ),
        within(SETTING, _interval),
    ),
)
