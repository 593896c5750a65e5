"""A verdict as JSON, format 2: docs/verdict.md says what the keys mean, docs/verdict.schema.json what they hold."""

from __future__ import annotations

from dataclasses import asdict

from tracekit.auditing.own_error import FALSE_ALARMS
from tracekit.compare.drift import Drift
from tracekit.compare.findings import TokenDiffers
from tracekit.mistakes.explanation import Explained, FitsAsWell
from tracekit.report.coverage import coverage_json
from tracekit.report.words import fields_of, sentence
from tracekit.report.words.consequence import consequences_json
from tracekit.report.words.culprits import culprit_json
from tracekit.report.words.explanations import explanation_json
from tracekit.trace import Json
from tracekit.verdict.attribution import SiteAtFault
from tracekit.verdict.record import EXPLAINED, FORMAT, CulpritRecord, VerdictRecord
from tracekit.verdict.ruling import Margins, Narrowest, NarrowestCut
from tracekit.verdict.verdict import Accused, AuditShare, Verdict


def verdict_json(verdict: Verdict) -> Json:
    """The whole verdict, ready for `json.dumps`. `findings` are the same as `evidence`, as ids and fields."""
    return {
        "format": FORMAT,
        "verdict": verdict.decision.value,
        "cause": None if verdict.cause is None else str(verdict.cause),
        "sequence": verdict.sequence,
        "step": verdict.step,
        "position": verdict.position,
        "site": verdict.site,
        "finding": None if verdict.finding is None else plain(verdict.finding),
        "evidence": [sentence(each) for each in verdict.evidence],
        "findings": [plain(each) | {"text": sentence(each)} for each in verdict.evidence],
        "explanation": explanation_json(verdict.explanation),
        "culprits": [accused_json(each) for each in verdict.culprits],
        "token": None if verdict.token is None else token_json(verdict.token),
        "margins": margins_json(verdict.margins),
        "compared": {} if verdict.compared is None else asdict(verdict.compared),
        "coverage": None if verdict.coverage is None else coverage_json(verdict.coverage),
        "unexercised": [sentence(each) for each in verdict.unexercised],
        "unmatched": {name: list(value) for name, value in vars(verdict.unmatched).items()},
        "calibration": verdict.calibration,
        "differences": [vars(difference) for difference in verdict.differences],
        "notes": [sentence(each) for each in verdict.notes],
        "audit": None if verdict.audit is None else audit_share_json(verdict.audit),
        "consequences": consequences_json(verdict.consequences),
        "drift": None if verdict.drift is None else drift_json(verdict.drift),
        "uncalibrated": list(verdict.uncalibrated),
    }


def record_of(verdict: Verdict) -> VerdictRecord:
    """What another process is told of a verdict."""
    return VerdictRecord.from_json(verdict_json(verdict))


def plain(found: object) -> Json:
    """A typed finding: `type` and its fields."""
    if isinstance(found, Explained | FitsAsWell):
        kind = EXPLAINED if isinstance(found, Explained) else "fits_as_well"
        return {"type": kind, "explanation": explanation_json(found.explanation)}
    if isinstance(found, SiteAtFault):
        place = {name: getattr(found, name) for name in ("sequence", "step", "position", "site", "order")}
        culprit = culprit_json(found.culprit, found.side.value)
        return {"type": "site_at_fault", **place, "side": found.side.value, "culprit": culprit}
    return fields_of(found)


def accused_json(accused: Accused) -> Json:
    """A culprit; without an audit, its place alone."""
    if accused.culprit is None:
        return {"site": accused.site, "step": accused.step, "position": accused.position}
    return culprit_json(accused.culprit, accused.side.value)


def accused_record(accused: Accused) -> CulpritRecord:
    """The same as a record."""
    return CulpritRecord.from_json(accused_json(accused))


def token_json(token: TokenDiffers) -> Json:
    """The step, and each side's token with its text."""
    return {"step": token.step, "reference": vars(token.reference), "candidate": vars(token.candidate)}


def audit_share_json(audit: AuditShare) -> Json:
    """How much was recomputed."""
    return vars(audit) | {
        "not_audited": {site: sentence(why) for site, why in audit.not_audited.items()},
        "recipe_not_followed": list(audit.recipe_not_followed),
        "false_alarms": FALSE_ALARMS,
    }


def drift_json(found: Drift) -> Json:
    """The change, and its sentence."""
    return fields_of(found) | {"text": sentence(found)}


def margins_json(margins: Margins) -> Json:
    """Those that were measured; `margin` and `error` are the token's where tokens differ, else `error` is the run's."""
    run, token = margins.run, margins.token
    out: Json = {}
    if run is not None:
        out["steps"] = run.steps
        out |= {} if run.error is None else {"error": run.error}
        out |= {} if run.logit_gap is None else {"logit_gap": _narrowest(run.logit_gap)}
        out |= {} if run.cut is None else {"cut": _narrowest(run.cut)}
        out |= {} if run.race is None else {"race": {k: v for k, v in _narrowest(run.race).items() if k != "error"}}
    if margins.cut_distance is not None:
        out |= {"cut_distance": margins.cut_distance, "logit_error": margins.logit_error}
    if token is not None:
        out |= {"kind": token.kind.value, "margin": token.margin, "error": token.error}
    if margins.combinations:
        rows = [
            {"logits": each.logits.value, "draws": each.draws.value, "token": each.token}
            for each in margins.combinations
        ]
        out |= {"combinations": rows, "flips": None if margins.flips is None else margins.flips.value}
    return out


def _narrowest(found: Narrowest | NarrowestCut) -> Json:
    return dict(vars(found))
