"""What one side calls otherwise than the other, found out: by the values that were recorded, else by name and width."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tracekit.align.pair import Pair
from tracekit.align.sites import SequencePair
from tracekit.dtypes import to_float
from tracekit.formats.name_map import Alias, NameMap
from tracekit.trace import INPUT_SUFFIX, Sequence, Trace

ROWS = 8
"""Positions whose values are compared: enough to tell thousands of sites apart."""
SAME = 0.2
"""Relative error below which two recordings are of one site, in any precision and with a mistake or two before it: two
sites of a model are as far apart as they are large."""
ALIKE = 0.5
"""Share of two names that must be alike where their values cannot tell."""


class FoundBy(StrEnum):
    """What pairs two names: values prove it, the others are guesses."""

    VALUES = "values"
    NAME = "name"
    ORDER = "order"


@dataclass(frozen=True)
class Proposal:
    """A line of the map, and what it was found by."""

    alias: Alias
    by: FoundBy


@dataclass(frozen=True)
class Proposals:
    """The map, how many sites have one name on both sides, and what is left without a partner."""

    lines: tuple[Proposal, ...]
    matched: int
    left_reference: tuple[str, ...]
    left_candidate: tuple[str, ...]

    @property
    def names(self) -> NameMap:
        return NameMap(tuple(line.alias for line in self.lines))


@dataclass
class _Kind:
    """The sites of one name in every layer."""

    pattern: str
    order: int
    width: int
    sites: dict[tuple[str, ...], str] = field(default_factory=dict)  # numbers in the name -> the name


@np.errstate(all="ignore")
def propose(reference: Trace, candidate: Trace) -> Proposals:
    """A map from the candidate's names to the reference's. Sites that pair up without one are left out."""
    pair = Pair.of(reference, candidate)
    alignment = pair.sites
    ours = _kinds(reference, alignment.unmatched_reference)
    theirs = _kinds(candidate, alignment.unmatched_candidate)
    search = _Search(ours, theirs, pair.first)
    lines = search.run()
    return Proposals(
        tuple(lines), len(alignment.pairs), tuple(kind.pattern for kind in ours), tuple(kind.pattern for kind in theirs)
    )


def _kinds(trace: Trace, unmatched: tuple[str, ...]) -> list[_Kind]:
    """Unmatched modules by their names without layer numbers, in execution order."""
    widths = {name: data.width for sequence in trace.sequences for name, data in sequence.sites.items()}
    kinds: dict[str, _Kind] = {}
    for name in unmatched:
        if name.endswith(INPUT_SUFFIX) or name not in widths:
            continue
        pattern, numbers = _pattern(name)
        order = trace.sites[name].order if name in trace.sites else 1 << 20
        kind = kinds.setdefault(pattern, _Kind(pattern, order, widths[name]))
        kind.order = min(kind.order, order)
        kind.sites[numbers] = name
    return sorted(kinds.values(), key=lambda kind: kind.order)


def _pattern(name: str) -> tuple[str, tuple[str, ...]]:
    """`layers.3.mlp` -> `layers.{N}.mlp`, ("3",)."""
    numbers: list[str] = []

    def wildcard(found: re.Match[str]) -> str:
        numbers.append(found[0])
        return "{" + "NMKJIHG"[min(len(numbers) - 1, 6)] + "}"

    pattern = re.sub(r"(?<![^.])\d+(?![^.])", wildcard, name)
    return pattern, tuple(numbers)


class _Search:
    """Both sides' kinds without a partner; what finds one is taken out."""

    def __init__(self, ours: list[_Kind], theirs: list[_Kind], pair: SequencePair | None) -> None:
        self.ours, self.theirs, self.pair = ours, theirs, pair
        self._rows: dict[tuple[bool, str], NDArray[np.float64] | None] = {}

    def run(self) -> list[Proposal]:
        lines: list[Proposal] = []
        for mine in (False, True):
            for kind in list(self.ours if mine else self.theirs):
                lines += self._by_values(kind, mine)
        for kind in list(self.theirs):
            lines += self._by_name(kind)
        for mine in (False, True):
            for kind in list(self.ours if mine else self.theirs):
                lines += self._by_width(kind, mine)
        return lines

    def _take(self, kind: _Kind, parts: list[_Kind], mine: bool, by: FoundBy) -> Iterator[Proposal]:
        for side, kinds in ((self.ours if mine else self.theirs, [kind]), (self.theirs if mine else self.ours, parts)):
            for one in kinds:
                side.remove(one)
        yield Proposal(Alias(kind.pattern, tuple(part.pattern for part in parts)), by)

    def _by_values(self, kind: _Kind, mine: bool) -> Iterator[Proposal]:
        """Sites of the other side that hold, side by side, what this one holds."""
        others = self.theirs if mine else self.ours
        numbers = next(iter(kind.sites))
        values = self._read(kind, numbers, mine)
        if values is None:
            return
        parts: list[_Kind] = []
        at = 0
        while at < kind.width:
            fits = (one for one in others if one not in parts and self._same(values, at, one, numbers, not mine))
            part = next(fits, None)
            if part is None:
                return
            parts.append(part)
            at += part.width
        if mine and len(parts) == 1:
            return  # of two single sites it was looked at already
        yield from self._take(kind, parts, mine, FoundBy.VALUES)

    def _same(self, values: NDArray[np.float64], at: int, other: _Kind, numbers: tuple[str, ...], mine: bool) -> bool:
        rows = self._read(other, numbers, mine)
        if rows is None or at + other.width > values.shape[1] or len(rows) != len(values):
            return False
        size = float(np.linalg.norm(rows))
        return size > 0.0 and float(np.linalg.norm(values[:, at : at + other.width] - rows)) <= SAME * size

    def _read(self, kind: _Kind, numbers: tuple[str, ...], mine: bool) -> NDArray[np.float64] | None:
        """The first positions' values of one site of a kind."""
        name = kind.sites.get(numbers)
        if self.pair is None or name is None:
            return None
        if (mine, name) not in self._rows:
            self._rows[mine, name] = _first_rows(self.pair.reference if mine else self.pair.candidate, name)
        return self._rows[mine, name]

    def _by_name(self, kind: _Kind) -> Iterator[Proposal]:
        """The site of the same width whose name is most alike, if this one is the most alike for it, too."""

        def alike(one: _Kind, other: _Kind) -> float:
            same = one.width == other.width and len(next(iter(one.sites))) == len(next(iter(other.sites)))
            return difflib.SequenceMatcher(None, one.pattern, other.pattern).ratio() if same else 0.0

        best = max(self.ours, key=lambda other: alike(kind, other), default=None)
        if best is None or alike(kind, best) < ALIKE:
            return
        if max(self.theirs, key=lambda other: alike(other, best)) is kind:
            yield from self._take(kind, [best], False, FoundBy.NAME)

    def _by_width(self, kind: _Kind, mine: bool) -> Iterator[Proposal]:
        """Neighbours of the other side, in the order of the run, whose widths add up to that of a fused site."""
        others = self.theirs if mine else self.ours
        for first in range(len(others)):
            for count in (2, 3):
                parts = others[first : first + count]
                parents = {part.pattern.rpartition(".")[0] for part in parts}
                numbered = {len(next(iter(each.sites))) for each in (kind, *parts)}
                alike = len(parts) == count and len(parents) == len(numbered) == 1
                if alike and sum(part.width for part in parts) == kind.width:
                    yield from self._take(kind, parts, mine, FoundBy.ORDER)
                    return


def _first_rows(sequence: Sequence, name: str) -> NDArray[np.float64] | None:
    data = sequence.sites.get(name)
    if data is None or not data.ranges or data.ranges[0][0] != 0:
        return None
    rows = sequence.read(name, 0, min(ROWS, data.ranges[0][1]))
    return to_float(rows, data.dtype).astype(np.float64)
