"""Inputs of a product as ggml reads them: rounded to blocks of small integers, or to 16 bits.

Before a product with quantised weights ggml quantises the other side as well, so that it can multiply integers. The
numbers that are then multiplied are these, bit for bit; the products of a block are exact, and only the sum over the
blocks is rounded.

Source: `quantize_row_q8_0`, `quantize_row_q8_1` of ggml's src/ggml-cpu/arch/x86/quants.c, `quantize_row_q8_K_ref` of
src/ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.rounding import Floats, as_stored

Singles = NDArray[np.float32]
BLOCK, LONG_BLOCK = 32, 256
LARGEST = np.float32(127)


@dataclass(frozen=True)
class Read:
    """Values [rows, width] as they are multiplied, and the sum of each 32 of them, [rows, width / 32], which is
    multiplied with the smallest value of the weight's block."""

    values: Floats
    sums: Floats


def q8_0(x: Floats) -> Read:
    """Blocks of 32: integers up to 127, and a scale in float16."""
    steps, scale = _steps(x)
    return _exactly(steps * _half(scale), x.shape)


def q8_1(x: Floats) -> Read:
    """The same with the sum of each block in float16."""
    steps, scale = _steps(x)
    counted = steps.sum(axis=2)
    stored = _half((scale[..., 0] * counted.astype(np.float32)).astype(np.float32))
    return Read((steps * _half(scale)).reshape(x.shape), stored)


def q8_k(x: Floats) -> Read:
    """Blocks of 256: integers, the largest value -127, and a scale in float32."""
    blocks = x.astype(np.float32).reshape(len(x), -1, LONG_BLOCK)
    at = np.abs(blocks).argmax(axis=2)[..., None]
    peak = np.take_along_axis(blocks, at, axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(peak == 0, np.float32(0), -LARGEST / peak).astype(np.float32)
        scale = np.where(factor == 0, np.float32(0), np.float32(1) / factor).astype(np.float32)
    steps = np.minimum(np.rint(blocks * factor), LARGEST)
    return _exactly(steps.astype(np.float64) * scale.astype(np.float64), x.shape)


def _exactly(values: Floats, shape: tuple[int, ...]) -> Read:
    """With sums that are not rounded: those of integers."""
    return Read(values.reshape(shape), values.reshape(shape[0], -1, BLOCK).sum(axis=2))


def _steps(x: Floats) -> tuple[Floats, Singles]:
    """Integers [rows, blocks, 32] and the scale of each block [rows, blocks, 1]; ties go to the even one."""
    blocks = x.astype(np.float32).reshape(len(x), -1, BLOCK)
    peak = np.abs(blocks).max(axis=2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(peak == 0, np.float32(0), LARGEST / peak).astype(np.float32)
    return np.rint(blocks * factor).astype(np.float64), (peak / LARGEST).astype(np.float32)


def _half(values: Singles) -> Floats:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float64)


def _plain(dtype: str) -> Callable[[Floats], Read]:
    return lambda x: Read(as_stored(x, dtype), np.zeros((len(x), 0)))


FORMATS: Mapping[str, tuple[Callable[[Floats], Read], int]] = {
    "Q8_0": (q8_0, BLOCK),
    "Q8_1": (q8_1, BLOCK),
    "Q8_K": (q8_k, LONG_BLOCK),
    "F16": (_plain("float16"), 1),
    "BF16": (_plain("bfloat16"), 1),
}
"""ggml's name of a format, how values are read in it, and how many of them share a scale."""
WITH_MINIMA = frozenset({"Q4_1", "Q5_1", "Q4_K", "Q5_K"})
"""Formats of a weight whose blocks of 32 have a smallest value besides their scale. ggml adds up two sums, one of the
steps above it and one of the smallest values, which nearly cancel."""


def is_known(name: str, width: int) -> bool:
    """Whether rows of `width` values can be read in a format."""
    known = FORMATS.get(name)
    return known is not None and width % known[1] == 0
