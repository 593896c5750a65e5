"""`near-tie`: rounding crossed a margin; no fault."""

from __future__ import annotations

from tracekit.verdict.cause import Cause
from tracekit.verdict.rule import CauseRule, Grouping, ReproNeeds, sampled

RULE = CauseRule(
    Cause.NEAR_TIE,
    order=60,
    holds=sampled(Cause.NEAR_TIE),
    headline="Rounding crossed a margin: no fault",
    grouping=Grouping(),
    repro=ReproNeeds(why_none="rounding decided between two tokens; nothing is to be mended"),
    fault=False,
)
