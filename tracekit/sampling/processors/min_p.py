"""Min-p: tokens of less than this share of the largest probability are removed. Transformers' `MinPLogitsWarper`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.formats.file_values import is_number
from tracekit.sampling.observed import Context
from tracekit.sampling.other_numbers import Interval, last_in_and_first_out, within
from tracekit.sampling.processor import (
    Apply,
    FilterMistake,
    Processor,
    Stated,
    Steps,
    Unit,
    Variant,
    removed_nothing,
    run,
)
from tracekit.sampling.scores import GONE, Floats, Rounded, softmax
from tracekit.trace import Json

NAME, SETTING, PLACE = "MinPLogitsWarper", "min_p", 250


def _make(numbers: Json, settings: Json) -> Apply:
    share = float(numbers["min_p"])

    def apply(values: Floats, context: Context) -> Floats:
        probs = softmax(values)
        return np.where(probs < share * probs.max(), GONE, values)

    return apply


def _cut(numbers: Json, values: Floats) -> tuple[Floats, Unit]:
    probs = softmax(values)
    return probs - float(numbers["min_p"]) * probs.max(), Unit.MASS


def _rounds(numbers: Json, values: Floats, rounded: Rounded) -> Floats:
    """The sum that both probabilities are divided by cancels."""
    probs, logs = softmax(values), rounded.logs(values)
    return np.asarray(probs * (logs + float(logs[np.argmax(values)]) + 4.0 * rounded.unit))


def _on_logits(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    share = float(stated.settings[SETTING])

    def apply(values: Floats, context: Context) -> Floats:
        return np.where((values < share * values.max()) & (values < values.max()), GONE, values)

    yield Variant(stated.replaced(NAME, apply), {"min_p": share})


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
    make=_make,
    accepts=is_number,
    neutral=(0.0,),
    sampled=True,
    common=True,
    cut=_cut,
    rounds=_rounds,
    unexercised=removed_nothing,
    mistakes=(
        FilterMistake(
            "min_p_on_logits",
            "min-p {min_p:g} is taken as a share of the largest logit, not of the largest probability",
            _on_logits,
            "min_p",
            (SETTING,),
        ),
        within(SETTING, _interval),
    ),
)
