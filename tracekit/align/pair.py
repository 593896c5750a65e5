"""Two traces and what is which on the other side: made once, and handed to every stage that compares them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from tracekit.align.sites import Alignment, SequencePair, align_sequences, align_sites
from tracekit.trace import Trace


class Side(StrEnum):
    """One of two traces."""

    REFERENCE = "reference"
    CANDIDATE = "candidate"

    @property
    def other(self) -> Side:
        return Side.CANDIDATE if self is Side.REFERENCE else Side.REFERENCE


@dataclass(frozen=True)
class Pair:
    """A reference and a candidate, aligned."""

    reference: Trace
    candidate: Trace
    sites: Alignment
    sequences: tuple[SequencePair, ...]  # in the reference's order
    left: tuple[int, ...]  # sequences of the reference without a partner

    @classmethod
    def of(cls, reference: Trace, candidate: Trace) -> Pair:
        """Align two traces."""
        sequences, left = align_sequences(reference, candidate)
        return cls(reference, candidate, align_sites(reference, candidate), tuple(sequences), tuple(left))

    @property
    def traces(self) -> tuple[Trace, Trace]:
        """Reference and candidate."""
        return self.reference, self.candidate

    @property
    def further(self) -> tuple[int, ...]:
        """Sequences of the candidate without a partner."""
        paired = {pair.candidate.index for pair in self.sequences}
        return tuple(each.index for each in self.candidate.sequences if each.index not in paired)

    @property
    def first(self) -> SequencePair | None:
        """The first pair of sequences; None where there is none."""
        return self.sequences[0] if self.sequences else None

    def sequence(self, index: int) -> SequencePair | None:
        """The pair of one of the reference's sequences; None where it has no partner."""
        return next((pair for pair in self.sequences if pair.index == index), None)

    def seen_as(self, reference: Trace, candidate: Trace) -> Pair:
        """The same alignment over other views of the same two traces: the same sites and sequences, read otherwise."""
        ours = {sequence.index: sequence for sequence in reference.sequences}
        theirs = {sequence.index: sequence for sequence in candidate.sequences}
        sequences = tuple(
            SequencePair(pair.index, ours[pair.reference.index], theirs[pair.candidate.index])
            for pair in self.sequences
        )
        return replace(self, reference=reference, candidate=candidate, sequences=sequences)

    def without(self, sites: frozenset[tuple[str, str]]) -> Pair:
        """The pair without some pairs of sites, (reference's, candidate's) names."""
        kept = tuple(site for site in self.sites.pairs if (site.name, site.candidate) not in sites)
        return replace(self, sites=replace(self.sites, pairs=kept))
