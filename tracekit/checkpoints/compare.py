"""Two checkpoints, tensor by tensor: what is missing or extra, and where shapes, dtypes and values differ.

Values are read in blocks of a mapped file, so memory does not grow with the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.checkpoints.pairing import BLOCK, Order, PairedBy, TensorPair, Transposed, content_of, pair_tensors
from tracekit.checkpoints.parameters import Parameters
from tracekit.dtypes import round_to, to_float
from tracekit.trace import Json

NARROW = ("bfloat16", "float16")
"""Formats that a checkpoint may have gone through on its way."""
GAIN_RESIDUAL = 0.01
"""Largest part of a difference that a gain may leave unexplained and still be named."""
HEADS = ("lm_head.weight", "embed_tokens.weight")
"""Two names of one tensor where embeddings are tied; a checkpoint may leave the first out."""
PARTS = 12
"""Parts of a model that are told apart, at most."""
REARRANGED = "the same numbers in another order"
KNOWN_EXTRAS = {
    "spk_embed_affine_layer": "projects a speaker's embedding, which CosyVoice3's language model does not take",
}
"""Last but one part of a parameter's name -> what it is for."""


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
    unrelated: bool = False  # no nearer to each other than to zero
    held_as: str | None = None  # where the second has these very numbers under another name

    def to_json(self) -> Json:
        numbers = ("relative", "max_abs", "one", "other")
        return vars(self) | {name: _finite(getattr(self, name)) for name in numbers} | {"index": list(self.index)}


@dataclass(frozen=True)
class Part:
    """Tensors of the first whose names begin alike."""

    name: str
    tensors: int
    differing: int
    missing: int
    unrelated: int
    largest: ValueDifference | None  # of those whose values differ


@dataclass(frozen=True)
class WeightDiff:
    """What two checkpoints do not share; names are the first one's."""

    compared: int
    missing: tuple[str, ...]  # in the second
    extra: tuple[str, ...]  # names of the second
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: Mapping[str, tuple[str, str]]
    values: tuple[ValueDifference, ...]  # largest first
    pairs: tuple[TensorPair, ...] = ()
    alike: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()  # names on both sides that hold the same numbers
    settings: tuple[int, int] = (0, 0)  # of a side's graph, without a partner: axes, shapes, single numbers
    parts: tuple[Part, ...] = ()
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
            "renamed": [
                {"first": pair.one, "second": pair.other, "by": pair.by.value, "order": pair.order.value}
                for pair in self.pairs
                if pair.by is not PairedBy.NAME
            ],
            "alike": [[list(ours), list(theirs)] for ours, theirs in self.alike],
            "settings": list(self.settings),
            "notes": list(self.notes),
        }


def diff_weights(one: Parameters, other: Parameters) -> WeightDiff:
    """Compare every tensor that both have, paired by name or by content (`tracekit.checkpoints.pairing`); a tied head
    may be left out."""
    pairing = pair_tensors(one, other)
    notes = [f"{path}: names are compared without their prefix {head!r}" for path, head in pairing.prefixes]
    paired = ({pair.one for pair in pairing.pairs}, {pair.other for pair in pairing.pairs})
    for at in (0, 1):
        paired[at].update(name for group in pairing.alike for name in group[at])
    left = [
        [name for name in side.names if name not in taken] for side, taken in zip((one, other), paired, strict=True)
    ]
    for side, names in zip((one, other), left, strict=True):
        notes += _drop_tied(side, names)
    settings = [_drop_settings(side, names) for side, names in zip((one, other), left, strict=True)]
    missing, extra = left
    notes += _known(missing + extra)
    turned = Transposed(other, (pair.other for pair in pairing.pairs if pair.order is Order.TRANSPOSED))
    partner = {pair.one: pair.other for pair in pairing.pairs}
    shapes = {a: (one.shape(a), other.shape(b)) for a, b in partner.items() if one.shape(a) != turned.shape(b)}
    dtypes = {a: (one.dtype(a), other.dtype(b)) for a, b in partner.items() if one.dtype(a) != other.dtype(b)}
    arranged = {pair.one for pair in pairing.pairs if pair.order is Order.OTHER}
    found = [
        replace(difference, note=difference.note or (REARRANGED if a in arranged else None))
        for a, b in partner.items()
        if a not in shapes and (difference := _compare(one, a, turned, b))
    ]
    found = _moved(one, other, partner, found)
    found.sort(key=lambda difference: -_rank(difference))
    notes += [f"{name}: {REARRANGED}" for name in shapes if name in arranged]
    return WeightDiff(
        len(partner) + sum(len(ours) for ours, _ in pairing.alike),
        tuple(missing),
        tuple(extra),
        shapes,
        dtypes,
        tuple(found),
        pairing.pairs,
        pairing.alike,
        (settings[0], settings[1]),
        _parts(one, missing, {difference.name: difference for difference in found}, set(shapes)),
        tuple(notes),
    )


def _moved(
    one: Parameters, other: Parameters, partner: Mapping[str, str], found: list[ValueDifference]
) -> list[ValueDifference]:
    """Says of tensors that differ where the second holds their numbers under the name of another that differs."""
    places: dict[int, list[str]] = {}
    for difference in found:
        content = content_of(other, partner[difference.name])
        if content.telling:
            places.setdefault(content.ordered, []).append(partner[difference.name])
    if len(found) < 2:
        return found
    held = [places.get(content_of(one, difference.name).ordered, []) for difference in found]
    return [
        replace(difference, held_as=names[0]) if len(names) == 1 else difference
        for difference, names in zip(found, held, strict=True)
    ]


def _drop_settings(side: Parameters, left: list[str]) -> int:
    """Takes out of `left` what a file says to be the graph's own; how many."""
    settings = getattr(side, "settings", None)
    of_graph = [] if settings is None else [name for name in left if settings(name)]
    left[:] = [name for name in left if name not in set(of_graph)]
    return len(of_graph)


def _parts(
    side: Parameters, missing: list[str], differing: Mapping[str, ValueDifference], shapes: set[str]
) -> tuple[Part, ...]:
    """The first words of the names after what all begin with; none where that tells no part from another."""
    split = [name.split(".") for name in side.names]
    alike = takewhile(lambda words: len(set(words)) == 1, zip(*split, strict=False))
    common = sum(1 for _ in alike)
    groups: dict[str, list[str]] = {}
    for name, words in zip(side.names, split, strict=True):
        groups.setdefault(".".join(words[: common + 1]), []).append(name)
    parts = []
    for head, names in groups.items():
        apart = [differing[name] for name in names if name in differing]
        gone = sum(name in missing for name in names)
        wrong = len(apart) + sum(name in shapes for name in names)
        unrelated = sum(each.unrelated for each in apart)
        parts.append(
            Part(head, len(names), wrong, gone, unrelated, max(apart, key=lambda each: each.max_abs, default=None))
        )
    states = {(part.differing == 0, part.missing == 0) for part in parts}
    shown = len(states) > 1 and 1 < len(parts) <= PARTS and all(part.tensors > 1 for part in parts)
    return tuple(parts) if shown else ()


def _rank(difference: ValueDifference) -> float:
    return difference.relative if math.isfinite(difference.relative) else math.inf


def _finite(value: float) -> float | str:
    """JSON has no word for what is not finite."""
    return value if math.isfinite(value) else str(value)


# -------------------------------------------------------------------- names


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

    def note(self, squared: float, elements: int) -> str | None:
        """The simplest relation that explains the difference."""
        for dtype, side in sorted(self.roundings):
            return f"the {'second' if side == 'other' else 'first'} is the other, rounded to {dtype}"
        gain = self.cross / self.own if self.own else math.nan
        left = self.theirs - gain * self.cross
        if elements > 1 and math.isfinite(gain) and left <= GAIN_RESIDUAL**2 * squared:
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
    note = relations.note(squared, math.prod(shape))
    unrelated = math.isfinite(squared) and squared >= max(relations.own, relations.theirs)
    return ValueDifference(name, relative, worst, index, *pair, differing, math.prod(shape), note, unrelated)


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
