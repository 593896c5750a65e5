"""`capture`: what should be on record is not, so that nothing that agrees proves a parity."""

from __future__ import annotations

from tracekit.compare.findings import InputDiffers
from tracekit.inspection.following import unrecorded_choices
from tracekit.inspection.losses import NothingCompared
from tracekit.verdict.cause import Cause
from tracekit.verdict.decision import Decision
from tracekit.verdict.evidence import OthersAgree, WhatIsThereAgrees, agreement
from tracekit.verdict.rule import Case, CauseRule, ReproNeeds
from tracekit.verdict.ruling import Ruling


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    if ruling is not None:
        return None
    if case.coverage.lost:
        lost = case.coverage.lost
        if isinstance(case.first, InputDiffers):  # by chance: else another cause has it
            return Ruling(Cause.CAPTURE, None, (*lost, case.first))
        if any(isinstance(each, NothingCompared) for each in lost):
            return Ruling(Cause.CAPTURE, None, lost)
        return Ruling(Cause.CAPTURE, None, (*lost, WhatIsThereAgrees(agreement(case.found))))
    # Nobody knows what the candidate would have chosen: its tokens are the reference's own.
    unknown = unrecorded_choices(case.pair.candidate)
    return Ruling(Cause.CAPTURE, None, (*unknown, OthersAgree())) if unknown else None


RULE = CauseRule(
    Cause.CAPTURE,
    order=100,
    holds=_holds,
    headline="The recording cannot be trusted",
    repro=ReproNeeds(why_none="the recording went wrong; record again"),
    decision=Decision.WITHHELD,
)
