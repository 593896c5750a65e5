"""Typical sampling: the tokens whose surprise is nearest to the entropy stay, up to a mass, and the nearest always.

Meister et al. 2022; transformers' `TypicalLogitsWarper`.
"""

from __future__ import annotations

import numpy as np

from tracekit.formats.file_values import is_number
from tracekit.sampling.processor import Apply, Processor, removed_nothing
from tracekit.sampling.scores import GONE, Floats, softmax
from tracekit.trace import Json


def _keep_typical(values: Floats, mass: float) -> Floats:
    probs = softmax(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probs)
        entropy = np.nansum(surprise * probs)
    distance = np.abs(surprise - entropy)
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(probs[order]) < mass).sum()), values.size - 1)
    goes = distance > distance[order[last]]
    goes[order[0]] = False
    return np.where(goes, GONE, values)


def _make(numbers: Json, settings: Json) -> Apply:
    mass = float(numbers["mass"])
    return lambda values, context: _keep_typical(values, mass)


PROCESSOR = Processor(
    name="TypicalLogitsWarper",
    setting="typical_p",
    words="typical-p",
    place=260,
    arguments=("mass",),
    make=_make,
    accepts=is_number,
    neutral=(1.0,),
    sampled=True,
    unexercised=removed_nothing,
)
