"""What torch's operations make of a generator's 32-bit words, bit for bit.

The ways from words to numbers follow `aten/src/ATen/core/DistributionsHelper.h`,
`aten/src/ATen/native/cpu/DistributionTemplates.h` and `aten/src/ATen/native/Distributions.cpp` of torch 2.7 and later;
builds before that drew exponentials and Bernoullis through MKL and are not reproduced.

float64 results go through the platform's `log1p`, `sin` and `cos`: a last-bit difference there is possible and changes
no float32 result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.torch_rng import avx_math


def race_words(categories: int) -> int:
    """Words of the generator that a race among so many categories takes: an exponential number each, of two words."""
    return 2 * categories


class Transforms(ABC):
    """torch's random operations over a source of words."""

    _normal: float | None = None
    """The second of two normals, kept for the next call (`normal_few`)."""

    @abstractmethod
    def words(self, count: int) -> NDArray[np.uint32]:
        """The next 32-bit words, u32 [count]."""

    def words64(self, count: int) -> NDArray[np.uint64]:
        """torch's `random64`, u64 [count]: the first word is the high half."""
        pairs = self.words(2 * count).astype(np.uint64).reshape(count, 2)
        return (pairs[:, 0] << np.uint64(32)) | pairs[:, 1]

    def rand(self, count: int, dtype: str = "float32") -> NDArray[Any]:
        """`torch.rand(count)` in float32 (24 bits, one word each) or float64 (53 bits, two words each)."""
        if dtype == "float64":
            return (self.words64(count) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
        return ((self.words(count) & np.uint32(0xFFFFFF)).astype(np.float64) * 2.0**-24).astype(np.float32)

    def exponential(self, count: int, rate: float = 1.0) -> NDArray[np.float64]:
        """`Tensor.exponential_(rate)` before the cast to the tensor's dtype, f64 [count]; two words each."""
        return np.asarray((-1.0 / rate) * np.log1p(-self.rand(count, "float64")))

    def bernoulli(self, count: int, p: float) -> NDArray[np.bool_]:
        """`Tensor.bernoulli_(p)` and dropout, two words each."""
        return np.asarray(self.rand(count, "float64") < p)

    def bernoulli_each(self, p: NDArray[np.float32]) -> NDArray[np.bool_]:
        """`torch.bernoulli(p)` of float32 probabilities [count], one word each."""
        return np.asarray(self.rand(p.size) < p)

    def randint(self, count: int, high: int) -> NDArray[np.int64]:
        """`torch.randint(high, (count,))`: one word each, two from 2^28 on. Raises ValueError for high < 1."""
        if high < 1:
            raise ValueError(f"randint needs a range of at least 1, not {high}")
        words = self.words64(count) if high >= 2**28 else self.words(count).astype(np.uint64)
        return (words % np.uint64(high)).astype(np.int64)

    def randperm(self, count: int) -> NDArray[np.int64]:
        """`torch.randperm(count)`, count - 1 words."""
        order = list(range(count))
        for i, word in enumerate(self.words(max(count - 1, 0)).tolist()):
            j = i + word % (count - i)
            order[i], order[j] = order[j], order[i]
        return np.array(order, dtype=np.int64)

    def normal_few(self, count: int) -> NDArray[np.float64]:
        """`torch.randn(count)` for count < 16, before the cast: Box-Muller, four words a pair, the odd one is kept."""
        return np.array([self._one_normal() for _ in range(count)], dtype=np.float64)

    def _one_normal(self) -> float:
        if self._normal is not None:
            kept, self._normal = self._normal, None
            return kept
        u1, u2 = self.rand(2, "float64")
        radius = np.sqrt(-2.0 * np.log1p(-u2))
        angle = 2.0 * np.pi * u1
        self._normal = float(radius * np.sin(angle))
        return float(radius * np.cos(angle))

    def normal(self, count: int, dtype: str = "float32") -> NDArray[Any]:
        """`torch.randn(count)` in float32 or float64, whichever of torch's ways its length takes."""
        if count < 16:
            return self.normal_few(count).astype(dtype)
        return self.normal_double(count) if dtype == "float64" else self.normal_float(count)

    def uniform(self, count: int, low: float, high: float) -> NDArray[np.float32]:
        """`Tensor.uniform_(low, high)` of float32: one fused multiply-add, as torch's AVX2 build has it.

        What rounds up to `high` becomes `low`.
        """
        span = np.float32(np.float32(high) - np.float32(low))
        wide = self.rand(count).astype(np.float64) * np.float64(span) + np.float64(np.float32(low))
        values = wide.astype(np.float32)
        values[values == np.float32(high)] = low
        return values

    def normal_float(self, count: int) -> NDArray[np.float32]:
        """`torch.randn(count)` in float32 for count >= 16, as its AVX2 build draws it; a ragged end is drawn again."""
        data = self.rand(count)
        whole = count - count % 16
        data[:whole] = _vector_box_muller(data[:whole])
        if count % 16:
            data[count - 16 :] = _vector_box_muller(self.rand(16))
        return data

    def normal_double(self, count: int) -> NDArray[np.float64]:
        """`torch.randn(count, dtype=float64)` for count >= 16; a ragged end is drawn again, as torch does."""
        data = self.rand(count, "float64")
        for first in range(0, count - 15, 16):
            data[first : first + 16] = _box_muller(data[first : first + 16])
        if count % 16:
            data[count - 16 :] = _box_muller(self.rand(16, "float64"))
        return data

    def race(self, probs: NDArray[Any]) -> NDArray[np.float32]:
        """What one sample of `torch.multinomial` compares: p / q, q exponential, f32 [categories]; two words each."""
        draws = self.exponential(probs.size).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(probs.astype(np.float32) / draws)

    def multinomial(
        self, probs: NDArray[np.float32], samples: int = 1, *, replacement: bool = False
    ) -> NDArray[np.int64]:
        """`torch.multinomial` of float32 probabilities [categories], i64 [samples].

        One sample, or without replacement: the exponential race. More with replacement: a uniform number each
        against the cumulative sum in float32.
        """
        if replacement and samples > 1:
            return self._inverse_cdf(probs, samples)
        scores = self.race(probs)
        if samples == 1:
            return np.array([np.argmax(scores)], dtype=np.int64)
        return np.argsort(-scores, kind="stable")[:samples].astype(np.int64)

    def _inverse_cdf(self, probs: NDArray[np.float32], samples: int) -> NDArray[np.int64]:
        sums = np.cumsum(probs, dtype=np.float32)
        sums = sums / sums[-1]
        sums[-1] = 1.0
        goals = self.rand(samples, "float64")
        return np.searchsorted(sums.astype(np.float64), goals, side="left").astype(np.int64)


def _vector_box_muller(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blocks of sixteen uniforms to normals: number j is paired with j + 8 (`normal_fill_16_AVX2`)."""
    blocks = data.reshape(-1, 16)
    radius = np.sqrt(np.float32(-2) * avx_math.log(np.float32(1) - blocks[:, :8]))
    sine, cosine = avx_math.sine_and_cosine(np.float32(2 * np.pi) * blocks[:, 8:])
    # torch goes on to multiply by the deviation and to add the mean, 0: that turns a negative zero into a positive one.
    return np.concatenate([radius * cosine, radius * sine], axis=1).ravel() + np.float32(0)


def _box_muller(block: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sixteen uniforms to sixteen normals: number j is paired with j + 8."""
    radius = np.sqrt(-2.0 * np.log(1.0 - block[:8]))
    angle = 2.0 * np.pi * block[8:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
