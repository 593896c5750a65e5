"""What two runs say in numbers, where a text log is all that is left of one: lengths, counts, the tokens it lists.

No verdict follows from them. What differs is named all the same, and how far the listed tokens agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tracekit.generations import counts, generated, generated_count
from tracekit.inspection.summary import lengths, sequence_summary
from tracekit.trace import Sequence, Trace


@dataclass(frozen=True)
class SequenceCountsDiffer:
    """The sides have other numbers of sequences."""

    reference: int
    candidate: int


@dataclass(frozen=True)
class CountDiffers:
    """A number of tokens that differs."""

    sequence: int
    what: str  # key of a summary's column
    reference: int
    candidate: int


@dataclass(frozen=True)
class ListedTokenDiffers:
    """The first of the listed tokens that differs."""

    sequence: int
    step: int
    reference: int
    candidate: int


@dataclass(frozen=True)
class ListedTokensEqual:
    """All tokens that both sides list are equal."""

    sequence: int
    tokens: int
    generated: int  # by the side that generated more


Counted = SequenceCountsDiffer | CountDiffers | ListedTokenDiffers | ListedTokensEqual


def is_counted(trace: Trace) -> bool:
    """Whether a text log is all that is left of the run."""
    return any(counts(sequence) for sequence in trace.sequences)


def counted_differences(reference: Trace, candidate: Trace) -> Iterator[Counted]:
    """Each number that differs between sequences of the same index, and how far the tokens agree that both have."""
    sizes = len(reference.sequences), len(candidate.sequences)
    if sizes[0] != sizes[1]:
        yield SequenceCountsDiffer(*sizes)
    for one, other in zip(reference.sequences, candidate.sequences, strict=False):
        rows = sequence_summary(reference, one), sequence_summary(candidate, other)
        for key in lengths():
            numbers = rows[0][key], rows[1][key]
            if None not in numbers and numbers[0] != numbers[1]:
                yield CountDiffers(one.index, key, *numbers)
        yield from _tokens(reference, one, candidate, other)


def _tokens(reference: Trace, one: Sequence, candidate: Trace, other: Sequence) -> Iterator[Counted]:
    ours, theirs = generated(reference, one), generated(candidate, other)
    common = min(len(ours), len(theirs))
    if not common:
        return
    apart = np.flatnonzero(ours[:common] != theirs[:common])
    if apart.size:
        at = int(apart[0])
        yield ListedTokenDiffers(one.index, at, int(ours[at]), int(theirs[at]))
        return
    yield ListedTokensEqual(one.index, common, max(generated_count(reference, one), generated_count(candidate, other)))
