"""Scores of a vocabulary, and what is read off them: probabilities, survivors, the mass above a token.

Sums and exponentials are taken in float64, the scores themselves stay in the precision in which both transformers and
its ports keep them, float32 (float64 where the logits are).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


ROUNDINGS = 3
"""Of a score by a processor that computes it: its number, the number's reciprocal, and the product."""


@dataclass(frozen=True)
class Rounded:
    """How far rounding may put what a filter compares: one program's errors, as bounds."""

    scores: Floats  # nats by which each score that reaches it may be off, f64 [vocabulary]
    unit: float = UNIT  # unit roundoff of probabilities and of their sums

    def logs(self, values: Floats) -> Floats:
        """Nats by which each token's share may be off, but for what is common to all; 0 for removed ones."""
        alive = values > GONE
        below = np.where(alive, values.max() - np.where(alive, values, 0.0), 0.0)
        library = LAST_BITS * UNIT + (self.unit if self.unit > UNIT else 0.0)
        return np.asarray(np.where(alive, self.scores + UNIT * below + library, 0.0))

    def shares(self, values: Floats) -> Floats:
        """Relative error of each probability, its sum's included, f64 [vocabulary]."""
        probs, logs = softmax(values), self.logs(values)
        return np.asarray(logs + float(probs @ logs) + self.sum(probs))

    def sum(self, terms: Floats) -> float:
        """By how much running sums of these terms are off in float32, from the largest and from the smallest on, each
        rounded to what it is kept in."""
        ordered = np.sort(terms[terms != 0.0])[::-1].astype(np.float32)
        worst = 0.0
        for each in (ordered, ordered[::-1]):
            off = np.add.accumulate(each, dtype=np.float32) - np.cumsum(each, dtype=np.float64)
            worst = max(worst, float(np.abs(off).max(initial=0.0)))
        return worst + self.unit * float(np.abs(terms).sum())

    def mass(self, values: Floats, order: NDArray[np.int64]) -> Floats:
        """By how much the probability of all tokens that stand before each in this order may be off, f64 [vocabulary]:
        those before it and those from it on by as much as their shares, both sums, and what it is compared with."""
        probs = softmax(values)
        weighted = probs * self.logs(values)
        above, before = before_each(probs, order), before_each(weighted, order)
        moved = (1.0 - above) * before + above * (float(weighted.sum()) - before)
        return np.asarray(moved + 2.0 * self.sum(probs) + self.unit)

    def entropy(self, values: Floats) -> float:
        """Nats by which the entropy of the probabilities may be off."""
        probs, surprise = softmax(values), surprises(values)
        entropy = float(probs @ surprise)
        return float((probs * np.abs(surprise - entropy)) @ self.logs(values)) + 2.0 * self.sum(probs * surprise)


def seen_tokens(history: Sequence[int], vocabulary: int) -> NDArray[np.int64]:
    """The tokens of a history, each once; ids beyond the vocabulary are left out."""
    seen = np.unique(np.asarray(history, dtype=np.int64))
    return seen[(seen >= 0) & (seen < vocabulary)]


def kth_largest(values: Floats, k: int) -> float:
    """The k-th largest score; the smallest where there are fewer."""
    k = max(1, min(k, values.size))
    return float(np.partition(values, values.size - k)[values.size - k])


def descending(values: Floats) -> NDArray[np.int64]:
    """Tokens that are not removed, by descending score.

    Of equal scores the higher id stands first: transformers sorts ascending and takes away from the bottom.
    """
    alive = np.flatnonzero(values > GONE)[::-1]
    return np.asarray(alive[np.argsort(-values[alive], kind="stable")])


def before_each(weights: Floats, order: NDArray[np.int64]) -> Floats:
    """Sum of the weights of the tokens before each in this order, f64 [vocabulary]; 1 for those that are not in it."""
    out = np.ones(weights.size)
    out[order] = np.concatenate([[0.0], np.cumsum(weights[order])[:-1]])
    return out


def mass_above(values: Floats) -> Floats:
    """Probability of all tokens that stand before each in descending order, f64 [vocabulary]; 1 for removed ones."""
    return before_each(softmax(values), descending(values))


def surprises(values: Floats) -> Floats:
    """Nats of surprise of each token, f64 [vocabulary]; 0 for those of no probability."""
    probs = softmax(values)
    return np.asarray(-np.log(np.where(probs > 0.0, probs, 1.0)))


def without(values: Floats, ids: Iterable[int]) -> Floats:
    """Scores with these tokens removed."""
    out = values.copy()
    out[seen_tokens(list(ids), values.size)] = GONE
    return out
