"""How far a run's distributions are from another's, as llama.cpp's `perplexity --kl-divergence` prints it.

Source: `tools/perplexity/perplexity.cpp` of llama.cpp (`log_softmax`, `kl_divergence`, `percentile`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.compare.search import first_token_difference
from tracekit.dtypes import to_float
from tracekit.trace import Array, Sequence, Trace

MOST = 0.999


@dataclass(frozen=True)
class Kld:
    """Kullback-Leibler divergence of the reference's next-token distribution from the candidate's, in nats a step."""

    steps: int
    mean: float
    most: float  # at 99.9 % of the steps it is no larger
    same_top: float  # share of the steps at which both have the same most probable token


def kld(reference: Trace, candidate: Trace) -> Kld | None:
    """Over the steps that both sides computed from the same tokens; None where there is none with all logits on both
    sides."""
    divergences: list[float] = []
    same: list[bool] = []
    for one, other in zip(reference.sequences, candidate.sequences, strict=False):
        for ours, theirs in _logits(one, other):
            first, second = _log_softmax(ours), _log_softmax(theirs)
            divergences.append(float((np.exp(first) * (first - second)).sum()))
            same.append(int(first.argmax()) == int(second.argmax()))
    if not divergences:
        return None
    values = np.array(divergences)
    most = float(np.quantile(values, MOST))  # between two steps as llama.cpp does, linearly
    return Kld(len(values), float(values.mean()), most, float(np.mean(same)))


def _logits(one: Sequence, other: Sequence) -> list[tuple[Array, Array]]:
    if one.prompt_ids is None or other.prompt_ids is None or not np.array_equal(one.prompt_ids, other.prompt_ids):
        return []
    split = first_token_difference(one, other)
    steps = min(one.step_count, other.step_count) if split is None else split + 1
    ours, theirs = one.logits(0, steps), other.logits(0, steps)
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return []
    dtypes = one.logits_dtype or "float32", other.logits_dtype or "float32"
    return list(zip(to_float(ours, dtypes[0]), to_float(theirs, dtypes[1]), strict=True))


def _log_softmax(logits: Array) -> Array:
    values = logits.astype(np.float64)
    shifted = values - values.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
