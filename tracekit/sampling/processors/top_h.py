"""Top-H: tokens stay, from the most probable on, while they have at most the share `top_h` of the entropy; the first
always does.

Potraghloo et al. 2025 (Top-H Decoding); transformers' `TopHLogitsWarper`, which looks at the 100 largest alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracekit.formats.file_values import is_number
from tracekit.sampling.observed import Context
from tracekit.sampling.processor import (
    Apply,
    Processor,
    Unit,
    by_number,
    instead,
    removed_nothing,
)
from tracekit.sampling.scores import GONE, Floats, Rounded, softmax, surprises
from tracekit.trace import Json

NAME, SETTING = "TopHLogitsWarper", "top_h"
MOST = 100
"""Tokens that the entropy is taken of."""


def _entropy(values: Floats) -> tuple[NDArray[np.int64], Floats]:
    """The largest tokens, descending, [n], and the entropy that they have up to each, nats, f64 [n]."""
    order = np.argsort(-values, kind="stable")[:MOST]
    probs = softmax(values[order])
    terms = np.zeros(probs.size)
    alive = probs > 0
    terms[alive] = -probs[alive] * np.log(probs[alive])
    return order, np.cumsum(terms)


def _keep(values: Floats, ids: NDArray[np.int64]) -> Floats:
    out = np.full_like(values, GONE)
    out[ids] = values[ids]
    return out


def _keep_top_h(values: Floats, share: float) -> Floats:
    order, entropy = _entropy(values)
    stays = entropy <= share * entropy[-1]
    stays[0] = True
    return _keep(values, order[stays])


def _cut(numbers: Json, values: Floats) -> tuple[Floats, Unit]:
    """In nats of entropy."""
    order, entropy = _entropy(values)
    distances = np.full(values.size, np.inf)
    distances[order] = entropy - float(numbers["top_h"]) * entropy[-1]
    distances[order[0]] = np.inf  # stays, whatever its entropy
    return distances, Unit.NATS


def _rounds(numbers: Json, values: Floats, rounded: Rounded) -> Floats:
    """The entropy up to a token less its share of all: what a term is off counts once at most, each sum once."""
    kept = _keep(values, np.argsort(-values, kind="stable")[:MOST])
    probs, surprise = softmax(kept), surprises(kept)
    terms = float((probs * np.abs(surprise - 1.0)) @ rounded.shares(kept))
    return np.full(values.size, terms + 2.0 * rounded.sum(probs * surprise))


def _crossing(share: float) -> Apply:
    """The token that crosses the threshold is kept, as top-p keeps its own."""

    def apply(values: Floats, context: Context) -> Floats:
        order, entropy = _entropy(values)
        before = np.concatenate([[0.0], entropy[:-1]])
        return _keep(values, order[before <= share * entropy[-1]])

    return apply


PROCESSOR = Processor(
    name=NAME,
    setting=SETTING,
    words="top-H",
    place=220,
    arguments=("top_h",),
    make=by_number(lambda share: lambda values, context: _keep_top_h(values, share)),
    accepts=is_number,
    sampled=True,
    cut=_cut,
    rounds=_rounds,
    unexercised=removed_nothing,
    mistakes=(
        instead(
            "top_h_keeps_crossing_token",
            "top-H {share:g} keeps the token that crosses its share of the entropy, as top-p does",
            (NAME, SETTING, "share"),
            _crossing,
        ),
    ),
)
