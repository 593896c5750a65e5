"""Eta cutoff: an epsilon cutoff that falls with the entropy. Hewitt et al. 2022; transformers' `EtaLogitsWarper`."""

from __future__ import annotations

import numpy as np

from tracekit.formats.file_values import is_number
from tracekit.sampling.processor import Processor, Unit, by_number, removed_nothing
from tracekit.sampling.processors.epsilon_cutoff import keep_epsilon
from tracekit.sampling.scores import Floats, Rounded, softmax
from tracekit.trace import Json


def _eta(values: Floats, epsilon: float) -> float:
    probs = softmax(values)
    alive = probs[probs > 0]
    entropy = float(-(alive * np.log(alive)).sum())
    return min(epsilon, float(np.sqrt(epsilon) * np.exp(-entropy)))


def _cut(numbers: Json, values: Floats) -> tuple[Floats, Unit]:
    return softmax(values) - _eta(values, float(numbers["epsilon"])), Unit.MASS


def _rounds(numbers: Json, values: Floats, rounded: Rounded) -> Floats:
    """The probability, and the threshold by what its entropy, root, exponential and product are off."""
    threshold = _eta(values, float(numbers["epsilon"])) * (rounded.entropy(values) + 4.0 * rounded.unit)
    return np.asarray(softmax(values) * rounded.shares(values) + threshold)


PROCESSOR = Processor(
    name="EtaLogitsWarper",
    setting="eta_cutoff",
    words="eta cutoff",
    place=280,
    arguments=("epsilon",),
    make=by_number(lambda epsilon: lambda values, context: keep_epsilon(values, _eta(values, epsilon))),
    accepts=is_number,
    neutral=(0.0,),
    sampled=True,
    cut=_cut,
    rounds=_rounds,
    unexercised=removed_nothing,
)
