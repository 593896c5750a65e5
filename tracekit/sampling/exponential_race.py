"""The exponential race that a recorded token was drawn by, run again: how narrowly was it won?

One sample of `torch.multinomial` is `argmax(p / q)`, q exponential (aten/src/ATen/native/Distributions.cpp). The draw's
words say what q were, its tokens and survivors what p were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.sampling.chain import RAS
from tracekit.sampling.observed import Observed
from tracekit.sampling.replay import Streams, Tape
from tracekit.torch_rng.transforms import race_words
from tracekit.trace import Draw, Json

RACE_TOLERANCE = 2e-5
"""Nats within which a race that is run again may end otherwise: p and p / q are float32 in torch."""


def race_scores(
    ids: NDArray[np.int64],
    probs: NDArray[Any],
    draws: Sequence[Draw],
    streams: Streams,
    vocabulary: int | None,
    *,
    nucleus: bool = False,
) -> NDArray[np.float64] | None:
    """log(p / q) of each survivor, nats [survivors]; None where the race cannot be run again.

    A race is over the vocabulary, as transformers draws, or over the survivors in their order, as CosyVoice's nucleus
    is drawn from: `nucleus`, else the number of words says which, and where it leaves both, the token that won.
    `vocabulary` is the number of tokens, for draws that do not say how many words they took.
    """
    if not draws or draws[-1].op != "multinomial":
        return None
    draw = draws[-1]
    entries = ids.size if nucleus else vocabulary or 0
    count = draw.words if draw.words is not None else race_words(entries)
    if (nucleus or len(draws) > 1) and count != race_words(ids.size):
        return None  # a second draw, from other probabilities than the survivors'
    words = streams.at(draw, count)
    if words is None:
        return None
    for noise in _readings(Tape(words).exponential(count // 2), ids, nucleus):
        with np.errstate(divide="ignore"):
            scores = np.log(probs.astype(np.float64)) - np.log(noise)
        if draw.result is None or _wins(scores[ids == draw.result], scores):
            return scores
    return None


def race_of_step(seen: Observed, stated: Json, streams: Streams) -> NDArray[np.float64] | None:
    """The same of a recorded step, under a side's settings."""
    if seen.ids is None or seen.probs is None:
        return None
    vocabulary = None if seen.logits is None else seen.logits.size
    nucleus = stated.get("sampler") == RAS
    return race_scores(seen.ids, seen.probs, seen.draws, streams, vocabulary, nucleus=nucleus)


def _readings(noise: NDArray[np.float64], ids: NDArray[np.int64], nucleus: bool) -> Iterator[NDArray[np.float64]]:
    if noise.size > ids.max(initial=-1) and not nucleus:
        yield noise[ids]
    if noise.size == ids.size:
        yield noise


def _wins(own: NDArray[np.float64], scores: NDArray[np.float64]) -> bool:
    return own.size == 1 and bool(scores.max() - own[0] <= RACE_TOLERANCE)


def lead(scores: NDArray[np.float64]) -> float:
    """How far the best of at least two scores is ahead of the next one."""
    best = np.partition(scores, scores.size - 2)[-2:]
    return float(best[1] - best[0])
