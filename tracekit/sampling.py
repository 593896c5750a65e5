"""Samplers as data: which tokens survive transformers' logits processors, in their order.

Computed in float64 from recorded logits. Sources: transformers `generation/logits_process.py`
(`RepetitionPenaltyLogitsProcessor`, `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`,
`MinPLogitsWarper`) and the order of `GenerationMixin._get_logits_processor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.trace import Json

Floats = NDArray[np.float64]

APPLIED = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")
"""Settings that `scores` knows."""


def scores(logits: NDArray[Any], sampling: Json, history: Sequence[int] = ()) -> Floats:
    """Logits after the processors, f64 [vocabulary]; minus infinity where a token was removed."""
    out = penalised(logits.astype(np.float64), sampling.get("repetition_penalty"), history)
    if not sampling.get("do_sample", True):
        return out
    out = out / float(sampling.get("temperature") or 1.0)
    if sampling.get("top_k"):
        out = keep_top_k(out, int(sampling["top_k"]))
    if sampling.get("top_p") is not None and sampling["top_p"] < 1.0:
        out = keep_top_p(out, float(sampling["top_p"]))
    if sampling.get("min_p") is not None:
        out = keep_min_p(out, float(sampling["min_p"]))
    return out


def softmax(values: Floats) -> Floats:
    """Probabilities, f64 [vocabulary]; removed tokens get 0."""
    exponents = np.exp(values - values.max())
    return np.asarray(exponents / exponents.sum())


def survivors(values: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Ids that can be drawn and their probabilities, descending, ties by lower id."""
    probs = softmax(values)
    ids = np.flatnonzero(probs)
    order = ids[np.lexsort((ids, -probs[ids]))]
    return order, probs[order]


def penalised(values: Floats, penalty: float | None, history: Sequence[int]) -> Floats:
    """Positive logits of seen tokens divided by the penalty, negative ones multiplied."""
    if not penalty or penalty == 1.0 or not len(history):
        return values
    out = values.copy()
    seen = np.unique(np.asarray(history, dtype=np.int64))
    out[seen] = np.where(out[seen] < 0, out[seen] * penalty, out[seen] / penalty)
    return out


def keep_top_k(values: Floats, k: int) -> Floats:
    """What is below the k-th largest goes; what ties with it stays."""
    k = min(k, values.size)
    kth = np.partition(values, values.size - k)[values.size - k]
    return np.where(values < kth, -np.inf, values)


def keep_top_p(values: Floats, p: float) -> Floats:
    """The smallest set of mass p or more: the token that crosses p stays."""
    return np.where(mass_above(values) < p, values, -np.inf)


def mass_above(values: Floats) -> Floats:
    """Probability of all tokens that stand before each in descending order, f64 [vocabulary]."""
    probs = softmax(values)
    order = np.argsort(-values, kind="stable")
    above = np.empty_like(probs)
    above[order] = np.concatenate([[0.0], np.cumsum(probs[order])[:-1]])
    return above


def keep_min_p(values: Floats, min_p: float) -> Floats:
    """Tokens of at least this share of the largest probability; the largest always stays."""
    probs = softmax(values)
    return np.where(probs < min_p * probs.max(), -np.inf, values)


def cut_distance(logits: NDArray[Any], sampling: Json, tokens: Sequence[int], history: Sequence[int] = ()) -> float:
    """How far the nearest cut is from `tokens`: in nats of logit for top-k, in probability mass for top-p and min-p.

    The largest over the tokens of the smallest over the cuts: an error smaller than this cannot move all of them
    across a cut. Infinity where no cut is set.
    """
    if not len(tokens):
        return 0.0
    temperature = float(sampling.get("temperature") or 1.0)
    values = penalised(logits.astype(np.float64), sampling.get("repetition_penalty"), history) / temperature
    distances = np.full(len(tokens), np.inf)
    if sampling.get("top_k"):
        k = min(int(sampling["top_k"]), values.size)
        kth = np.partition(values, values.size - k)[values.size - k]
        distances = np.minimum(distances, np.abs(values[tokens] - kth))
        values = keep_top_k(values, k)
    if sampling.get("top_p") is not None and sampling["top_p"] < 1.0:
        distances = np.minimum(distances, np.abs(mass_above(values)[tokens] - float(sampling["top_p"])))
    if sampling.get("min_p") is not None:
        probs = softmax(values)
        distances = np.minimum(distances, np.abs(probs[tokens] - float(sampling["min_p"]) * probs.max()))
    return float(distances.max())
