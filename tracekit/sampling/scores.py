"""Scores of a vocabulary, and what is read off them: probabilities, survivors, the mass above a token.

Sums and exponentials are taken in float64, the scores themselves stay in the precision in which both transformers and
its ports keep them, float32 (float64 where the logits are).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import UNIT_ROUNDOFF

Floats = NDArray[Any]
GONE = -np.inf
"""The score of a removed token."""
SMALLEST = 1e-36
"""Probabilities below this are zero in float32."""
UNIT = UNIT_ROUNDOFF["float32"]
LAST_BITS = 64
"""Roundoffs of float32 that a probability may be off by whatever its score: exponentials of either side's library, each
a few last bits off, the division, and the format that it is kept in. A factor common to all is none of it."""


def working(logits: Floats) -> Floats:
    """Logits in the precision in which scores are kept."""
    return logits if logits.dtype == np.float64 else logits.astype(np.float32)


def softmax(values: Floats) -> Floats:
    """Probabilities, f64 [vocabulary]; removed tokens get 0."""
    wide = values.astype(np.float64)
    exponents = np.exp(wide - wide.max())
    return np.asarray(exponents / exponents.sum())


def rounding(processors: int, scores: Floats) -> float:
    """Nats by which two float32 filters that do the same may differ, of so many processors each, by the scores [n].

    Each processor rounds a score at most twice, its number and the result, and softmax once, on either side, of the
    token and of the largest. Scores that a model leaves far from zero have coarse last bits, whatever they differ by;
    where the logarithm of the sum is taken off first, they are as far from zero as they are from that.
    """
    finite = scores[np.isfinite(scores)]
    if not finite.size:
        return LAST_BITS * UNIT
    kept = finite[finite >= finite.max() + np.log(SMALLEST)]
    largest = float(np.abs(kept).max() + np.ptp(kept) + np.log(scores.size))
    return (8 * processors + 4) * UNIT * largest + LAST_BITS * UNIT


def survivors(values: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Ids that can be drawn and their probabilities, descending, ties by lower id."""
    probs = softmax(values)
    ids = np.flatnonzero(probs)
    order = ids[np.lexsort((ids, -probs[ids]))]
    return order, probs[order]


def seen_tokens(history: Sequence[int], vocabulary: int) -> NDArray[np.int64]:
    """The tokens of a history, each once; ids beyond the vocabulary are left out."""
    seen = np.unique(np.asarray(history, dtype=np.int64))
    return seen[(seen >= 0) & (seen < vocabulary)]


def kth_largest(values: Floats, k: int) -> float:
    """The k-th largest score; the smallest where there are fewer."""
    k = max(1, min(k, values.size))
    return float(np.partition(values, values.size - k)[values.size - k])


def mass_above(values: Floats) -> Floats:
    """Probability of all tokens that stand before each in descending order, f64 [vocabulary]; 1 for removed ones.

    Of equal scores the higher id stands first: transformers sorts ascending and takes away from the bottom.
    """
    probs = softmax(values)
    above = np.ones_like(probs)
    alive = np.flatnonzero(values > GONE)[::-1]
    order = alive[np.argsort(-values[alive], kind="stable")]
    above[order] = np.concatenate([[0.0], np.cumsum(probs[order])[:-1]])
    return above


def without(values: Floats, ids: Iterable[int]) -> Floats:
    """Scores with these tokens removed."""
    out = values.copy()
    out[seen_tokens(list(ids), values.size)] = GONE
    return out
