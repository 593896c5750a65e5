"""`rng`: same survivors, another seed, offset or count of random words."""

from __future__ import annotations

from tracekit.verdict.cause import Cause
from tracekit.verdict.rule import CauseRule, Grouping, Luck, ReproNeeds, Shows, sampled

RULE = CauseRule(
    Cause.RNG,
    order=50,
    holds=sampled(Cause.RNG),
    headline="The random generator was used differently",
    grouping=Grouping(Luck.DRAWS, proven_by_tokens=True),
    repro=ReproNeeds(Shows.DRAWS, needs_sequences_before=True),
)
