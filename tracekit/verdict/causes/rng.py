"""`rng`: same survivors, another seed, offset or count of random words."""

from __future__ import annotations

from tracekit.verdict.cause import Cause
from tracekit.verdict.rule import Case, CauseRule, Grouping, Luck, ReproNeeds, Shows
from tracekit.verdict.ruling import Ruling


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    sampled = case.sampled if ruling is None else None
    return sampled if sampled is not None and sampled.cause == Cause.RNG else None


RULE = CauseRule(
    Cause.RNG,
    order=50,
    holds=_holds,
    headline="The random generator was used differently",
    grouping=Grouping(Luck.DRAWS, proven_by_tokens=True),
    repro=ReproNeeds(Shows.DRAWS, needs_sequences_before=True),
)
