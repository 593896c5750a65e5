"""The gate of a gated MLP: act(gate) * up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracekit.auditing.activations import ACTIVATIONS, UNDERFLOW, cancelled
from tracekit.auditing.operations.operation import Given, Operation, Shape
from tracekit.auditing.rounding import LIBRARY, Floats, Result, as_stored, in_16_bits, rounding
from tracekit.trace import Json


def gated(gate: Floats, up: Floats, activation: str, dtype: str) -> Result:
    """act(gate) * up, the activation rounded before the product."""
    active = ACTIVATIONS[activation](gate)
    values = active * up
    # exp, sum, quotient in float32; then the activation and the product in the model's dtype.
    variance = rounding(values, dtype, 2.0) + rounding(values, "float32", 4.0)
    # exp(-gate) overflows float32 behind 88, and what is left of the activation becomes 0.
    variance += np.square(UNDERFLOW * up)
    if activation.startswith("gelu"):
        variance += cancelled(gate, up)

    def orders() -> list[Floats]:
        return [as_stored(values, dtype), as_stored(as_stored(active, dtype) * up, dtype)]

    return Result(values, variance, rounded=in_16_bits(dtype, orders), bias=LIBRARY)


@dataclass(frozen=True)
class Gate(Operation):
    """act(gate) * up; `activation` is a name of `activations.ACTIVATIONS`."""

    kind = "gate"

    activation: str = "silu"

    @property
    def in_repro(self) -> bool:
        return True

    def numbers(self) -> Json:
        return {"activation": self.activation}

    def result(self, given: Given) -> Result:
        return gated(given.inputs[0], given.inputs[1], self.activation, given.dtype)

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        return all(source == width for source in inputs)
