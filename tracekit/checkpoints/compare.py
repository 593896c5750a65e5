"""Two checkpoints, tensor by tensor: what is missing or extra, and where shapes, dtypes and values differ.

Values are read in blocks of a mapped file, so memory does not grow with the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.dtypes import round_to, to_float
from tracekit.trace import Json

BLOCK = 1 << 20
"""Elements compared at a time; a multiple of every quantised block."""
NARROW = ("bfloat16", "float16")
"""Formats that a checkpoint may have gone through on its way."""
GAIN_RESIDUAL = 0.01
"""Largest part of a difference that a gain may leave unexplained and still be named."""
HEADS = ("lm_head.weight", "embed_tokens.weight")
"""Two names of one tensor where embeddings are tied; a checkpoint may leave the first out."""
KNOWN_EXTRAS = {
    "spk_embed_affine_layer": "projects a speaker's embedding, which CosyVoice3's language model does not take",
}
"""Last but one part of a parameter's name -> what it is for."""


class Parameters(Protocol):
    """A checkpoint of any kind. `dtype` is torch's word or a quantisation's name."""

    path: str

    @property
    def names(self) -> list[str]: ...
    def dtype(self, name: str) -> str: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def values(self, name: str, first: int, stop: int) -> NDArray[Any]:
        """Elements [first, stop) of the flattened tensor as floats. `first` is a multiple of `BLOCK`."""


class SafetensorsParameters:
    """Safetensors files, one or a folder's; raises TraceError as `Checkpoint` does."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._checkpoint = Checkpoint(path)

    @property
    def names(self) -> list[str]:
        return self._checkpoint.names

    def dtype(self, name: str) -> str:
        return self._checkpoint.dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.shape(name)

    def values(self, name: str, first: int, stop: int) -> NDArray[Any]:
        return to_float(self._checkpoint.bits(name).reshape(-1)[first:stop], self.dtype(name))


@dataclass(frozen=True)
class ValueDifference:
    """How far one tensor's values are apart."""

    name: str
    relative: float  # |other - one| / |one|
    max_abs: float
    index: tuple[int, ...]  # of the largest difference
    one: float
    other: float
    differing: int  # elements
    elements: int
    note: str | None  # a simple relation that explains all of it

    def to_json(self) -> Json:
        numbers = ("relative", "max_abs", "one", "other")
        return vars(self) | {name: _finite(getattr(self, name)) for name in numbers} | {"index": list(self.index)}


@dataclass(frozen=True)
class WeightDiff:
    """What two checkpoints do not share; names are the first one's."""

    compared: int
    missing: tuple[str, ...]  # in the second
    extra: tuple[str, ...]  # names of the second
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: Mapping[str, tuple[str, str]]
    values: tuple[ValueDifference, ...]  # largest first
    notes: tuple[str, ...] = field(default=())

    @property
    def same(self) -> bool:
        return not (self.missing or self.extra or self.shapes or self.dtypes or self.values)

    def to_json(self) -> Json:
        return {
            "format": 1,
            "verdict": "same" if self.same else "different",
            "compared": self.compared,
            "missing": list(self.missing),
            "extra": list(self.extra),
            "shapes": {name: [list(one), list(other)] for name, (one, other) in self.shapes.items()},
            "dtypes": {name: list(pair) for name, pair in self.dtypes.items()},
            "values": [difference.to_json() for difference in self.values],
            "notes": list(self.notes),
        }


def diff_weights(one: Parameters, other: Parameters) -> WeightDiff:
    """Compare every tensor that both have; a common prefix on one side is stripped, a tied head may be left out."""
    partner, notes = _partners(one, other)
    missing = [name for name in one.names if name not in partner]
    extra = [name for name in other.names if name not in set(partner.values())]
    for side, left in ((one, missing), (other, extra)):
        notes += _drop_tied(side, left)
    notes += _known(missing + extra)
    shapes = {a: (one.shape(a), other.shape(b)) for a, b in partner.items() if one.shape(a) != other.shape(b)}
    dtypes = {a: (one.dtype(a), other.dtype(b)) for a, b in partner.items() if one.dtype(a) != other.dtype(b)}
    alike = {a: b for a, b in partner.items() if a not in shapes}
    found = [difference for a, b in alike.items() if (difference := _compare(one, a, other, b))]
    found.sort(key=lambda difference: -_rank(difference))
    return WeightDiff(len(partner), tuple(missing), tuple(extra), shapes, dtypes, tuple(found), tuple(notes))


def _rank(difference: ValueDifference) -> float:
    return difference.relative if math.isfinite(difference.relative) else math.inf


def _finite(value: float) -> float | str:
    """JSON has no word for what is not finite."""
    return value if math.isfinite(value) else str(value)


# -------------------------------------------------------------------- names


def _partners(one: Parameters, other: Parameters) -> tuple[dict[str, str], list[str]]:
    """Names of the first -> names of the second, and what was said of prefixes."""
    equal = set(one.names) & set(other.names)
    rest, others = ([name for name in side.names if name not in equal] for side in (one, other))
    ours, theirs = _prefix(rest, others), _prefix(others, rest)
    known = {name.removeprefix(theirs): name for name in others} | {name: name for name in equal}
    shorter = {name: name if name in equal else name.removeprefix(ours) for name in one.names}
    pairs = {
        name: known[short]
        for name, short in shorter.items()
        if short in known and (name in equal or short not in equal)
    }
    notes = [
        f"{side.path}: names are compared without their prefix {head!r}"
        for side, head in ((one, ours), (other, theirs))
        if head and len(pairs) > len(equal)
    ]
    return pairs, notes


def _prefix(names: list[str], others: list[str]) -> str:
    """The dotted beginning whose removal makes most of `names` names of the others."""
    wanted = set(others)
    tails = {name.split(".", 1)[-1] for name in others[:3]} | set(others[:3])
    heads = {name.removesuffix(tail) for name in names for tail in tails if name.endswith("." + tail)}

    def matches(head: str) -> int:
        return sum(name.removeprefix(head) in wanted for name in names)

    best = max(sorted(heads), key=matches, default="")
    return best if best and matches(best) else ""


def _drop_tied(side: Parameters, left: list[str]) -> list[str]:
    """Takes a head out of `left` that repeats its own side's embeddings; says so."""
    head, embeddings = HEADS
    for name in [name for name in left if name.endswith(head)]:
        twin = next((known for known in side.names if known.endswith(embeddings)), None)
        if twin and side.shape(twin) == side.shape(name) and _compare(side, name, side, twin) is None:
            left.remove(name)
            return [f"{name} is on one side only, and repeats {twin} (tied)"]
    return []


def _known(left: list[str]) -> list[str]:
    parts = {part for name in left for part in name.split(".")}
    return [f"{part}.* {use}" for part, use in KNOWN_EXTRAS.items() if part in parts]


# -------------------------------------------------------------------- values


@dataclass
class _Relations:
    """Sums over the blocks of a tensor that tell how the second side came from the first."""

    own: float = 0.0
    cross: float = 0.0
    theirs: float = 0.0
    roundings: set[tuple[str, str]] = field(
        default_factory=lambda: {(dtype, side) for dtype in NARROW for side in ("one", "other")}
    )

    def add(self, one: NDArray[Any], other: NDArray[Any]) -> None:
        a, b = one.astype(np.float64), other.astype(np.float64)
        self.own += float(a @ a)
        self.cross += float(a @ b)
        self.theirs += float(b @ b)
        for dtype, side in tuple(self.roundings):
            source, result = (one, other) if side == "other" else (other, one)
            if not np.array_equal(to_float(round_to(source, dtype), dtype), result):
                self.roundings.discard((dtype, side))

    def note(self, squared: float) -> str | None:
        """The simplest relation that explains the difference."""
        for dtype, side in sorted(self.roundings):
            return f"the {'second' if side == 'other' else 'first'} is the other, rounded to {dtype}"
        gain = self.cross / self.own if self.own else math.nan
        left = self.theirs - gain * self.cross
        if math.isfinite(gain) and left <= GAIN_RESIDUAL**2 * squared:
            return f"the second is {gain:.6g} times the first"
        return None


def _compare(one: Parameters, name: str, other: Parameters, called: str) -> ValueDifference | None:
    """None where all values are the same (NaN is the same as NaN)."""
    worst, at, pair = -1.0, 0, (0.0, 0.0)
    differing, squared, relations = 0, 0.0, _Relations()
    shape = one.shape(name)
    with np.errstate(all="ignore"):
        for first, a, b in _blocks(one, name, other, called):
            apart = _distances(a, b)
            relations.add(a, b)
            if not apart.any():
                continue
            differing += int(np.count_nonzero(apart))
            squared += float(apart @ apart)
            largest = int(np.argmax(apart))
            if apart[largest] > worst:
                worst, at, pair = float(apart[largest]), first + largest, (float(a[largest]), float(b[largest]))
    if not differing:
        return None
    relative = math.sqrt(squared / relations.own) if relations.own else math.inf
    index = tuple(int(side) for side in np.unravel_index(at, shape)) if shape else ()
    note = relations.note(squared)
    return ValueDifference(name, relative, worst, index, *pair, differing, math.prod(shape), note)


def _distances(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """|a - b| of flat blocks in float64; 0 where equal or both NaN, infinity where only one is a number."""
    if np.array_equal(a, b):
        return np.zeros(len(a))
    apart = np.abs(b.astype(np.float64) - a.astype(np.float64))
    apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    apart[np.isnan(apart)] = np.inf
    return apart


def _blocks(
    one: Parameters, name: str, other: Parameters, called: str
) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
    total = math.prod(one.shape(name))
    for first in range(0, total, BLOCK):
        stop = min(total, first + BLOCK)
        yield first, one.values(name, first, stop), other.values(called, first, stop)
