"""A verdict that crosses processes: written as JSON, read back as types."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tracekit
from tracekit.align.pair import Side
from tracekit.compare.findings import Chosen, SiteWrong, TokenDiffers
from tracekit.inspection.settings import Difference
from tracekit.mistakes.explanation import Explained, Explanation, Mistake
from tracekit.report.json import record_of, verdict_json
from tracekit.report.text import headline
from tracekit.verdict.cause import Cause
from tracekit.verdict.causes import rules
from tracekit.verdict.coverage import Coverage, Share
from tracekit.verdict.decision import Decision
from tracekit.verdict.record import VerdictRecord, by_mistake
from tracekit.verdict.rule import CauseRule
from tracekit.verdict.ruling import Margins, Narrowest, RunMargins
from tracekit.verdict.verdict import Accused, AuditShare, Verdict

ROOT = Path(__file__).parent.parent
THETA = Mistake("rotary_theta", "rotary theta {found:.9g} instead of {stated:.9g}", "found")


def of_cause(cause: Cause, decision: Decision) -> Verdict:
    """A verdict with something in every field."""
    site = "model.layers.3.mlp"
    found = SiteWrong(
        sequence=1, step=2, position=8, site=site, candidate_site=site, ratio=9.0, error=1e-3, wrong=1, positions=9
    )
    part = Explanation(THETA, {"found": 5e5, "stated": 1e4})
    explanation = replace(part, parts=(part, part), also=(part,), residual=0.4)
    apart = TokenDiffers(sequence=1, step=4, position=10, site="token", reference=Chosen(5, " a"), candidate=Chosen(7))
    return Verdict(
        decision,
        cause,
        found,
        (found, Explained(explanation)),
        "uncalibrated",
        explanation,
        culprits=(Accused(Side.CANDIDATE, site, 2, 8), Accused(Side.CANDIDATE, "model.layers.4.mlp", 2, 8)),
        token=apart,
        margins=Margins(run=RunMargins(12, logit_gap=Narrowest(0.1, 0, 3))),
        unexercised=("nothing",),
        differences=(Difference("top_p", 0.8, 0.9),),
        notes=("a note",),
        audit=AuditShare("/model", 3, 100, {}, (), 4),
        coverage=Coverage(
            Share(1, 2), Share(3, 4), Share(5, 6), skipped={"model.norm": "no value"}, in_part=("model.norm",)
        ),
    )


def again(record: VerdictRecord) -> VerdictRecord:
    """As another process reads it."""
    return VerdictRecord.from_json(json.loads(json.dumps(record.json)))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.cause)
def test_a_verdict_of_every_cause_is_read_back(rule: CauseRule) -> None:
    verdict = of_cause(rule.cause, rule.decision)
    record = again(record_of(verdict))
    assert record == record_of(verdict) and record.json == json.loads(json.dumps(verdict_json(verdict)))
    for name in ("decision", "cause", "sequence", "step", "position", "site"):
        assert getattr(record, name) == getattr(verdict, name), name
    assert isinstance(record.cause, Cause) and isinstance(record.decision, Decision)
    assert headline(record) == headline(verdict)
    assert record.explanation is not None and record.explanation.mistake == THETA.id
    assert [part.values["found"] for part in record.explanation.parts] == [5e5, 5e5]
    assert record.explained == record.evidence[1].text
    assert [each.site for each in record.further_culprits] == ["model.layers.4.mlp"]
    assert record.token is not None and (record.token.step, record.token.candidate) == (4, Chosen(7))
    assert (record.narrowest, record.differences, record.checkpoint) == ((0, 3), ("top_p",), "/model")
    assert record.coverage is not None and str(record.coverage.sites) == "3 of 4"


@pytest.mark.parametrize("name", ["native", "layer", "filter", "rng", "stop"])
def test_verdicts_on_the_sample_traces_are_read_back(name: str) -> None:
    verdict = tracekit.diff(ROOT / "traces/python.h5", ROOT / f"traces/{name}.h5")
    record = again(record_of(verdict))
    assert headline(record) == headline(verdict)
    assert [each.text for each in record.evidence] == verdict.to_json()["evidence"]
    assert [(each.side, each.site) for each in record.culprits if each.own is not None] == [
        (each.side, each.site) for each in verdict.culprits if each.culprit is not None
    ]


def test_culprits_are_put_together_by_mistake_and_values_not_by_what_is_left() -> None:
    record = record_of(of_cause(Cause.LAYER, Decision.DIVERGENCE))
    assert record.explanation is not None
    one, other = record.explanation, replace(record.explanation, residual=3.0, text="in other words")
    more = replace(one, values={"found": 2e4, "stated": 1e4})
    first = record.culprits[0]
    rows = [replace(first, site=str(at), explanation=each) for at, each in enumerate((one, None, other, more, None))]
    assert [sites for _, sites in by_mistake(rows)] == [["0", "2"], ["1", "4"], ["3"]]


def test_another_format_is_no_verdict() -> None:
    row = record_of(of_cause(Cause.LAYER, Decision.DIVERGENCE)).json
    with pytest.raises(ValueError, match="format 1"):
        VerdictRecord.from_json(row | {"format": 1})
