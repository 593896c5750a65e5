"""float32 log, sine and cosine as torch's AVX2 build evaluates them, bit for bit.

Source: pytorch `aten/src/ATen/native/cpu/avx_mathfun.h`, which is Pommier's vectorisation of the Cephes library. The
compiler contracts a product and a sum into one fused multiply-add wherever it can; `_fused` stands for that, and the
order of the fused steps is what matters for the last bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
F = np.float32

SMALLEST_NORMAL = F(1.1754943508222875e-38)
SQUARE_ROOT_OF_HALF = F(0.707106781186547524)
LOG_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LOG_2_PARTS = (-2.12194440e-4, 0.693359375)
FOUR_OVER_PI = F(1.27323954473516)
QUARTER_PI_PARTS = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)
COSINE_POLYNOMIAL = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
SINE_POLYNOMIAL = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)


def _fused(a: Floats, b: Floats | np.float32, c: Floats | np.float32) -> Floats:
    """a * b + c, rounded once: the product of two float32 is exact in float64."""
    return np.asarray(a.astype(np.float64) * np.float64(b) + np.float64(c), dtype=F)


def log(x: Floats) -> Floats:
    """Natural logarithm of positive numbers, f32, any shape."""
    x = np.maximum(x, SMALLEST_NORMAL)
    bits = x.view(np.uint32)
    exponent = ((bits >> np.uint32(23)).astype(np.int32) - 0x7F).astype(F) + F(1)
    x = ((bits & np.uint32(0x807FFFFF)) | np.uint32(0x3F000000)).view(F)  # mantissa in [0.5, 1)
    low = x < SQUARE_ROOT_OF_HALF
    exponent = exponent - low.astype(F)
    x = (x - F(1)) + np.where(low, x, F(0))
    square = x * x
    y = np.full_like(x, LOG_POLYNOMIAL[0])
    for coefficient in LOG_POLYNOMIAL[1:]:
        y = _fused(y, x, F(coefficient))
    y = _fused(y * x, square, exponent * F(LOG_2_PARTS[0]))
    y = _fused(-square, F(0.5), y)
    return _fused(exponent, F(LOG_2_PARTS[1]), x + y)


def sine_and_cosine(x: Floats) -> tuple[Floats, Floats]:
    """Sine and cosine of moderate angles, f32, any shape."""
    sign = x.view(np.uint32) & np.uint32(0x80000000)
    x = np.abs(x)
    octant = ((x * FOUR_OVER_PI).astype(np.int32) + 1) & ~1
    y = octant.astype(F)
    for part in QUARTER_PI_PARTS:
        x = _fused(y, F(part), x)
    sine_sign = sign ^ ((octant & 4).astype(np.uint32) << np.uint32(29))
    cosine_sign = (~(octant - 2) & 4).astype(np.uint32) << np.uint32(29)
    square = x * x
    cosine = np.full_like(x, COSINE_POLYNOMIAL[0])
    for coefficient in COSINE_POLYNOMIAL[1:]:
        cosine = _fused(cosine, square, F(coefficient))
    cosine = _fused(cosine * square, square, -(square * F(0.5))) + F(1)
    sine = np.full_like(x, SINE_POLYNOMIAL[0])
    for coefficient in SINE_POLYNOMIAL[1:]:
        sine = _fused(sine, square, F(coefficient))
    sine = _fused(sine * square, x, x)
    straight = (octant & 2) == 0
    return (
        (np.where(straight, sine, cosine).view(np.uint32) ^ sine_sign).view(F),
        (np.where(straight, cosine, sine).view(np.uint32) ^ cosine_sign).view(F),
    )
