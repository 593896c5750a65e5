"""An activation between two linear layers: act(x)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracekit.auditing.activations import ACTIVATIONS, SIGMOID, UNDERFLOW, cancelled, exponential
from tracekit.auditing.operations.operation import Given, Operation, Shape
from tracekit.auditing.rounding import ACCUMULATOR, LIBRARY, Floats, Result, as_stored, in_16_bits, rounding, unit

ROOT, CUBE = math.sqrt(2.0 / math.pi), 0.044715
"""Constants of the tanh approximation of GELU."""


@dataclass(frozen=True)
class Activation(Operation):
    """act(x) of every element; `activation` is a name of `activations.ACTIVATIONS`."""

    kind = "activation"

    activation: str = "gelu"

    def result(self, given: Given) -> Result:
        return activated(given.inputs[0], self.activation, given.dtype)

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        return all(source == width for source in inputs)


def activated(x: Floats, activation: str, dtype: str) -> Result:
    """act(x), [rows, width], computed in float32 and rounded once; of the tanh approximation also operation by
    operation in `dtype`, as transformers' `NewGELUActivation` does."""
    values = ACTIVATIONS[activation](x)
    if activation == "relu":
        return Result(values, rounding(values, dtype), rounded=(values,))
    # exp, sum and quotient in float32; exp(-x) overflows after 88, and what is left of the activation becomes 0.
    variance = rounding(values, dtype) + rounding(values, "float32", 4.0) + UNDERFLOW**2
    if activation.startswith("gelu"):
        variance += cancelled(x, np.ones_like(x))
    elif activation in SIGMOID:
        variance += exponential(x, values)
    stepwise = activation in ("gelu_new", "gelu_pytorch_tanh")
    if stepwise:
        variance += _stepwise_variance(x, ACCUMULATOR)
    fused = in_16_bits(dtype, lambda: [as_stored(values, dtype)])
    result = Result(values, variance, rounded=fused, bias=LIBRARY)
    if not (stepwise and fused):
        return result
    wide = variance + _stepwise_variance(x, unit(dtype))
    return Result(values, variance, rounded=fused, bias=LIBRARY, others=(_as_rounded(x, values, wide, dtype),))


def _as_rounded(x: Floats, values: Floats, variance: Floats, dtype: str) -> Result:
    """The tanh approximation with every operation rounded to `dtype`; a kernel may round the square within the cube."""

    def store(exact: Floats) -> Floats:
        return as_stored(exact, dtype)

    def stepwise(cube: Floats) -> Floats:
        inside = store(ROOT * store(x + store(CUBE * cube)))
        return store(store(0.5 * x) * store(1.0 + store(np.tanh(inside))))

    orders = tuple(stepwise(cube) for cube in (store(x**3), store(store(x * x) * x)))
    return Result(values, variance, rounded=orders, bias=LIBRARY)


def _stepwise_variance(x: Floats, roundoff: float) -> Floats:
    """Variance of the tanh approximation, [rows, width], with every operation rounded with unit roundoff `roundoff`:
    the cube and its factor; the sum and its factor; tanh; 1 + tanh; the product."""
    cube = CUBE * x**3
    tanh = np.tanh(ROOT * (x + cube))
    slope = ROOT * (1.0 - np.square(tanh))
    inside = np.square(slope) * 2.0 * (np.square(cube) + np.square(x + cube))
    factor = np.square(tanh) + np.square(1.0 + tanh)
    return np.asarray(np.square(0.5 * x) * (inside + factor + np.square(1.0 + tanh)) * (roundoff**2 / 3.0))
