"""The two sides of a step."""

from __future__ import annotations

from tracekit.align.pair import Pair, Side
from tracekit.align.sites import SequencePair
from tracekit.compare.findings import Finding
from tracekit.sampling.observed import Observed
from tracekit.sampling.replay import observe
from tracekit.trace import Json, Sequence


def sequences_of(traces: Pair, finding: Finding) -> SequencePair:
    """The sequences that a finding is about."""
    pair = traces.sequence(finding.sequence)
    assert pair is not None, "findings are of sequences that have a partner"
    return pair


def both(pair: SequencePair) -> tuple[Sequence, Sequence]:
    """Reference and candidate."""
    return pair.reference, pair.candidate


def of(pair: SequencePair, side: Side) -> Sequence:
    """One of them."""
    return pair.reference if side is Side.REFERENCE else pair.candidate


def observed(pair: SequencePair, step: int) -> tuple[Observed, Observed]:
    """A step of both."""
    return observe(pair.reference, step), observe(pair.candidate, step)


def stated_by(pair: SequencePair) -> Json:
    """The settings that the candidate should follow."""
    return pair.reference.sampling or pair.candidate.sampling
