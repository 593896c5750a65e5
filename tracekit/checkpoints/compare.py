"""Two checkpoints, tensor by tensor: what is missing or extra, and where shapes, dtypes and values differ.

Values are read in blocks of a mapped file, so memory does not grow with the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.checkpoints import relations
from tracekit.checkpoints.adapter import Adapter
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.pairing import BLOCK, Order, TensorPair, Transposed, content_of, pair_tensors
from tracekit.checkpoints.parameters import Parameters
from tracekit.checkpoints.relations import Energies, Relation, Scalars

HEADS = ("lm_head.weight", "embed_tokens.weight")
"""Two names of one tensor where embeddings are tied; a checkpoint may leave the first out."""
PARTS = 12
"""Parts of a model that are told apart, at most."""


@dataclass(frozen=True)
class PrefixIgnored:
    """Names of a file are compared without what all of them begin with."""

    path: str
    prefix: str


@dataclass(frozen=True)
class TiedHead:
    """A head on one side only that repeats that side's embeddings."""

    name: str
    embeddings: str


@dataclass(frozen=True)
class OtherOrder:
    """A tensor of another shape that holds the same numbers in another order."""

    name: str


Note = PrefixIgnored | TiedHead | OtherOrder
"""What to know beside the differences."""


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
    relation: Relation | None  # how the second came from the first, where that explains all of it
    unrelated: bool = False  # no nearer to each other than to zero
    held_as: str | None = None  # where the second has these very numbers under another name


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
    notes: tuple[Note, ...] = ()
    transposed: frozenset[str] = frozenset()  # of other shape, with the first's values transposed

    @property
    def same(self) -> bool:
        return not (self.missing or self.extra or self.shapes or self.dtypes or self.values)


def diff_weights(one: Parameters, other: Parameters, adapter: Adapter | None = None) -> WeightDiff:
    """Compare every tensor that both have, paired by name or by content (`tracekit.checkpoints.pairing`); a tied head
    may be left out. `adapter`: what may have been added to either, to say how many times."""
    pairing = pair_tensors(one, other)
    notes: list[Note] = [PrefixIgnored(path, head) for path, head in pairing.prefixes]
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
    turned = Transposed(other, (pair.other for pair in pairing.pairs if pair.order is Order.TRANSPOSED))
    partner = {pair.one: pair.other for pair in pairing.pairs}
    shapes = {a: (one.shape(a), other.shape(b)) for a, b in partner.items() if one.shape(a) != turned.shape(b)}
    dtypes = {a: (one.dtype(a), other.dtype(b)) for a, b in partner.items() if one.dtype(a) != other.dtype(b)}
    arranged = {pair.one for pair in pairing.pairs if pair.order is Order.OTHER}
    found = [
        replace(difference, relation=difference.relation or (relations.Rearranged() if a in arranged else None))
        for a, b in partner.items()
        if a not in shapes and (difference := _compare(one, a, turned, b, adapter))
    ]
    found = _moved(one, other, partner, found)
    found.sort(key=lambda difference: -_rank(difference))
    notes += [OtherOrder(name) for name in shapes if name in arranged]
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
        frozenset(name for name in shapes if _is_transposed(one, name, other, partner[name])),
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
    of_graph = {name for name in left if side.settings(name)}
    left[:] = [name for name in left if name not in of_graph]
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


def relation_of(one: Checkpoint, other: Checkpoint, parameter: str) -> Relation | None:
    """How a parameter of the second came from the first's; None where there is no such relation, or no such parameter
    of one shape."""
    names = one.find(parameter), other.find(parameter)
    if names[0] is None or names[1] is None or one.shape(names[0]) != other.shape(names[1]):
        return None
    found = _compare(one.file, names[0], other.file, names[1])
    return None if found is None else found.relation


def _rank(difference: ValueDifference) -> float:
    return difference.relative if math.isfinite(difference.relative) else math.inf


# -------------------------------------------------------------------- names


def _drop_tied(side: Parameters, left: list[str]) -> list[Note]:
    """Takes a head out of `left` that repeats its own side's embeddings; says so."""
    head, embeddings = HEADS
    for name in [name for name in left if name.endswith(head)]:
        twin = next((known for known in side.names if known.endswith(embeddings)), None)
        if twin and side.shape(twin) == side.shape(name) and _compare(side, name, side, twin) is None:
            left.remove(name)
            return [TiedHead(name, twin)]
    return []


# -------------------------------------------------------------------- values


def _compare(
    one: Parameters, name: str, other: Parameters, called: str, adapter: Adapter | None = None
) -> ValueDifference | None:
    """None where all values are the same (NaN is the same as NaN)."""
    worst, at, pair = -1.0, 0, (0.0, 0.0)
    differing, squared, scalars = 0, 0.0, Scalars()
    shape = one.shape(name)
    with np.errstate(all="ignore"):
        for first, a, b in _blocks(one, name, other, called):
            apart = _distances(a, b)
            scalars.add(a, b)
            if not apart.any():
                continue
            differing += int(np.count_nonzero(apart))
            squared += float(apart @ apart)
            largest = int(np.argmax(apart))
            if apart[largest] > worst:
                worst, at, pair = float(apart[largest]), first + largest, (float(a[largest]), float(b[largest]))
    if not differing:
        return None
    relative = math.sqrt(squared / scalars.own) if scalars.own else math.inf
    index = tuple(int(side) for side in np.unravel_index(at, shape)) if shape else ()
    relation: Relation | None = scalars.relation(squared, math.prod(shape))
    if relation is None:
        update = None if adapter is None else adapter.update(name)
        energies = Energies(scalars.own, scalars.theirs, squared)
        dtypes = (one.dtype(name), other.dtype(called))
        relation = relations.between(
            (shape, other.shape(called)), dtypes, energies, lambda: _blocks(one, name, other, called), update
        )
    unrelated = math.isfinite(squared) and squared >= max(scalars.own, scalars.theirs)
    return ValueDifference(name, relative, worst, index, *pair, differing, math.prod(shape), relation, unrelated)


def _is_transposed(one: Parameters, name: str, other: Parameters, called: str) -> bool:
    """Whether a tensor of other shape holds the first's values transposed."""
    shapes = (one.shape(name), other.shape(called))
    if len(shapes[0]) != 2 or shapes[0] != shapes[1][::-1]:
        return False
    scalars = Scalars()
    for _, a, b in _blocks(one, name, other, called):
        scalars.add(a, b)
    energies = Energies(scalars.own, scalars.theirs, math.inf)
    dtypes = (one.dtype(name), other.dtype(called))
    found = relations.between(shapes, dtypes, energies, lambda: _blocks(one, name, other, called))
    return isinstance(found, relations.Transposed)


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
