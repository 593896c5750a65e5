"""`filter`: same distribution, other survivors."""

from __future__ import annotations

from tracekit.compare.findings import SurvivorsDiffer
from tracekit.verdict.cause import Cause
from tracekit.verdict.counterfactual import rule_filter
from tracekit.verdict.outcome import Agreement
from tracekit.verdict.rule import Case, CauseRule, Grouping, Luck, ReproNeeds, Shows
from tracekit.verdict.ruling import Ruling


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    first = case.first
    return rule_filter(case.pair, first) if ruling is None and isinstance(first, SurvivorsDiffer) else None


RULE = CauseRule(
    Cause.FILTER,
    order=40,
    holds=_holds,
    headline="Other tokens survive the sampler's filter",
    grouping=Grouping(Luck.AGREE, Agreement.SURVIVORS),
    repro=ReproNeeds(Shows.SURVIVORS, forces_draws=True),
)
