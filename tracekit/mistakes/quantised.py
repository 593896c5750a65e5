"""Weights as engines round them to a few bits: the numbers that are left, f64 [out, in]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.operations import Floats

BLOCK = 32
"""Weights that share a scale in GGML's formats."""
Singles = NDArray[np.float32]


def a_scale_each(axis: int | None) -> Callable[[Singles], Singles]:
    """8 bits, -127 to 127, of the largest value of a row (`axis` 1) or of the whole tensor (None)."""

    def rounded(weight: Singles) -> Singles:
        scale = _nonzero(np.abs(weight).max(axis=axis, keepdims=True) / np.float32(127))
        return np.asarray(_nearest(weight / scale) * scale, dtype=np.float32)

    return rounded


def q8_0(weight: Singles) -> Singles:
    """GGML's Q8_0: 8 bits, a float16 scale each 32 weights of a row. Source: `quantize_row_q8_0_ref` of ggml."""
    blocks = weight.reshape(-1, BLOCK)
    scale = _nonzero(np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127))
    return np.asarray(_nearest(blocks / scale) * _half(scale), dtype=np.float32).reshape(weight.shape)


def q4_0(weight: Singles) -> Singles:
    """GGML's Q4_0: 4 bits, a float16 scale each 32 weights of a row. Source: `quantize_row_q4_0_ref` of ggml."""
    blocks = weight.reshape(-1, BLOCK)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scale = _nonzero(peak / np.float32(-8))
    steps = np.minimum(np.floor(blocks / scale + np.float32(8.5)), 15) - 8
    return np.asarray(steps * _half(scale), dtype=np.float32).reshape(weight.shape)


@dataclass(frozen=True)
class Rounding:
    """A way of rounding a weight."""

    words: str
    round: Callable[[Singles], Singles]
    blocks: bool = False
    """Whether it needs rows of whole blocks of `BLOCK` weights."""

    def rounded(self, weight: Floats) -> Floats:
        """A weight after it, worked out in float32 as engines do."""
        return np.asarray(self.round(weight.astype(np.float32)), dtype=np.float64)


ROUNDINGS = (
    Rounding("8 bits, a scale a row", a_scale_each(1)),
    Rounding("8 bits, one scale", a_scale_each(None)),
    Rounding("Q8_0", q8_0, blocks=True),
    Rounding("Q4_0", q4_0, blocks=True),
)


def _nearest(steps: Singles) -> Singles:
    """Ties away from zero, as C and Rust round."""
    return np.trunc(steps + np.copysign(np.float32(0.5), steps))


def _nonzero(scale: Singles) -> Singles:
    return np.where(scale == 0, np.float32(1), scale)


def _half(scale: Singles) -> Singles:
    return scale.astype(np.float16).astype(np.float32)
