"""Which tensor of one checkpoint is which of another: by name, and by content where the names differ.

No pair is claimed that another would fit as well: tensors that hold the same numbers, or numbers that anything may hold
(all zeros), are known to be on both sides, but not which is which.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from tracekit.checkpoints.parameters import Parameters
from tracekit.dtypes import round_to, to_float

BLOCK = 1 << 20
"""Elements read at a time; a multiple of every quantised block."""
SAMPLED = 64
"""Rows and columns of a matrix whose values are compared to find the nearest one; its square of other tensors."""
CHANCE = 1e-4
"""Probability, over a whole comparison, that a pair is called nearest by accident."""


class PairedBy(Enum):
    """Why two tensors are taken for the same one."""

    NAME = "name"
    SPELLING = "spelling"
    CONTENT = "content"
    MODULE = "module"
    NEAREST = "nearest"


class Order(Enum):
    """How the second's numbers are arranged, seen from the first."""

    SAME = "same"
    TRANSPOSED = "transposed"
    OTHER = "other"


@dataclass(frozen=True)
class TensorPair:
    """Names of one tensor in two checkpoints."""

    one: str
    other: str
    by: PairedBy
    order: Order = Order.SAME


@dataclass(frozen=True)
class Pairing:
    """What two checkpoints share, in the order of the first."""

    pairs: tuple[TensorPair, ...]
    alike: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    """Names on both sides that hold the same numbers, several of them or numbers that tell nothing."""
    prefixes: tuple[tuple[str, str], ...]
    """Path of a side and the prefix that its names have beyond the other's."""


def pair_tensors(one: Parameters, other: Parameters) -> Pairing:
    """Names first, then spelling, exact content, modules whose other tensors are paired, nearest values."""
    pairs, prefixes = _by_name(one, other)
    rest = _Rest(one, other, pairs)
    _by_spelling(rest)
    alike = _by_content(rest)
    _by_module(rest)
    _by_nearest(rest)
    _by_module(rest)
    place = {name: index for index, name in enumerate(one.names)}
    found = sorted(rest.pairs.values(), key=lambda pair: place[pair.one])
    return Pairing(tuple(found), alike, prefixes)


class _Rest:
    """What is not paired yet."""

    def __init__(self, one: Parameters, other: Parameters, pairs: Iterable[TensorPair]) -> None:
        self.sides = one, other
        self.pairs = {pair.one: pair for pair in pairs}
        taken = {pair.other for pair in self.pairs.values()}
        self.names = (
            [name for name in one.names if name not in self.pairs],
            [name for name in other.names if name not in taken],
        )
        self._seen: dict[tuple[int, str], Content] = {}

    def take(self, one: str, other: str, by: PairedBy, order: Order = Order.SAME) -> None:
        self.pairs[one] = TensorPair(one, other, by, order)
        self.drop(0, one)
        self.drop(1, other)

    def drop(self, side: int, name: str) -> None:
        self.names[side].remove(name)

    def content(self, side: int, name: str) -> Content:
        if (side, name) not in self._seen:
            self._seen[side, name] = content_of(self.sides[side], name)
        return self._seen[side, name]


# -------------------------------------------------------------------- names


def _by_name(one: Parameters, other: Parameters) -> tuple[list[TensorPair], tuple[tuple[str, str], ...]]:
    """Equal names, and names that are equal without a prefix that one side has."""
    equal = set(one.names) & set(other.names)
    rest, others = ([name for name in side.names if name not in equal] for side in (one, other))
    ours, theirs = _prefix(one, rest, other, others), _prefix(other, others, one, rest)
    known = {name.removeprefix(theirs): name for name in others} | {name: name for name in equal}
    pairs = [TensorPair(name, name, PairedBy.NAME) for name in one.names if name in equal]
    taken = set(equal)
    for name in rest:
        partner = known.get(name.removeprefix(ours))
        if partner is not None and partner not in taken:
            pairs.append(TensorPair(name, partner, PairedBy.NAME))
            taken.add(partner)
    told = [(side.path, head) for side, head in ((one, ours), (other, theirs)) if head and len(pairs) > len(equal)]
    return pairs, tuple(told)


def _prefix(side: Parameters, names: list[str], against: Parameters, others: list[str]) -> str:
    """The dotted beginning whose removal makes most of `names` names of the others, of the same shape. None where two
    do so equally well and hold equally many equal tensors: which half of a model the other is, is not guessed."""
    wanted = set(others)
    tails = {name.split(".", 1)[-1] for name in others[:3]} | set(others[:3])
    heads = {name.removesuffix(tail) for name in names for tail in tails if name.endswith("." + tail)}

    def matches(head: str) -> tuple[int, int]:
        found = [(name, name.removeprefix(head)) for name in names if name.startswith(head)]
        found = [(name, short) for name, short in found if short in wanted]
        return sum(side.shape(name) == against.shape(short) for name, short in found), len(found)

    ranked = sorted(sorted(heads), key=matches, reverse=True)
    if not ranked or not matches(ranked[0])[1]:
        return ""
    best = [head for head in ranked if matches(head) == matches(ranked[0])]
    if len(best) == 1:
        return best[0]

    def equal(head: str) -> int:
        return sum(
            content_of(side, name).ordered == content_of(against, name.removeprefix(head)).ordered
            for name in names
            if name.startswith(head) and name.removeprefix(head) in wanted
        )

    counts = {head: equal(head) for head in best}
    most = [head for head in best if counts[head] == max(counts.values())]
    return most[0] if len(most) == 1 else ""


def _by_spelling(rest: _Rest) -> None:
    """Names of the same words, whatever stands between them (`_model.a`, `model/a`)."""
    found: tuple[dict[tuple[str, ...], list[str]], ...] = (defaultdict(list), defaultdict(list))
    for side in (0, 1):
        for name in rest.names[side]:
            found[side][tuple(re.findall(r"[A-Za-z0-9]+", name))].append(name)
    for words, names in found[0].items():
        theirs = found[1].get(words, [])
        if len(names) == len(theirs) == 1:
            rest.take(names[0], theirs[0], PairedBy.SPELLING)


def _by_module(rest: _Rest) -> None:
    """Tensors of the same last name and shape, in modules of which another tensor is paired already."""
    modules: dict[str, set[str]] = defaultdict(set)
    for pair in rest.pairs.values():
        modules[_module(pair.one)].add(_module(pair.other))
    for name in list(rest.names[0]):
        partners = modules.get(_module(name), set())
        found = [
            theirs
            for theirs in rest.names[1]
            if _module(theirs) in partners
            and theirs.rpartition(".")[2] == name.rpartition(".")[2]
            and rest.sides[0].shape(name) == rest.sides[1].shape(theirs)
        ]
        if len(found) == 1 and _module(name):
            rest.take(name, found[0], PairedBy.MODULE)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


# -------------------------------------------------------------------- content


@dataclass(frozen=True, eq=False)
class Content:
    """What a tensor holds, as float32."""

    elements: int
    ordered: int  # digest of the numbers in their order
    unordered: int  # of the numbers in any order
    telling: bool  # whether equal numbers are no accident: not one simple number all over
    sample: NDArray[np.float64]  # [rows, columns] of a matrix, else [n]


def content_of(side: Parameters, name: str) -> Content:
    """One pass over blocks."""
    shape = side.shape(name)
    total = math.prod(shape)
    places = _places(shape)
    digest, unordered = xxhash.xxh3_64(), np.uint64(0)
    sample: NDArray[np.float64] = np.empty(len(places), np.float64)
    low, high = math.inf, -math.inf
    with np.errstate(all="ignore"):
        for first in range(0, total, BLOCK):
            stop = min(total, first + BLOCK)
            values = side.values(name, first, stop)
            numbers = np.ascontiguousarray(values, np.float32) + np.float32(0)  # -0 is 0
            bits = numbers.view(np.uint32)
            digest.update(bits.view(np.uint8).data)
            unordered = unordered + _mixed(bits).sum(dtype=np.uint64)
            at, end = np.searchsorted(places, (first, stop))
            sample[at:end] = values[places[at:end] - first]
            low, high = min(low, float(np.min(numbers))), max(high, float(np.max(numbers)))
    simple = to_float(round_to(np.array([low]), "bfloat16"), "bfloat16")
    telling = (low != high and total > 1) or float(simple[0]) != low
    if len(shape) == 2:
        sample = sample.reshape(min(SAMPLED, shape[0]), min(SAMPLED, shape[1]))
    return Content(total, digest.intdigest(), int(unordered), telling, sample)


def _mixed(bits: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """The finaliser of MurmurHash3, whose sum is a digest of the numbers in any order."""
    mixed = bits.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed ^= mixed >> np.uint64(33)
        mixed *= np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(33))


def _places(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Flat indices of the sample, ascending."""
    if len(shape) == 2:
        rows, columns = (_spread(side, SAMPLED) for side in shape)
        return (rows[:, None] * shape[1] + columns).reshape(-1)
    return _spread(math.prod(shape), SAMPLED * SAMPLED)


def _spread(total: int, count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, max(0, total - 1), min(total, count)).astype(np.int64))


def _by_content(rest: _Rest) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Takes what holds the same numbers, in whatever order; gives what cannot be told apart."""
    sizes = [{math.prod(side.shape(name)) for name in rest.names[at]} for at, side in enumerate(rest.sides)]
    groups: dict[tuple[int, int], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for at, side in enumerate(rest.sides):
        for name in rest.names[at]:
            if math.prod(side.shape(name)) in sizes[1 - at]:
                content = rest.content(at, name)
                groups[content.elements, content.unordered][at].append(name)
    alike = []
    for ours, theirs in groups.values():
        if not ours or not theirs:
            continue
        if len(ours) == len(theirs) == 1 and rest.content(0, ours[0]).telling:
            rest.take(ours[0], theirs[0], PairedBy.CONTENT, _order(rest, ours[0], theirs[0]))
        elif len({rest.content(at, name).ordered for at, names in enumerate((ours, theirs)) for name in names}) == 1:
            alike.append((tuple(ours), tuple(theirs)))
            for at, names in enumerate((ours, theirs)):
                for name in names:
                    rest.drop(at, name)
    return tuple(alike)


def _order(rest: _Rest, one: str, other: str) -> Order:
    if rest.content(0, one).ordered == rest.content(1, other).ordered:
        return Order.SAME
    shape = rest.sides[0].shape(one)
    if len(shape) == 2 and rest.sides[1].shape(other) == shape[::-1]:
        turned = Transposed(rest.sides[1], (other,))
        if content_of(turned, other).ordered == rest.content(0, one).ordered:
            return Order.TRANSPOSED
    return Order.OTHER


class Transposed(Parameters):
    """Parameters of which some matrices are transposed; holds one of them at a time."""

    def __init__(self, side: Parameters, turned: Iterable[str]) -> None:
        super().__init__(side.path, {}, side.config)
        self._side, self._turned = side, frozenset(turned)
        self._held: tuple[str, NDArray[Any]] | None = None

    @property
    def names(self) -> list[str]:
        return self._side.names

    def dtype(self, name: str) -> str:
        return self._side.dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._side.shape(name)
        return shape[::-1] if name in self._turned else shape

    def values(self, name: str, first: int, stop: int) -> NDArray[Any]:
        if name not in self._turned:
            return self._side.values(name, first, stop)
        if self._held is None or self._held[0] != name:
            shape = self._side.shape(name)
            self._held = name, self._side.values(name, 0, math.prod(shape)).reshape(shape).T.reshape(-1)
        return self._held[1][first:stop]


# -------------------------------------------------------------------- nearest values


def _by_nearest(rest: _Rest) -> None:
    """Takes pairs that are less than half as far from each other as either is from any other tensor of its shape, and
    from zero. The numbers have to be so many that it is no accident."""
    shapes: dict[tuple[int, ...], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for at, side in enumerate(rest.sides):
        for name in rest.names[at]:
            shape = side.shape(name)
            shapes[tuple(sorted(shape)) if len(shape) == 2 else shape][at].append(name)
    for ours, theirs in shapes.values():
        for one, other, order in _nearest(rest, ours, theirs):
            rest.take(one, other, PairedBy.NEAREST, order)


@dataclass(frozen=True, eq=False)
class _Option:
    """A tensor of the second side, as it is or transposed."""

    name: str
    order: Order
    shape: tuple[int, ...]
    sample: NDArray[np.float64]


def _nearest(rest: _Rest, ours: list[str], theirs: list[str]) -> list[tuple[str, str, Order]]:
    options = [option for name in theirs for option in _options(rest, name)]
    found = []
    for name in ours:
        shape, point = rest.sides[0].shape(name), rest.content(0, name).sample
        fitting = [option for option in options if option.shape == shape]
        near = [_apart(option.sample, point) for option in fitting]
        if not near or not math.isfinite(min(near)):
            continue
        best, apart = fitting[int(np.argmin(near))], min(near)
        rivals = [option.sample for option in fitting if option is not best]
        own = [rest.content(0, each).sample for each in ours if each != name and rest.sides[0].shape(each) == shape]
        clear = all(apart < min(_apart(rival, best.sample), _apart(rival, point)) / 2 for rival in (*rivals, *own))
        scale = min(float(np.linalg.norm(best.sample)), float(np.linalg.norm(point)))
        chance = math.log(CHANCE / (len(ours) * len(fitting)))
        if clear and 0 < apart < scale / 2 and point.size * math.log(apart / scale) < chance:
            found.append((name, best.name, best.order))
    partners = [other for _, other, _ in found]
    return [each for each in found if partners.count(each[1]) == 1]


def _options(rest: _Rest, name: str) -> list[_Option]:
    shape, sample = rest.sides[1].shape(name), rest.content(1, name).sample
    as_is = _Option(name, Order.SAME, shape, sample)
    return [as_is] if len(shape) != 2 else [as_is, _Option(name, Order.TRANSPOSED, shape[::-1], sample.T)]


def _apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(one - other))
