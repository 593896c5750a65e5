"""`sampler`: same survivors and draws, another token or another way to draw."""

from __future__ import annotations

from tracekit.verdict.cause import Cause
from tracekit.verdict.rule import Case, CauseRule, Grouping, Luck, ReproNeeds, Shows
from tracekit.verdict.ruling import Ruling


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    sampled = case.sampled if ruling is None else None
    return sampled if sampled is not None and sampled.cause == Cause.SAMPLER else None


RULE = CauseRule(
    Cause.SAMPLER,
    order=70,
    holds=_holds,
    headline="The sampler chooses differently from the same survivors",
    grouping=Grouping(Luck.DRAWS, proven_by_tokens=True),
    repro=ReproNeeds(Shows.TOKEN, forces_draws=True),
)
