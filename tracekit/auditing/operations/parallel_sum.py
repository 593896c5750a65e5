"""The sum of a layer whose blocks read the same input: the stream and both branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracekit.auditing.operations.operation import Given, Operation, Shape
from tracekit.auditing.rounding import Floats, Result, as_stored, in_16_bits, rounding


@dataclass(frozen=True)
class ParallelSum(Operation):
    """stream + one branch + another branch, added up in any order."""

    kind = "parallel_sum"

    def result(self, given: Given) -> Result:
        stream, one, other = given.inputs
        return parallel_sum(stream, one, other, given.dtype)

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        return len(inputs) == 3 and all(source == width for source in inputs)


def parallel_sum(stream: Floats, one: Floats, other: Floats, dtype: str) -> Result:
    """The sum, [rows, width]; which two terms are added first is the engine's choice, and their sum is rounded."""
    pairs = ((one + other, stream), (stream + one, other), (stream + other, one))
    values = stream + one + other
    variance = rounding(values, dtype) + np.maximum.reduce([rounding(first, dtype) for first, _ in pairs])
    orders = in_16_bits(dtype, lambda: [as_stored(as_stored(first, dtype) + last, dtype) for first, last in pairs])
    return Result(values, variance, rounded=(*orders, *in_16_bits(dtype, lambda: [as_stored(values, dtype)])))
