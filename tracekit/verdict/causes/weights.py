"""`weights`: a parameter's bytes differ."""

from __future__ import annotations

from tracekit.compare.findings import Stage
from tracekit.verdict.cause import Cause
from tracekit.verdict.evidence import ParameterDiffers
from tracekit.verdict.rule import Case, CauseRule, Grouping, Luck, ReproNeeds
from tracekit.verdict.ruling import Ruling


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    first = case.first
    if not case.weights or (first is not None and first.stage is Stage.INPUT):
        return None
    return Ruling(Cause.WEIGHTS, first, (ParameterDiffers(case.weights[0], len(case.weights) - 1),))


RULE = CauseRule(
    Cause.WEIGHTS,
    order=10,
    holds=_holds,
    headline="A parameter has other bytes",
    grouping=Grouping(Luck.VALUES),
    repro=ReproNeeds(why_none="the two sides hold other parameters; `tracekit weights` compares them"),
)
