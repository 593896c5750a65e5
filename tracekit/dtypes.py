"""Names, storage and precision of the number formats that models use.

A dtype is named by torch's word. numpy has no bfloat16 and no float8, so those are held as the unsigned integers of
their bits; `to_float` gives the values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_DIMENSIONS = 32
"""Of a tensor; numpy has no more, before its version 2."""

STORAGE: dict[str, np.dtype[Any]] = {
    "bool": np.dtype("?"),
    "uint8": np.dtype("u1"),
    "int8": np.dtype("i1"),
    "uint16": np.dtype("<u2"),
    "int16": np.dtype("<i2"),
    "uint32": np.dtype("<u4"),
    "int32": np.dtype("<i4"),
    "uint64": np.dtype("<u8"),
    "int64": np.dtype("<i8"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "float8_e4m3fn": np.dtype("u1"),
    "float8_e5m2": np.dtype("u1"),
}
"""torch's word -> how numpy holds it, little-endian."""

SAFETENSORS: dict[str, str] = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""torch's word -> safetensors' word."""

FROM_SAFETENSORS: dict[str, str] = {word: name for name, word in SAFETENSORS.items()}

UNIT_ROUNDOFF: dict[str, float] = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float8_e4m3fn": 2.0**-4,
    "float8_e5m2": 2.0**-3,
}
"""Largest relative error of rounding to nearest in each float format."""

SIXTEEN_BITS = ("bfloat16", "float16")
"""The formats that engines compute in for speed."""

SMALLEST: dict[str, float] = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
"""Smallest number above zero of each format: below the normal range, rounding is no longer relative."""

SMALLEST_BY_UNIT = {UNIT_ROUNDOFF[dtype]: smallest for dtype, smallest in SMALLEST.items()}
"""The same by the format's unit roundoff."""


_NOT_FINITE: dict[str, int] = {
    "float64": 0x7FF0_0000_0000_0000,
    "float32": 0x7F80_0000,
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float8_e4m3fn": 0x7F,
    "float8_e5m2": 0x7C,
}
"""Bits without the sign from which on a float is NaN or an infinity."""


def is_float(dtype: str) -> bool:
    """Whether `dtype` names a floating-point format."""
    return dtype in UNIT_ROUNDOFF


def all_finite(bits: NDArray[Any], dtype: str) -> bool:
    """Whether none of the stored bits is NaN or an infinity; no format but a float has those."""
    if dtype not in _NOT_FINITE or bits.size == 0:
        return True
    if dtype in ("float32", "float64"):
        flat = bits.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.vdot(flat, flat)):  # one pass; squares of finite values may overflow
                return True
    kind = np.dtype(f"u{bits.itemsize}")
    magnitude = bits.view(kind) & kind.type(2 ** (8 * bits.itemsize - 1) - 1)
    return int(magnitude.max()) < _NOT_FINITE[dtype]


def to_float(bits: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The values of stored bits, same shape: float64 stays float64, everything else becomes float32.

    Raises KeyError for a dtype that is not in `STORAGE`.
    """
    if dtype in ("float32", "float64"):
        return bits
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype in ("float8_e4m3fn", "float8_e5m2"):
        values: NDArray[np.float32] = _float8_table(dtype)[bits]
        return values
    if STORAGE[dtype].kind in "iu" and STORAGE[dtype].itemsize > 2:
        return bits.astype(np.float64)
    return bits.astype(np.float32)


ROUNDED = frozenset({"bfloat16", "float16", "float32", "float64"})
"""What `round_to` rounds to: floats of 16 bits or more."""


def round_to(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Float values rounded to nearest even in `dtype`, as its stored bits; the inverse of `to_float`.

    Raises KeyError for a dtype that is no float of 16 bits or more.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded >>= np.uint32(16)
        halves, nan = rounded.astype(np.uint16), np.isnan(values)
        return np.where(nan, np.uint16(0x7FC0), halves) if nan.any() else halves
    if dtype not in ROUNDED:
        raise KeyError(dtype)
    with np.errstate(over="ignore"):
        return values.astype(STORAGE[dtype])


def _float8_table(dtype: str) -> NDArray[np.float32]:
    """The 256 values of a float8 format (OCP 8-bit floating point specification, table 1)."""
    exponent_bits, mantissa_bits, bias = (4, 3, 7) if dtype == "float8_e4m3fn" else (5, 2, 15)
    code = np.arange(256, dtype=np.int64)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (code & ((1 << mantissa_bits) - 1)) / float(1 << mantissa_bits)
    value = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1.0 + fraction) * 2.0 ** (exponent - bias))
    if dtype == "float8_e4m3fn":
        value = np.where((code & 0x7F) == 0x7F, np.nan, value)
    else:
        top = exponent == 31
        value = np.where(top, np.where(fraction == 0, np.inf, np.nan), value)
    return np.asarray(sign * value, dtype=np.float32)
