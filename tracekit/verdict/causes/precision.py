"""`precision`: nothing differs but choices of precision, and rounding decided every token that changed.

Such a choice is the declared formula with steps rounded to the model's own format that the reference keeps wider, or
an arithmetic that an engine states and, recomputed in it, follows at every site.
Whatever else is found is the cause in its stead. A token that changed because of it, by more than rounding, makes it a
divergence.
"""

from __future__ import annotations

from tracekit.compare.findings import Finding, TokenDiffers
from tracekit.mistakes.explanation import Explained
from tracekit.trace import LOGITS
from tracekit.verdict.cause import Cause
from tracekit.verdict.counterfactual.token import NEAR
from tracekit.verdict.decision import Decision
from tracekit.verdict.evidence import PrecisionAlone, PrecisionMovesToken
from tracekit.verdict.rule import Case, CauseRule, Grouping, Luck, ReproNeeds
from tracekit.verdict.ruling import Flip, Ruling


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    if not case.precise and case.as_stated is None:
        return None
    if ruling is None and case.first is None:
        return _ruling(case, None)
    if ruling is None or ruling.margins.flips is not Flip.LOGITS or not isinstance(case.first, TokenDiffers):
        return None
    return _ruling(case, ruling) if ruling.cause in (Cause.NEAR_TIE, Cause.SAMPLER) else None


def _ruling(case: Case, token: Ruling | None) -> Ruling:
    """`token`: what is said of a token that the logits flip."""
    first: Finding
    evidence: list[object]
    explanation = None
    if case.precise:
        first = case.precise[0]
        explanation = case.precise[0].culprit.explanation
        evidence = [first, *([] if explanation is None else [Explained(explanation)])]
    else:
        assert case.as_stated is not None
        first, evidence = case.as_stated.finding, [case.as_stated]
    if token is None:
        return Ruling(Cause.PRECISION, first, (*evidence, PrecisionAlone()), explanation, decision=Decision.PARITY)
    near = token.cause == Cause.NEAR_TIE and _is_near(case, token)
    evidence += token.evidence if near else [PrecisionMovesToken(token.margins.token)]
    decision = Decision.PARITY if near else Decision.DIVERGENCE
    return Ruling(Cause.PRECISION, first, tuple(evidence), explanation, token.margins, decision)


def _is_near(case: Case, ruling: Ruling) -> bool:
    """Whether the logits' error would cover the margin if it were rounding's: as large as its tolerance."""
    token = ruling.margins.token
    over = max(1.0, case.found.ratios.get(LOGITS, 1.0))
    return token is None or abs(token.margin) <= NEAR * token.error / over


RULE = CauseRule(
    Cause.PRECISION,
    order=110,
    holds=_holds,
    headline="The runs differ by choices of precision",
    grouping=Grouping(Luck.VALUES),
    repro=ReproNeeds(why_none="the two sides round in different places; no formula is wrong"),
    fault=False,
)
