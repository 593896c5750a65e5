"""Can the trace itself be trusted? What a recording that went wrong looks like, whatever the model did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xxhash

from tracekit.dtypes import is_float, to_float
from tracekit.generations import counts
from tracekit.trace import Array, Sequence, Site, Trace

UNSEEN = "unseen"
ERROR = "error"
"""Kind of the event of a step whose token is known and whose draw was not seen, with why; reason of a sequence's end
where not even the token was seen."""
LOOKED_AT = 8
"""Rows of each site that are looked at."""
LEAST_SITES = 4
LEAST_WIDTH = 4
SAME_SHARE = 0.25
"""Share of the sites that hold another site's values, from which buffers were overwritten before they were copied. A
model passes single tensors on, which the recorders notice; and a mistake that makes two sites alike is a mistake."""
CONSTANT_SHARE = 0.5
"""Share of the sites that hold one number throughout. Attention that gives zeros in every layer makes a sixth."""


@dataclass(frozen=True)
class CountsOnly:
    """A trace that was made of a text log."""

    path: str
    token_ids: bool  # it holds those, too


@dataclass(frozen=True)
class ConstantSites:
    """Sites hold one number throughout: nothing was captured."""

    path: str
    sequence: int
    constant: int
    sites: int
    first: str


@dataclass(frozen=True)
class SharedValues:
    """Sites hold the values of other sites: buffers were overwritten before they were copied."""

    path: str
    sequence: int
    shared: int
    sites: int
    first: str


@dataclass(frozen=True)
class DrawsUnseen:
    """Steps whose token is known, and not how it was drawn."""

    path: str
    sequence: int
    unseen: int
    steps: int
    first_step: int
    reason: str


@dataclass(frozen=True)
class RecordingEnds:
    """A step from which not even tokens were seen."""

    path: str
    sequence: int
    step: int
    reason: str | None


@dataclass(frozen=True)
class Uncached:
    """A program without a cache: what a position read of earlier ones was computed again, and is not recorded."""

    path: str
    sequence: int
    first: int
    """The first such position."""


@dataclass(frozen=True)
class EndedInError:
    """A sequence that its program left by an exception."""

    path: str
    sequence: int
    detail: str | None
    """The exception."""


@dataclass(frozen=True)
class SitesNotFound:
    """A pattern that was to choose sites and chose none."""

    pattern: str


Unseen = DrawsUnseen | RecordingEnds


def capture_problems(trace: Trace) -> list[object]:
    """Why no verdict can be reached from this trace; empty where it looks like a recording."""
    if any(counts(sequence) for sequence in trace.sequences):
        return [CountsOnly(trace.path, any(sequence.step_count for sequence in trace.sequences))]
    return [problem for sequence in trace.sequences for problem in (*_problems(sequence), *_unseen_in(sequence))]


def recomputed_from(sequence: Sequence) -> int | None:
    """Of a program without a cache, the first position whose call computed those before it again: what it read of them
    is not what is recorded, but another rounding of it. None where no call did."""
    first: int | None = sequence.info.get("recomputed")
    return first


def ended_in_error(trace: Trace) -> list[EndedInError]:
    """The first sequence of a trace that ends by an exception of its program; empty where none does."""
    ended = [each for each in trace.sequences if each.end_reason == ERROR]
    return [EndedInError(trace.path, each.index, each.end_detail) for each in ended[:1]]


def uncached(trace: Trace) -> list[Uncached]:
    """The first sequence of a trace that was generated without a cache."""
    found = ((sequence, recomputed_from(sequence)) for sequence in trace.sequences)
    return [Uncached(trace.path, sequence.index, first) for sequence, first in found if first is not None][:1]


def unseen(trace: Trace) -> list[Unseen]:
    """What the recorder did not see of how tokens came about."""
    return [found for sequence in trace.sequences for found in _unseen_in(sequence)]


def _unseen_in(sequence: Sequence) -> Iterator[Unseen]:
    why = {str(event.detail): event.step for event in reversed(sequence.events) if event.kind == UNSEEN}
    # A greedy generation draws nothing: a token of it that is not the largest is a wrong choice, not one unseen.
    if why and sequence.sampling.get("do_sample") is not False:
        count = len({event.step for event in sequence.events if event.kind == UNSEEN})
        reason, step = min(why.items(), key=lambda item: item[1])
        yield DrawsUnseen(sequence.path, sequence.index, count, sequence.step_count, step, reason)
    if sequence.end_reason == UNSEEN:
        yield RecordingEnds(sequence.path, sequence.index, sequence.step_count, sequence.end_detail)


def written(trace: Trace) -> str:
    """What a file holds, as a recorder says it of one that it has just made."""
    steps = sum(sequence.step_count for sequence in trace.sequences)
    return f"{_counted(len(trace.sequences), 'sequence')}, {_counted(steps, 'step')}"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def no_such_site(trace: Trace, pattern: str | None) -> list[SitesNotFound]:
    """What to tell somebody who asked for sites by a pattern that is in no name; empty where something was recorded."""
    if pattern is None or any(sequence.sites for sequence in trace.sequences):
        return []
    return [SitesNotFound(pattern)]


def _problems(sequence: Sequence) -> Iterator[ConstantSites | SharedValues]:
    values = {name: _first_rows(sequence, name) for name in sequence.sites}
    floats = {name: rows for name, rows in values.items() if rows is not None}
    if len(floats) < LEAST_SITES:
        return
    constant = [name for name, rows in floats.items() if _is_constant(rows, sequence.sites[name].dtype)]
    if len(constant) >= CONSTANT_SHARE * len(floats):
        yield ConstantSites(sequence.path, sequence.index, len(constant), len(floats), constant[0])
        return
    rest = [name for name in floats if name not in constant]
    digests = {name: xxhash.xxh3_64_intdigest(np.ascontiguousarray(floats[name]).tobytes()) for name in rest}
    alike: dict[int, list[str]] = {}
    for name in rest:
        alike.setdefault(digests[name], []).append(name)
    again = {name for group in alike.values() for name in _runs_again(group, sequence.site_table)}
    once = [name for name in rest if name not in again]
    groups = ([name for name in group if name not in again] for group in alike.values())
    same = [name for group in groups if not _passes_on(group, once) for name in group]
    if len(once) >= LEAST_SITES and len(same) >= SAME_SHARE * len(once):
        yield SharedValues(sequence.path, sequence.index, len(same), len(floats), same[0])


def _runs_again(alike: list[str], table: Mapping[str, Site]) -> Iterator[str]:
    """Those of these sites whose module had run on the same input before (`x#2` beside `x`): it gives the same."""
    before: set[tuple[str, str]] = set()
    for name in alike:
        given = table[name].input if name in table else None
        if given is not None:
            run = name.partition("#")[0], given
            if run in before:
                yield name
            before.add(run)


def _passes_on(alike: list[str], names: list[str]) -> bool:
    """Could these sites hold the same values without a mistake? A module returns what one inside it gave, and one right
    after another, as dropout does in evaluation, gives back what it was given. `names`: in the order of the sites."""
    innermost = [name for name in alike if not any(other.startswith(f"{name}.") for other in alike)]
    if len(innermost) == 1:
        return True
    first, second = sorted(map(names.index, innermost[:2]))
    beside = names[first].rpartition(".")[0] == names[second].rpartition(".")[0]
    return len(innermost) == 2 and beside and second == first + 1


def _first_rows(sequence: Sequence, name: str) -> Array | None:
    """A few recorded rows of a float site that is wide enough to tell."""
    data = sequence.sites[name]
    if not is_float(data.dtype) or data.width < LEAST_WIDTH or not data.ranges:
        return None
    first, stop = data.ranges[0]
    return sequence.read(name, first, min(stop, first + LOOKED_AT))


def _is_constant(rows: Array, dtype: str) -> bool:
    values = to_float(rows, dtype)
    if not values.size:
        return True
    first = values.flat[0]
    return bool(first == values.flat[-1] and np.all(values == first))
