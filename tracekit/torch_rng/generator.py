"""torch's CPU random numbers in numpy, bit for bit.

The engine is mt19937 (pytorch `aten/src/ATen/core/MT19937RNGEngine.h`), whose words numpy's own MT19937 makes from the
same state. The ways from words to numbers follow `aten/src/ATen/core/DistributionsHelper.h`,
`aten/src/ATen/native/cpu/DistributionTemplates.h` and `aten/src/ATen/native/Distributions.cpp` of torch 2.7 and later;
builds before that drew exponentials and Bernoullis through MKL and are not reproduced.

float64 results go through the platform's `log1p`, `sin` and `cos`: a last-bit difference there is possible and changes
no float32 result.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.torch_rng import avx_math as mathfun

BLOCK = 624
"""Words that one twist makes."""
STATE_BYTES = 5056
"""Length of `torch.get_rng_state()`."""
SEARCH_BLOCKS = 200_000
"""How many twists from the seed `TorchGenerator.from_state` looks for a state: 125 million words, under a second."""

_STATE = struct.Struct("<Qii Q")  # seed, left, seeded, next; then 624 u64, the cached normals
_KEY_END = 24 + 8 * BLOCK


class TorchGenerator:
    """torch's CPU generator: `torch.Generator().manual_seed(seed)`.

    `offset` counts 32-bit words since seeding; None for a generator made from a state too far from its seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed % 2**64
        self.offset: int | None = 0
        self._bits = np.random.MT19937()
        self._set_key(_fresh_key(self.seed), BLOCK)
        self._normal: float | None = None

    @classmethod
    def from_state(cls, state: bytes) -> TorchGenerator:
        """The generator of `torch.get_rng_state()`'s bytes, offset found. Raises ValueError where they are not that."""
        generator = cls.resume(state)
        generator.offset = _offset(_parse(state))
        return generator

    @classmethod
    def resume(cls, state: bytes) -> TorchGenerator:
        """As `from_state`, but at once: how far the state is from its seed is not looked for, `offset` is None."""
        parsed = _parse(state)
        generator = cls(parsed.seed)
        generator._set_key(parsed.key, parsed.used)
        generator.offset = None
        generator._normal = parsed.normal
        return generator

    def _set_key(self, key: NDArray[np.uint32], used: int) -> None:
        self._bits.state = {"bit_generator": "MT19937", "state": {"key": key.astype(np.uint64), "pos": used}}

    def words(self, count: int) -> NDArray[np.uint32]:
        """The next tempered 32-bit words, u32 [count]."""
        if self.offset is not None:
            self.offset += count
        return self._bits.random_raw(count).astype(np.uint32)

    def skip(self, count: int) -> None:
        """Move on by `count` words."""
        for first in range(0, count, 1 << 20):
            self.words(min(1 << 20, count - first))

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
    radius = np.sqrt(np.float32(-2) * mathfun.log(np.float32(1) - blocks[:, :8]))
    sine, cosine = mathfun.sine_and_cosine(np.float32(2 * np.pi) * blocks[:, 8:])
    # torch goes on to multiply by the deviation and to add the mean, 0: that turns a negative zero into a positive one.
    return np.concatenate([radius * cosine, radius * sine], axis=1).ravel() + np.float32(0)


def _box_muller(block: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sixteen uniforms to sixteen normals: number j is paired with j + 8."""
    radius = np.sqrt(-2.0 * np.log(1.0 - block[:8]))
    angle = 2.0 * np.pi * block[8:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


@dataclass(frozen=True)
class _State:
    seed: int
    key: NDArray[np.uint32]
    used: int  # words of this block that are gone; BLOCK: the next word needs a twist
    fresh: bool
    normal: float | None


def _parse(state: bytes) -> _State:
    if len(state) != STATE_BYTES:
        raise ValueError(f"a CPU generator state has {STATE_BYTES} bytes, not {len(state)}")
    seed, left, _, following = _STATE.unpack_from(state)
    if not 1 <= left <= BLOCK or following > BLOCK:
        raise ValueError("not the state of a CPU generator")
    key = np.frombuffer(state, "<u8", BLOCK, 24).astype(np.uint32)
    (normal,) = struct.unpack_from("<d", state, 5024)
    (has_normal,) = struct.unpack_from("<i", state, 5040)
    fresh = left == 1 and following == 0
    return _State(seed, key, BLOCK if left == 1 else following, fresh, normal if has_normal else None)


def _fresh_key(seed: int) -> NDArray[np.uint32]:
    """mt19937's key of a seed; only its low 32 bits count. numpy's legacy seeding is the same recurrence."""
    return np.asarray(np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)["state"]["key"], dtype=np.uint32)


def _offset(parsed: _State) -> int | None:
    """Words since seeding, found by twisting on from the seed; None beyond `SEARCH_BLOCKS`."""
    if parsed.fresh:
        return 0
    return _words_to(np.random.MT19937(), _fresh_key(parsed.seed), BLOCK, parsed)


def _words_to(bits: np.random.MT19937, key: NDArray[np.uint32], used: int, goal: _State) -> int | None:
    if np.array_equal(key, goal.key) and used <= goal.used:
        return goal.used - used
    bits.state = {"bit_generator": "MT19937", "state": {"key": key.astype(np.uint64), "pos": BLOCK}}
    for blocks in range(1, SEARCH_BLOCKS + 1):
        bits.random_raw(BLOCK, output=False)
        if np.array_equal(bits.state["state"]["key"], goal.key):
            return blocks * BLOCK + goal.used - used
    return None


def words_between(before: bytes, after: bytes) -> int | None:
    """32-bit words used between two states of one generator, or None where `after` does not follow within reach.

    Raises ValueError where one of them is not a CPU generator's state.
    """
    if before == after:
        return 0
    first, second = _parse(before), _parse(after)
    return _words_to(np.random.MT19937(), first.key, first.used, second)


def offset_of(state: bytes) -> tuple[int, int | None]:
    """Seed of a CPU generator's state, and words since seeding (None where out of reach)."""
    parsed = _parse(state)
    return parsed.seed, _offset(parsed)
