"""`stop`: same tokens, one side stops earlier."""

from __future__ import annotations

from tracekit.compare.findings import StopDiffers
from tracekit.verdict.cause import Cause
from tracekit.verdict.counterfactual import rule_stop
from tracekit.verdict.rule import Case, CauseRule, Grouping, Luck, ReproNeeds, Shows
from tracekit.verdict.ruling import Ruling


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    first = case.first
    return rule_stop(case.pair, first) if ruling is None and isinstance(first, StopDiffers) else None


RULE = CauseRule(
    Cause.STOP,
    order=80,
    holds=_holds,
    headline="One side stops earlier",
    grouping=Grouping(Luck.LENGTH, proven_by_tokens=True, stands_alone=True),
    repro=ReproNeeds(Shows.END),
)
