"""torch's CPU generator in numpy: mt19937, its state and seeding, bit for bit.

The engine is mt19937 (pytorch `aten/src/ATen/core/MT19937RNGEngine.h`), whose words numpy's own MT19937 makes from the
same state. What operations make of its words is in `transforms`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.torch_rng.transforms import Transforms

BLOCK = 624
"""Words that one twist makes."""
STATE_BYTES = 5056
"""Length of `torch.get_rng_state()`."""
SEARCH_BLOCKS = 200_000
"""How many twists from the seed `TorchGenerator.from_state` looks for a state: 125 million words, under a second."""

_STATE = struct.Struct("<Qii Q")  # seed, left, seeded, next; then 624 u64, the cached normals
_KEY_END = 24 + 8 * BLOCK


class TorchGenerator(Transforms):
    """torch's CPU generator: `torch.Generator().manual_seed(seed)`.

    `offset` counts 32-bit words since seeding; None for a generator made from a state too far from its seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed % 2**64
        self.offset: int | None = 0
        self._bits = np.random.MT19937()
        self._set_key(_fresh_key(self.seed), BLOCK)

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
