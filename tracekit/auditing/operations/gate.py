"""The gate of a gated MLP: act(gate) * up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracekit.auditing.activations import ACTIVATIONS, SIGMOID, UNDERFLOW, cancelled, exponential
from tracekit.auditing.operations.operation import Given, Operation, Shape
from tracekit.auditing.rounding import ACCUMULATOR, LIBRARY, Floats, Result, as_stored, in_16_bits, rounding
from tracekit.trace import Json


def gated(gate: Floats, up: Floats, activation: str, dtype: str) -> Result:
    """act(gate) * up, the activation rounded before the product."""
    active = ACTIVATIONS[activation](gate)
    values = active * up
    # exp, sum, quotient in float32; then the activation and the product in the model's dtype.
    variance = rounding(values, dtype, 2.0) + rounding(values, "float32", 4.0)
    # exp(-gate) overflows float32 beyond 88, and what is left of the activation becomes 0.
    variance += np.square(UNDERFLOW * up)
    if activation.startswith("gelu"):
        variance += cancelled(gate, up)
    elif activation in SIGMOID:
        variance += exponential(gate, values)

    def orders() -> list[Floats]:
        return [as_stored(values, dtype), as_stored(as_stored(active, dtype) * up, dtype)]

    return Result(values, variance, rounded=in_16_bits(dtype, orders), bias=LIBRARY)


TABLE_END = 10.0
"""ggml looks up what lies between this and its negative; beyond, GELU is the input itself, or nothing."""
TIE = 8.0
"""Float32 roundings that an entry of the table may be off before it is rounded to the table's format."""


def looked_up(gate: Floats, up: Floats, activation: str, table: str) -> Result:
    """act(gate) * up with the activation out of a table in a narrow format: of the input rounded to it, rounded to it.
    Source: `ggml_vec_geglu_f32` of ggml's src/ggml-cpu/vec.h."""
    rounded = as_stored(gate, table)
    exact = ACTIVATIONS[activation](rounded)
    reach = TIE * ACCUMULATOR * (np.abs(exact) + np.abs(rounded))
    low, high = as_stored(exact - reach, table), as_stored(exact + reach, table)
    inside = np.abs(gate) < TABLE_END
    active = np.where(inside, as_stored(exact, table), np.maximum(gate, 0.0))
    values = active * up
    # An entry next to a tie may be rounded to either side.
    variance = rounding(values, "float32", 2.0) + np.square(np.where(inside, high - low, 0.0) * up)
    return Result(values, variance)


@dataclass(frozen=True)
class Gate(Operation):
    """act(gate) * up; `activation` is a name of `activations.ACTIVATIONS`."""

    kind = "gate"

    activation: str = "silu"
    table: str | None = None
    """The format of the table that the engine looks the activation up in, where it states one."""

    @property
    def in_repro(self) -> bool:
        return self.table is None

    def numbers(self) -> Json:
        return {"activation": self.activation}

    def result(self, given: Given) -> Result:
        if self.table is not None:
            return looked_up(given.inputs[0], given.inputs[1], self.activation, self.table)
        return gated(given.inputs[0], given.inputs[1], self.activation, given.dtype)

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        return all(source == width for source in inputs)
