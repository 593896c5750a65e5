"""How one tensor came from another: rounded, cut, multiplied, reordered, transposed, or with an update of low rank.

Tensors are read in blocks. A relation is claimed where it accounts for every element: an order by two 64-bit sums a
row, an update of low rank where it leaves no more than two tensors of these formats are rounded by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.checkpoints.rotary_pairs import halves, interleaved
from tracekit.dtypes import SIXTEEN_BITS, UNIT_ROUNDOFF, round_to, to_float

GAIN_RESIDUAL = 0.01
"""Largest part of a difference that a gain may leave unexplained and still be named."""
MOST_RANK = 128
"""Rank up to which an update is looked for: that of the largest usual adapters."""
LOW = 4
"""Times its rank that each side of a matrix must have for an update to be of low rank."""
SPARE = 32
"""Drawn directions beyond that rank, which show that there is nothing more (Halko, Martinsson, Tropp 2011)."""
ROUNDED = 4.0
"""Times the variance of rounding that an update may leave: each side may have been rounded on the way as well."""
MOST_SKETCH = 1 << 25
"""Numbers of a sketch, 256 MB; no update is looked for in larger tensors."""

Floats = NDArray[np.float64]
Blocks = Callable[[], Iterator[tuple[int, NDArray[Any], NDArray[Any]]]]
"""Reads two tensors from the start: (first element, elements of the first, of the second)."""


class Side(StrEnum):
    """One of two checkpoints."""

    FIRST = "first"
    SECOND = "second"


class Axis(StrEnum):
    """Of a matrix."""

    ROWS = "rows"
    COLUMNS = "columns"


class Arrangement(StrEnum):
    """In what way rows or columns are in another order."""

    ANY = "any"
    BLOCKS = "blocks"
    PAIRED = "paired"  # rotary halves on the first side, pairs side by side on the second
    HALVED = "halved"  # the reverse


@dataclass(frozen=True)
class RoundedTo:
    """One side is the other, rounded to a format, or cut to it."""

    side: Side
    dtype: str
    cut: bool = False


@dataclass(frozen=True)
class Times:
    """The second is the first times a number."""

    gain: float


@dataclass(frozen=True)
class Reordered:
    """The second is the first with its rows or columns in another order."""

    axis: Axis
    moved: int
    count: int
    order: Arrangement = Arrangement.ANY
    width: int = 1  # rows or columns of a block, or of a head


@dataclass(frozen=True)
class Rearranged:
    """The same numbers in an order of which no more is known."""


@dataclass(frozen=True)
class Transposed:
    """The second is the first, transposed."""


@dataclass(frozen=True)
class LowRank:
    """The second is the first plus a matrix of low rank."""

    rank: int
    size: float  # its length over the first's


@dataclass(frozen=True)
class AdapterTimes:
    """The second is the first plus an adapter's update times a number."""

    factor: float  # of B A
    rank: int
    declared: float | None  # alpha / rank, where the adapter says it


Relation = RoundedTo | Times | Reordered | Rearranged | Transposed | LowRank | AdapterTimes


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one matrix: a multiple of `up @ down`, [rows, rank] and [rank, columns]."""

    up: Floats
    down: Floats
    declared: float | None = None


@dataclass(frozen=True)
class Energies:
    """Sums over the elements of two tensors."""

    own: float
    theirs: float
    apart: float  # of the squared differences


def between(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    dtypes: tuple[str, str],
    energies: Energies,
    blocks: Blocks,
    update: Update | None = None,
) -> Relation | None:
    """The relation of two matrices that differ and are neither rounded nor multiplied; None where there is none."""
    if any(len(shape) != 2 for shape in shapes) or not math.isfinite(energies.own + energies.theirs):
        return None
    if math.isclose(energies.own, energies.theirs, rel_tol=1e-9):
        return _reordered(shapes, blocks)
    if shapes[0] != shapes[1]:
        return None
    roundoff = [UNIT_ROUNDOFF.get(dtype) for dtype in dtypes]
    if None in roundoff:
        return None
    squared = [(unit or 0.0) ** 2 for unit in roundoff]
    noise = ROUNDED * max((squared[0] * energies.own + squared[1] * energies.theirs) / 3.0, 1e-300)
    if update is not None:
        found = _adapter(shapes[0], noise, blocks, update)
        if found is not None:
            return found
    return _low_rank(shapes[0], energies, noise, blocks)


# -------------------------------------------------------------------- rounding and gain


@dataclass
class Scalars:
    """What the blocks of two tensors say of rounding and of a gain."""

    own: float = 0.0
    cross: float = 0.0
    theirs: float = 0.0

    def __post_init__(self) -> None:
        self._left = [
            RoundedTo(side, dtype, cut)
            for cut in (False, True)
            for dtype in SIXTEEN_BITS
            for side in Side
            if not cut or dtype == "bfloat16"
        ]

    def add(self, one: NDArray[Any], other: NDArray[Any]) -> None:
        """The next block of both."""
        a, b = one.astype(np.float64), other.astype(np.float64)
        self.own += float(a @ a)
        self.cross += float(a @ b)
        self.theirs += float(b @ b)
        for each in tuple(self._left):
            source, result = (one, other) if each.side is Side.SECOND else (other, one)
            made = _cut(source) if each.cut else to_float(round_to(source, each.dtype), each.dtype)
            if not np.array_equal(made, result):
                self._left.remove(each)

    def relation(self, squared: float, elements: int) -> RoundedTo | Times | None:
        """The simplest that explains a squared difference of so many elements."""
        if self._left:
            return self._left[0]
        gain = self.cross / self.own if self.own else math.nan
        left = self.theirs - gain * self.cross
        if elements > 1 and math.isfinite(gain) and left <= GAIN_RESIDUAL**2 * squared:
            return Times(gain)
        return None


def _cut(values: NDArray[Any]) -> NDArray[Any]:
    """The upper 16 bits of float32."""
    bits = values.astype(np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


# -------------------------------------------------------------------- another order


def _reordered(shapes: tuple[tuple[int, ...], tuple[int, ...]], blocks: Blocks) -> Relation | None:
    (rows, columns), transposed = shapes[0], shapes[1] == shapes[0][::-1]
    one, other = _Sums(shapes[0]), _Sums(shapes[1])
    for first, a, b in blocks():
        one.add(first, a)
        other.add(first, b)
    if transposed and np.array_equal(one.rows, other.columns) and np.array_equal(one.columns, other.rows):
        return Transposed()
    if shapes[0] != shapes[1]:
        return None
    for axis, count, ours, theirs in (
        (Axis.ROWS, rows, one.rows, other.rows),
        (Axis.COLUMNS, columns, one.columns, other.columns),
    ):
        order = _order(ours, theirs)
        if order is not None:
            kind, width = _kind(order)
            return Reordered(axis, int(np.sum(order != np.arange(count))), count, kind, width)
    return None


class _Sums:
    """Two 64-bit sums over each row and each column of a matrix that is read in blocks, [rows, 2] and [columns, 2]. The
    number at a place of a row weighs by that place, and the same of columns: equal sums mean equal rows."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        keys = np.random.default_rng(0).integers(0, 1 << 63, (2, max(shape)), dtype=np.uint64) << np.uint64(1)
        self._keys = keys | np.uint64(1)
        self.rows = np.zeros((shape[0], 2), dtype=np.uint64)
        self.columns = np.zeros((shape[1], 2), dtype=np.uint64)

    def add(self, first: int, values: NDArray[Any]) -> None:
        """Elements from `first` on, in C order."""
        width = self._shape[1]
        top, before = divmod(first, width)
        after = -(before + len(values)) % width
        # -0.0 is 0.0, as where values are compared.
        bits = (values.astype(np.float64) + 0.0).view(np.uint64)
        padded = np.concatenate([np.zeros(before, np.uint64), _mixed(bits), np.zeros(after, np.uint64)])
        block = padded.reshape(-1, width)
        bottom = top + len(block)
        for index, key in enumerate(self._keys):
            self.rows[top:bottom, index] += (block * key[None, :width]).sum(axis=1, dtype=np.uint64)
            self.columns[:, index] += (block * key[top:bottom, None]).sum(axis=0, dtype=np.uint64)


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)), dtype=np.uint64)


def _order(ours: NDArray[np.uint64], theirs: NDArray[np.uint64]) -> NDArray[np.int64] | None:
    """Which of ours stands in each place of theirs; None where they are not the same rows."""
    first, second = np.lexsort(ours.T), np.lexsort(theirs.T)
    if not np.array_equal(ours[first], theirs[second]):
        return None
    order = np.empty(len(ours), dtype=np.int64)
    order[second] = first
    return order


def _kind(order: NDArray[np.int64]) -> tuple[Arrangement, int]:
    """Rotary pairs of heads, whole blocks, or any order; with the rows of a head or block."""
    count = len(order)
    for heads in (each for each in range(1, count // 2 + 1) if count % (2 * each) == 0):
        for kind, made in ((Arrangement.PAIRED, interleaved), (Arrangement.HALVED, halves)):
            if count // heads > 2 and np.array_equal(made(np.arange(count), heads), order):
                return kind, count // heads
    for width in (each for each in range(count // 2, 1, -1) if count % each == 0):
        starts = order[::width]
        if not (starts % width).any() and np.array_equal(np.add.outer(starts, np.arange(width)).reshape(-1), order):
            return Arrangement.BLOCKS, width
    return Arrangement.ANY, 1


# -------------------------------------------------------------------- an update of low rank


def _low_rank(shape: tuple[int, ...], energies: Energies, noise: float, blocks: Blocks) -> LowRank | None:
    """A sketch of the difference shows its rank, and a second pass that nothing but rounding is left of it."""
    rows, columns = shape
    drawn = min(MOST_RANK + SPARE, columns)
    if max(rows, columns) * drawn > MOST_SKETCH or energies.apart <= 2.0 * noise:
        return None
    directions = np.random.default_rng(0).standard_normal((columns, drawn))
    sketch, touched = np.zeros((rows, drawn)), _Touched(shape)
    for top, block in _differences(shape, blocks):
        sketch[top : top + len(block)] += block @ directions
        touched.add(top, block)
    if not np.isfinite(sketch).all():
        return None
    orthogonal, small = np.linalg.qr(sketch)
    left, values, _ = np.linalg.svd(small)
    squares = np.square(values)
    after = np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])
    rank = int(np.argmax(after <= drawn * noise))
    if not 0 < rank <= min(drawn - SPARE // 2, min(shape) // LOW) or touched.fewest <= rank:
        return None
    basis = orthogonal @ left[:, :rank]
    inside = np.zeros((rank, columns))
    for top, block in _differences(shape, blocks):
        inside += basis[top : top + len(block)].T @ block
    if energies.apart - float(np.square(inside).sum()) > noise:
        return None
    return LowRank(rank, math.sqrt(energies.apart / max(energies.own, 1e-300)))


class _Touched:
    """Rows and columns that differ at all: a few rows of their own are no update of low rank."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._rows, self._columns = (np.zeros(side, dtype=bool) for side in shape)

    def add(self, top: int, block: Floats) -> None:
        apart = block != 0.0
        self._rows[top : top + len(block)] |= apart.any(axis=1)
        self._columns |= apart.any(axis=0)

    @property
    def fewest(self) -> int:
        """Of rows and of columns, the fewer."""
        return int(min(self._rows.sum(), self._columns.sum()))


def _adapter(shape: tuple[int, ...], noise: float, blocks: Blocks, update: Update) -> AdapterTimes | None:
    if (update.up.shape[0], update.down.shape[1]) != shape:
        return None
    power = cross = squared = 0.0
    for first, a, b in blocks():
        top, before = divmod(first, shape[1])
        bottom = -(-(first + len(a)) // shape[1])
        added = (update.up[top:bottom] @ update.down).reshape(-1)[before : before + len(a)]
        apart = b.astype(np.float64) - a.astype(np.float64)
        power += float(added @ added)
        cross += float(added @ apart)
        squared += float(apart @ apart)
    factor = cross / power if power else 0.0
    if factor == 0.0 or squared - factor * cross > noise:
        return None
    return AdapterTimes(factor, update.up.shape[1], update.declared)


def _differences(shape: tuple[int, ...], blocks: Blocks) -> Iterator[tuple[int, Floats]]:
    """(first row, difference of whole rows [rows, columns]), zero where a block does not reach."""
    width = shape[1]
    for first, a, b in blocks():
        top, before = divmod(first, width)
        apart = b.astype(np.float64) - a.astype(np.float64)
        padded = np.pad(apart, (before, -(before + len(apart)) % width))
        yield top, padded.reshape(-1, width)
