"""`near-tie`: rounding crossed a margin; no fault."""

from __future__ import annotations

from tracekit.verdict.cause import Cause
from tracekit.verdict.rule import Case, CauseRule, Grouping, ReproNeeds
from tracekit.verdict.ruling import Ruling


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    sampled = case.sampled if ruling is None else None
    return sampled if sampled is not None and sampled.cause == Cause.NEAR_TIE else None


RULE = CauseRule(
    Cause.NEAR_TIE,
    order=60,
    holds=_holds,
    headline="Rounding crossed a margin: no fault",
    grouping=Grouping(),
    repro=ReproNeeds(why_none="rounding decided between two tokens; nothing is to be mended"),
    fault=False,
)
