"""A verdict in whole sentences."""

from __future__ import annotations

from collections.abc import Iterable

from tracekit.exit_codes import ExitCode
from tracekit.mistakes.culprits import ExplainedAudit
from tracekit.report.coverage import shares
from tracekit.report.token_rows import token_text
from tracekit.report.token_text import without_controls
from tracekit.report.words import sentence
from tracekit.report.words.culprits import culprit_json
from tracekit.trace import Json, Trace
from tracekit.verdict.causes import rule_of
from tracekit.verdict.decision import Decision
from tracekit.verdict.record import (
    EXPLAINED,
    CulpritRecord,
    ExplanationRecord,
    TokenRecord,
    VerdictRecord,
    by_mistake,
)

BADGES = {Decision.PARITY: "Parity", Decision.DIVERGENCE: "Divergence", Decision.WITHHELD: "No verdict"}


def verdict_words(verdict: VerdictRecord) -> Json:
    """`badge`, `tone` (good, bad, warn), `headline`, `place`, `explained`, `tokens`, `evidence`, `more`."""
    decision, rule = verdict.decision, rule_of(verdict.cause)
    parity, withheld = decision is Decision.PARITY, decision is Decision.WITHHELD
    harmless = rule is not None and not rule.fault
    return {
        "badge": BADGES[decision],
        "tone": "good" if parity else "warn" if withheld or harmless else "bad",
        "cause": verdict.cause,
        "headline": "The two runs agree within rounding" if rule is None else rule.headline,
        "place": _place(verdict),
        "site": verdict.site,
        "explained": _explained(verdict.explanation),
        "tokens": _tokens(verdict.token),
        "evidence": _evidence(verdict),
        "culprits": _together(verdict.further_culprits),
        "notes": [without_controls(note) for note in [*verdict.notes, *_covered(verdict)]],
        "unexercised": verdict.unexercised if parity else (),
    }


def _covered(verdict: VerdictRecord) -> list[str]:
    """How much of the two runs the verdict is about."""
    coverage = verdict.coverage
    if coverage is None:
        return []
    missing = len(coverage.skipped)
    more = f"; {missing} sites have no value, or none in some calls" if missing else ""
    return [f"Compared: {shares(coverage)}{more}"]


def _place(verdict: VerdictRecord) -> str | None:
    parts = [] if not verdict.sequence else [f"sequence {verdict.sequence}"]
    places = (("step", verdict.step), ("position", verdict.position))
    parts += [f"{name} {at}" for name, at in places if at is not None]
    return ", ".join(parts) or None


def _explained(explanation: ExplanationRecord | None) -> str | None:
    if explanation is None:
        return None
    left = f" (residual {explanation.residual:.1f}×)" if explanation.residual >= 0.05 else ""
    return without_controls(explanation.text + left)


def _tokens(token: TokenRecord | None) -> Json | None:
    if token is None:
        return None
    return {"step": token.step, "reference": token_text(token.reference), "candidate": token_text(token.candidate)}


def _evidence(verdict: VerdictRecord) -> list[str]:
    """What the verdict is founded on, but for the explanation, which the page shows apart."""
    said = [each.text for each in verdict.evidence if each.type != EXPLAINED]
    return [without_controls(line) for line in (*said, *verdict.consequences)]


def _together(culprits: Iterable[CulpritRecord]) -> list[Json]:
    """Those with the same mistake together."""
    return [
        {
            "text": "not explained" if explanation is None else explanation.text,
            "sites": sites[:6],
            "more": max(0, len(sites) - 6),
        }
        for explanation, sites in by_mistake(culprits)
    ]


def measured_against(calibration: str) -> str:
    """What the map's errors are divided by."""
    if calibration == "oracle":
        return "Errors are measured against an oracle, the reference in higher precision."
    if calibration == "noise":
        return "Errors are measured against how far harmless variation puts the reference from itself."
    return (
        "Errors are measured against what dtype and depth allow; an oracle (tracekit oracle) would show smaller ones."
    )


def audit_words(found: ExplainedAudit) -> Json:
    """The same of an audit."""
    first = found.culprits[0] if found.culprits else None
    culprits = [CulpritRecord.from_json(culprit_json(culprit)) for culprit in found.culprits]
    stated = [
        f"{item.name.removeprefix('model.')}: {item.candidate} in the engine, {item.reference} in the checkpoint"
        for item in found.differences
    ]
    bytes_differ = [f"parameter {name}: bytes differ from the checkpoint" for name in found.weights[:3]]
    return _bare(*_judged(found)) | {
        "place": None if first is None else f"step {first.step}, position {first.position}",
        "site": None if first is None else first.site,
        "explained": _explained(culprits[0].explanation) if culprits else None,
        "evidence": [
            without_controls(line)
            for line in [
                *map(sentence, found.lost),
                *stated,
                *bytes_differ,
                *([sentence(first.evidence)] if first else []),
                *_not_finite(found),
            ]
        ],
        "culprits": _together(culprits[1:]),
    }


PRECISE = ("Precision", "good", "Choices of precision alone: every formula is as declared")


def _judged(found: ExplainedAudit) -> tuple[str, str, str]:
    """Badge, tone and headline."""
    if found.precise and found.exit_code is ExitCode.AGREE:
        return PRECISE
    return LOST if found.lost and not found.departs else AUDITED[found.exit_code]


AUDITED = {
    ExitCode.AGREE: ("Within bounds", "good", "Every audited site is within its rounding bound"),
    ExitCode.DIFFER: ("Departs", "bad", "It departs from its checkpoint"),
    ExitCode.TROUBLE: ("Withheld", "warn", "Values that are not finite leave sites unjudged"),
}

LOST = ("Withheld", "warn", "The recording is not whole")


def _not_finite(found: ExplainedAudit) -> list[str]:
    return [] if found.non_finite is None else [sentence(found.non_finite)]


def recorded_words(trace: Trace) -> Json:
    """Of a trace that nothing is said about but what is in it."""
    steps = sum(sequence.step_count for sequence in trace.sequences)
    sites = len({name for sequence in trace.sequences for name in sequence.sites})
    several = f" in {len(trace.sequences)} sequences" if len(trace.sequences) > 1 else ""
    held = f"{steps:,} steps{several}, {sites} sites, {len(trace.weights)} parameters"
    return _bare("Recorded", "warn", "One trace, with nothing to compare it with") | {
        "evidence": [held, *([trace.status_detail] if trace.status_detail else [])]
    }


def _bare(badge: str, tone: str, headline: str) -> Json:
    nothing: Json = dict.fromkeys(("cause", "place", "site", "explained", "tokens"))
    empty: Json = {name: [] for name in ("evidence", "culprits", "notes", "unexercised")}
    return {"badge": badge, "tone": tone, "headline": headline, **nothing, **empty}
