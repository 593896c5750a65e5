"""Logits from what the head gave: a factor, and the soft cap of Gemma 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracekit.auditing.operations.operation import Given, Operation, Shape
from tracekit.auditing.operations.passed_on import PassedOn
from tracekit.auditing.rounding import LIBRARY, Floats, Result, as_stored, constants, in_16_bits, rounding, times


def capped(x: Floats, factor: float, cap: float | None, dtype: str) -> Result:
    """Logits from what the head gave: times a number, then softly capped."""
    if cap is None:
        return times(x, factor, dtype)
    inside = x * factor / cap
    values = cap * np.tanh(inside)
    # Quotient, tanh and product each round; the first error shrinks as tanh flattens.
    variance = rounding(values, dtype, 3.0) + rounding(values, "float32", 4.0)
    variance += rounding(inside, dtype, 2.0) * np.square(cap * (1.0 - np.square(np.tanh(inside))))

    def orders() -> list[Floats]:
        tanh = as_stored(np.tanh(as_stored(inside, dtype)), dtype)
        return [as_stored(values, dtype), as_stored(tanh * cap, dtype)]

    # tanh never grows a relative error.
    bias = LIBRARY + constants(dtype, factor, cap) + constants(dtype, cap)
    return Result(values, variance, rounded=in_16_bits(dtype, orders), bias=bias)


@dataclass(frozen=True)
class SoftCap(Operation):
    """cap * tanh(x * factor / cap); x * factor where `cap` is None."""

    kind = "capped"

    factor: float = 1.0
    cap: float | None = None

    def result(self, given: Given) -> Result:
        return capped(given.inputs[0], self.factor, self.cap, given.dtype)

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        return all(source == width for source in inputs)


def scaled_logits(factor: float, cap: float | None = None) -> Operation:
    """The operation from the head's output to the logits; they are the output itself without a factor or a cap."""
    return PassedOn() if factor == 1.0 and cap is None else SoftCap(factor, cap)
