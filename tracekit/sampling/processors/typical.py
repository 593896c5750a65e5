"""Typical sampling: the tokens whose surprise is nearest to the entropy stay, up to a mass, and the nearest always.

Meister et al. 2022; transformers' `TypicalLogitsWarper`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracekit.formats.file_values import is_number
from tracekit.sampling.processor import Processor, Unit, by_number, removed_nothing
from tracekit.sampling.scores import GONE, Floats, Rounded, before_each, softmax, surprises
from tracekit.trace import Json


def _order(values: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Tokens by how near their surprise is to the entropy, and how near it is, nats, f64 [vocabulary]."""
    probs, surprise = softmax(values), surprises(values)
    distance = np.where(probs > 0.0, np.abs(surprise - float(probs @ surprise)), np.inf)
    return np.argsort(distance, kind="stable"), distance


def _keep_typical(values: Floats, mass: float) -> Floats:
    probs = softmax(values)
    order, distance = _order(values)
    last = min(int((np.cumsum(probs[order]) < mass).sum()), values.size - 1)
    goes = distance > distance[order[last]]
    goes[order[0]] = False
    return np.where(goes, GONE, values)


def _cut(numbers: Json, values: Floats) -> tuple[Floats, Unit]:
    return before_each(softmax(values), _order(values)[0]) - float(numbers["mass"]), Unit.MASS


def _rounds(numbers: Json, values: Floats, rounded: Rounded) -> Floats:
    """The mass before a token, with that of the tokens that may as well stand on its other side: as near to the entropy
    as rounding tells."""
    order, distance = _order(values)
    probs = softmax(values)
    apart = rounded.shares(values) + 2.0 * rounded.unit * surprises(values)
    near = 2.0 * (float(apart.max(initial=0.0)) + rounded.entropy(values))
    ordered, through = distance[order], np.concatenate([[0.0], np.cumsum(probs[order])])
    first = np.searchsorted(ordered, distance - near, "left")
    last = np.searchsorted(ordered, distance + near, "right")
    with np.errstate(invalid="ignore"):
        beside = through[last] - through[first] - probs
    return np.asarray(rounded.mass(values, order) + np.maximum(beside, 0.0))


PROCESSOR = Processor(
    name="TypicalLogitsWarper",
    setting="typical_p",
    words="typical-p",
    place=260,
    arguments=("mass",),
    make=by_number(lambda mass: lambda values, context: _keep_typical(values, mass)),
    accepts=is_number,
    neutral=(1.0,),
    sampled=True,
    cut=_cut,
    rounds=_rounds,
    unexercised=removed_nothing,
)
