"""Norms and activations as engines compute them that round every step to a 16-bit format.

The audit takes sums and functions of a 16-bit model as float32's (`rounding.ACCUMULATOR`). Which steps another engine
rounds is a choice of precision; what it then holds is worked out here, bit for bit, in the order of its operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tracekit.auditing.rounding import Floats, as_stored

TIE = 2.0**-20
"""Relative error that a sum of squares in float32 has, about: a root that lies so near a tie may be rounded either
way."""
GELU_ROOT, GELU_CUBE = math.sqrt(2.0 / math.pi), 0.044715

NormSteps = Callable[[Floats, Floats, str], Floats]
"""(rows, root mean square of each [rows, 1], format) -> normed rows."""


def divided_by_rounded(x: Floats, root: Floats, dtype: str) -> Floats:
    """x / r, r rounded first: candle's `rms_norm`."""
    return as_stored(x / as_stored(root, dtype), dtype)


def times_rounded(x: Floats, root: Floats, dtype: str) -> Floats:
    """x * s, s = 1 / r rounded first."""
    return as_stored(x * as_stored(1.0 / root, dtype), dtype)


def times_twice_rounded(x: Floats, root: Floats, dtype: str) -> Floats:
    """x * s, s = 1 / r of a mean of squares that is rounded itself: `x * rsqrt(x.pow(2).mean() + eps)` in 16 bits."""
    return as_stored(x * as_stored(1.0 / np.sqrt(as_stored(np.square(root), dtype)), dtype), dtype)


def rms_norm(x: Floats, weight: Floats | None, eps: float, dtype: str, steps: NormSteps, near: Floats) -> Floats:
    """x / sqrt(mean(x^2) + eps) * weight, [rows, width], by `steps`. Of a root that lies next to a tie, the rounding is
    taken that is nearer to `near`. A weight that is shorter than a row is that of each head."""
    if weight is not None and weight.size < x.shape[1]:
        heads = rms_norm(x.reshape(-1, weight.size), weight, eps, dtype, steps, near.reshape(-1, weight.size))
        return heads.reshape(x.shape)
    root = np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + float(np.float32(eps)))
    factor = 1.0 if weight is None else weight
    made = [as_stored(steps(x, root * side, dtype) * factor, dtype) for side in (1.0, 1.0 - TIE, 1.0 + TIE)]
    gaps = np.stack([np.square(near - values).sum(axis=1) for values in made])
    best = gaps.argmin(axis=0)
    return np.asarray(np.choose(best[:, None], made))


def silu(x: Floats, dtype: str) -> Floats:
    """x / (1 + exp(-x))."""

    def store(exact: Floats) -> Floats:
        return as_stored(exact, dtype)

    with np.errstate(over="ignore"):
        return store(x / store(1.0 + store(np.exp(-x))))


def gelu_tanh(x: Floats, dtype: str) -> Floats:
    """0.5 x (1 + tanh(c x (1 + k x x))), its constants rounded as well."""

    def store(exact: Floats) -> Floats:
        return as_stored(exact, dtype)

    root, cube = (float(store(np.array([number]))[0]) for number in (GELU_ROOT, GELU_CUBE))
    inside = store(store(root * x) * store(1.0 + store(store(cube * x) * x)))
    return store(store(0.5 * x) * store(1.0 + store(np.tanh(inside))))


ACTIVATIONS: dict[str, Callable[[Floats, str], Floats]] = {
    "silu": silu,
    "swish": silu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
}
"""`hidden_act` -> function."""
