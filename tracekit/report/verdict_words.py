"""A verdict in whole sentences."""

from __future__ import annotations

from tracekit.mistakes.culprits import ExplainedAudit
from tracekit.report.json import by_mistake, further_culprits
from tracekit.report.token_rows import texts_of
from tracekit.report.token_text import without_controls
from tracekit.report.words import sentence
from tracekit.report.words.culprits import culprit_json
from tracekit.report.words.explanations import explanation_json
from tracekit.trace import Json, Trace
from tracekit.verdict.causes import rule_of


def verdict_words(verdict: Json) -> Json:
    """`badge`, `tone` (good, bad, warn), `headline`, `place`, `explained`, `tokens`, `evidence`, `more`."""
    kind, cause = verdict["verdict"], verdict["cause"]
    explanation, rule = verdict.get("explanation"), rule_of(cause)
    harmless = rule is not None and not rule.fault
    return {
        "badge": {"parity": "Parity", "divergence": "Divergence"}.get(kind, "No verdict"),
        "tone": "good" if kind == "parity" else "warn" if kind == "withheld" or harmless else "bad",
        "cause": cause,
        "headline": "The two runs agree within rounding" if rule is None else rule.headline,
        "place": _place(verdict),
        "site": verdict.get("site"),
        "explained": None if explanation is None else without_controls(_explained(explanation)),
        "tokens": _tokens(verdict.get("token")),
        "evidence": _evidence(verdict),
        "culprits": _also(verdict),
        "notes": [without_controls(note) for note in [*verdict.get("notes", []), *_covered(verdict)]],
        "unexercised": verdict.get("unexercised", []) if kind == "parity" else [],
    }


def _covered(verdict: Json) -> list[str]:
    """How much of the two runs the verdict is about."""
    coverage = verdict.get("coverage")
    if not coverage:
        return []
    said = [f"{coverage[name]['done']} of {coverage[name]['of']} {name}" for name in ("steps", "sites", "parameters")]
    missing = len(coverage["skipped"])
    more = f"; {missing} sites have no value, or none in some calls" if missing else ""
    return [f"Compared: {', '.join(said)}{more}"]


def _place(verdict: Json) -> str | None:
    parts = [] if not verdict.get("sequence") else [f"sequence {verdict['sequence']}"]
    parts += [f"{name} {verdict[name]}" for name in ("step", "position") if verdict.get(name) is not None]
    return ", ".join(parts) or None


def _explained(explanation: Json) -> str:
    left = explanation.get("residual") or 0.0
    return f"{explanation['text']} (residual {left:.1f}×)" if left >= 0.05 else explanation["text"]


def _tokens(token: Json | None) -> Json | None:
    if token is None:
        return None
    return {"step": token["step"], "reference": texts_of(token["reference"]), "candidate": texts_of(token["candidate"])}


def _evidence(verdict: Json) -> list[str]:
    """What the verdict is founded on, but for the explanation, which the page shows apart."""
    findings = verdict.get("findings") or [{}] * len(verdict["evidence"])
    lines = zip(verdict["evidence"], findings, strict=True)
    said = [line for line, found in lines if found.get("type") != "explained"]
    told = verdict.get("consequences") or {}
    said += [each["text"] for each in (told, told.get("repaired")) if each]
    return [without_controls(line) for line in said]


def _also(verdict: Json) -> list[Json]:
    """The culprits after the first, those with the same mistake together."""
    return _together(further_culprits(verdict))


def _together(culprits: list[Json]) -> list[Json]:
    return [
        {
            "text": "not explained" if explanation is None else explanation["text"],
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
    explanation = None if first is None else first.explanation
    stated = [
        f"{item.name.removeprefix('model.')}: {item.candidate} in the engine, {item.reference} in the checkpoint"
        for item in found.differences
    ]
    bytes_differ = [f"parameter {name}: bytes differ from the checkpoint" for name in found.weights[:3]]
    return _bare(
        **(PRECISE if found.precise and not found.exit_code else _judged(found)),
    ) | {
        "place": None if first is None else f"step {first.step}, position {first.position}",
        "site": None if first is None else first.site,
        "explained": None if explanation is None else without_controls(_explained(explanation_json(explanation) or {})),
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
        "culprits": _together([culprit_json(culprit) for culprit in found.culprits[1:]]),
    }


PRECISE = {"badge": "Precision", "tone": "good", "headline": "Choices of precision alone: every formula is as declared"}


def _judged(found: ExplainedAudit) -> Json:
    return LOST if found.lost and not found.departs else AUDITED[found.exit_code]


AUDITED = {
    0: {"badge": "Within bounds", "tone": "good", "headline": "Every audited site is within its rounding bound"},
    1: {"badge": "Departs", "tone": "bad", "headline": "It departs from its checkpoint"},
    2: {"badge": "Withheld", "tone": "warn", "headline": "Values that are not finite leave sites unjudged"},
}

LOST = {"badge": "Withheld", "tone": "warn", "headline": "The recording is not whole"}


def _not_finite(found: ExplainedAudit) -> list[str]:
    return [] if found.non_finite is None else [sentence(found.non_finite)]


def recorded_words(trace: Trace) -> Json:
    """Of a trace that nothing is said about but what is in it."""
    steps = sum(sequence.step_count for sequence in trace.sequences)
    sites = len({name for sequence in trace.sequences for name in sequence.sites})
    several = f" in {len(trace.sequences)} sequences" if len(trace.sequences) > 1 else ""
    held = f"{steps:,} steps{several}, {sites} sites, {len(trace.weights)} parameters"
    return _bare(badge="Recorded", tone="warn", headline="One trace, with nothing to compare it with") | {
        "evidence": [held, *([trace.status_detail] if trace.status_detail else [])]
    }


def _bare(*, badge: str, tone: str, headline: str) -> Json:
    nothing: Json = dict.fromkeys(("cause", "place", "site", "explained", "tokens"))
    empty: Json = {name: [] for name in ("evidence", "culprits", "notes", "unexercised")}
    return {"badge": badge, "tone": tone, "headline": headline, **nothing, **empty}
