"""The recorded chains of both sides: the first processor that one side ran, or that left another number of tokens."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.align.pair import Side
from tracekit.align.sites import SequencePair
from tracekit.sampling.chain import recorded_chain, unknown_settings
from tracekit.sampling.observed import Observed
from tracekit.trace import Json
from tracekit.verdict.counterfactual.evidence import (
    NotRecomputed,
    OtherProcessor,
    ProcessorLeaves,
    ProcessorOnOneSide,
    ProcessorRun,
)
from tracekit.verdict.counterfactual.sides import both


def processors_apart(seen: tuple[Observed, Observed]) -> Iterator[object]:
    """The first difference of the chains, where both are recorded."""
    ours, theirs = ([_run(row) for row in one.processors] for one in seen)
    if not ours or not theirs:
        return
    for at, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one.name != other.name:
            ours_alone, theirs_alone = not _among(one, theirs[at:]), not _among(other, ours[at:])
            if ours_alone == theirs_alone:
                yield OtherProcessor((one, other))
            else:
                yield ProcessorOnOneSide(*((Side.REFERENCE, one) if ours_alone else (Side.CANDIDATE, other)))
            return
        if one.survivors is not None and other.survivors not in (None, one.survivors):
            yield ProcessorLeaves((one, other))
            return
    if len(ours) != len(theirs):
        side, longer = (Side.REFERENCE, ours) if len(ours) > len(theirs) else (Side.CANDIDATE, theirs)
        yield ProcessorOnOneSide(side, longer[min(len(ours), len(theirs))])


def _among(one: ProcessorRun, runs: list[ProcessorRun]) -> bool:
    return any(each.name == one.name for each in runs)


def _run(row: Json) -> ProcessorRun:
    numbers, survivors = row.get("settings") or {}, row.get("survivors")
    settings = tuple((str(name), str(value)) for name, value in numbers.items())
    return ProcessorRun(str(row.get("class")), settings, survivors if isinstance(survivors, int) else None)


def not_recomputed(pair: SequencePair, seen: tuple[Observed, Observed]) -> Iterator[object]:
    """Settings and processors that no replay takes into account."""
    for side, sequence, one in zip(Side, both(pair), seen, strict=True):
        names = unknown_settings(sequence.sampling) + recorded_chain(one.processors, sequence.sampling)[1]
        if names:
            yield NotRecomputed(side, tuple(names))
