"""Epsilon cutoff: tokens of less than this probability are removed; the largest always stays.

Hewitt et al. 2022; transformers' `EpsilonLogitsWarper`.
"""

from __future__ import annotations

import numpy as np

from tracekit.formats.file_values import is_number
from tracekit.sampling.processor import Processor, Unit, by_number, removed_nothing
from tracekit.sampling.scores import GONE, Floats, Rounded, softmax
from tracekit.trace import Json


def keep_epsilon(values: Floats, epsilon: float) -> Floats:
    """Scores with tokens below a probability removed."""
    return np.where((softmax(values) < epsilon) & (values < values.max()), GONE, values)


def _cut(numbers: Json, values: Floats) -> tuple[Floats, Unit]:
    return softmax(values) - float(numbers["epsilon"]), Unit.MASS


def _rounds(numbers: Json, values: Floats, rounded: Rounded) -> Floats:
    return np.asarray(softmax(values) * (rounded.shares(values) + 2.0 * rounded.unit))


PROCESSOR = Processor(
    name="EpsilonLogitsWarper",
    setting="epsilon_cutoff",
    words="epsilon cutoff",
    place=270,
    arguments=("epsilon",),
    make=by_number(lambda epsilon: lambda values, context: keep_epsilon(values, epsilon)),
    accepts=is_number,
    neutral=(0.0,),
    sampled=True,
    cut=_cut,
    rounds=_rounds,
    unexercised=removed_nothing,
)
