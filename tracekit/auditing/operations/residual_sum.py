"""The residual sum: the stream and what a block adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracekit.auditing.operations.operation import Given, Operation, Shape
from tracekit.auditing.rounding import Floats, Result, as_stored, constants, in_16_bits, rounding


def residual(one: Floats, other: Floats, dtype: str, factor: float = 1.0) -> Result:
    """The residual stream and what a block adds to it, times a number."""
    added = other if factor == 1.0 else other * factor
    values = one + added
    if factor == 1.0:
        return Result(values, rounding(values, dtype), rounded=in_16_bits(dtype, lambda: [as_stored(values, dtype)]))
    orders = in_16_bits(dtype, lambda: [as_stored(values, dtype), as_stored(one + as_stored(added, dtype), dtype)])
    # The factor is rounded for all rows alike; of the sum, the branch is a part.
    part = float(np.linalg.norm(added)) / max(float(np.linalg.norm(values)), 1e-290)
    bias = constants(dtype, factor) * part
    return Result(values, rounding(values, dtype) + rounding(added, dtype), rounded=orders, bias=bias)


@dataclass(frozen=True)
class ResidualSum(Operation):
    """stream + factor * branch."""

    kind = "residual"

    factor: float = 1.0

    @property
    def in_repro(self) -> bool:
        return self.factor == 1.0

    def result(self, given: Given) -> Result:
        return residual(given.inputs[0], given.inputs[1], given.dtype, self.factor)

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        return all(source == width for source in inputs)
