"""`sampler`: same survivors and draws, another token or another way to draw."""

from __future__ import annotations

from tracekit.verdict.cause import Cause
from tracekit.verdict.rule import CauseRule, Grouping, Luck, ReproNeeds, Shows, sampled

RULE = CauseRule(
    Cause.SAMPLER,
    order=70,
    holds=sampled(Cause.SAMPLER),
    headline="The sampler chooses differently from the same survivors",
    grouping=Grouping(Luck.DRAWS, proven_by_tokens=True),
    repro=ReproNeeds(Shows.TOKEN, forces_draws=True),
)
