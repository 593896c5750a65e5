"""Activation functions in float64, by the names that `config.json` uses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tracekit.auditing.rounding import ACCUMULATOR, Floats


def silu(x: Floats) -> Floats:
    """x * sigmoid(x) (Elfwing et al. 2017)."""
    with np.errstate(over="ignore"):
        return np.asarray(x / (1.0 + np.exp(-x)))


def gelu(x: Floats) -> Floats:
    """x * Phi(x), exactly (Hendrycks and Gimpel 2016)."""
    return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))))


def gelu_tanh(x: Floats) -> Floats:
    """The tanh approximation of GELU (`gelu_pytorch_tanh`)."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))))


def cancelled(gate: Floats, up: Floats) -> Floats:
    """Variance of GELU's `1 + tanh` and `1 + erf` in float32, which cancel where the gate is negative."""
    return np.asarray(np.square(2.0 * ACCUMULATOR * gate * up) / 3.0)


def exponential(x: Floats, values: Floats) -> Floats:
    """Variance of a float32 sigmoid whose exponential is one of a rounded product, by the values it is a factor of: a
    library may round -x log2(e) first, which exp takes times its logarithm."""
    with np.errstate(over="ignore"):
        logarithm = np.logaddexp(0.0, -x)
    return np.asarray(np.square(logarithm * values * ACCUMULATOR) / 3.0)


def relu(x: Floats) -> Floats:
    return np.maximum(x, 0.0)


def _erf(x: Floats) -> Floats:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), dtype=np.float64)


ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
}
"""`hidden_act` -> function."""

SIGMOID = ("silu", "swish")
"""Those that are their input times its sigmoid."""

UNDERFLOW = 1e-36
"""Size of activations that float32 may lose: 88 * exp(-88)."""
