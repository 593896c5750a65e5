"""Top-k: what is below the k-th largest score is removed; what ties with it stays. Transformers' `TopKLogitsWarper`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.formats.file_values import is_count
from tracekit.sampling.other_numbers import another, counts
from tracekit.sampling.processor import (
    Apply,
    Change,
    FilterMistake,
    Processor,
    Stated,
    Steps,
    Unit,
    by_number,
    instead,
    removed_nothing,
)
from tracekit.sampling.scores import GONE, Floats, Rounded, kth_largest, without
from tracekit.trace import Json

NAME, SETTING = "TopKLogitsWarper", "top_k"
USUAL = (1, 5, 10, 20, 25, 30, 40, 50, 64, 100)
"""Defaults of programs."""


def keep_top_k(values: Floats, k: int) -> Floats:
    """Scores with what is below the k-th largest removed."""
    return np.where(values < kth_largest(values, k), GONE, values)


def kth_cut(values: Floats, k: int) -> Floats:
    """Nats of score by which each token must move to cross the cut after the k-th."""
    k = min(k, values.size)
    ordered = np.partition(values, [max(values.size - k - 1, 0), values.size - k])
    kth, following = float(ordered[values.size - k]), float(ordered[max(values.size - k - 1, 0)])
    if k == values.size or following == GONE:
        return np.full(values.size, np.inf)
    # A token that stays is cut when it falls below the next one, and the other way round.
    wide = values.astype(np.float64)
    return np.where(wide >= kth, wide - following, kth - wide)


def _cut(numbers: Json, values: Floats) -> tuple[Floats, Unit]:
    return kth_cut(values, int(numbers["top_k"])), Unit.NATS


def kth_rounds(values: Floats, k: int, rounded: Rounded) -> Floats:
    """Two scores are compared, each off by its own rounding; of equal ones the rule decides, not rounding."""
    kth = values == kth_largest(values, k)
    allowed = rounded.scores + float(rounded.scores[kth].max(initial=0.0))
    return np.where(kth_cut(values, k) == 0.0, -1.0, allowed)


def _rounds(numbers: Json, values: Floats, rounded: Rounded) -> Floats:
    return kth_rounds(values, int(numbers["top_k"]), rounded)


# -------------------------------------------------------------------- mistakes


def _strict(k: int) -> Apply:
    return lambda values, context: np.where((values <= kth_largest(values, k)) & (values < values.max()), GONE, values)


def _exactly(k: int) -> Apply:
    return lambda values, context: without(values, np.argsort(-values, kind="stable")[k:].tolist())


def _mistake(identity: str, words: str, change: Change, more: int = 0) -> FilterMistake:
    return instead(identity, words, (NAME, SETTING, "k"), change, int, lambda k: k + more)


def _numbers(stated: Stated, steps: Steps) -> Iterator[float]:
    yield from (k for k in counts(steps, USUAL) if k != stated.settings.get(SETTING))


PROCESSOR = Processor(
    name=NAME,
    setting=SETTING,
    words="top-k",
    place=230,
    arguments=("top_k",),
    make=by_number(lambda k: lambda values, context: keep_top_k(values, k), int),
    accepts=is_count,
    neutral=(0,),
    sampled=True,
    common=True,
    cut=_cut,
    rounds=_rounds,
    unexercised=removed_nothing,
    mistakes=(
        _mistake(
            "top_k_keeps_one_more",
            "top-k keeps {value} where {k} are stated: > instead of >=",
            lambda k: lambda values, context: keep_top_k(values, k + 1),
            1,
        ),
        _mistake("top_k_drops_kth", "top-k {k} drops the k-th token and what ties with it: <= instead of <", _strict),
        _mistake("top_k_drops_ties", "top-k keeps exactly {k}, by id, where several tie with the k-th", _exactly),
        another(SETTING, _numbers),
    ),
)
