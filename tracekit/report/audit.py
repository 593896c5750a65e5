"""The audit as a person reads it."""

from __future__ import annotations

import re

from tracekit.auditing.consequence import Consequence, Consequences
from tracekit.auditing.not_audited import NotAudited
from tracekit.auditing.own_error import FALSE_ALARMS
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.exit_codes import ExitCode
from tracekit.inspection.settings import Difference
from tracekit.mistakes.culprit_groups import grouped
from tracekit.mistakes.culprits import ExplainedAudit, ExplainedCulprit
from tracekit.mistakes.explanation import Explained, in_the_source
from tracekit.report.coverage import coverage_json, left_out, shares
from tracekit.report.text import counted_values
from tracekit.report.words import fields_and_text, sentence
from tracekit.report.words.consequence import consequence_lines, consequences_json, share_text
from tracekit.report.words.culprits import culprit_json
from tracekit.trace import Json, Trace
from tracekit.verdict.coverage import audited_coverage

SHOWN = 5
FORMAT = 2
"""Of the JSON: 2 has ids of mistakes and statistics, and the evidence's numbers."""
HEADLINES = {
    ExitCode.AGREE: "WITHIN ITS ROUNDING BOUNDS",
    ExitCode.DIFFER: "DEPARTS FROM ITS CHECKPOINT",
    ExitCode.TROUBLE: "WITHHELD  what is computed from values that are not finite is not judged",
}
PRECISE = "PRECISION  every formula is as declared; these sites round differently"
VERDICTS = {ExitCode.AGREE: "within bounds", ExitCode.DIFFER: "departs", ExitCode.TROUBLE: "withheld"}


def audit_text(found: ExplainedAudit, trace: Trace, checkpoint: Checkpoint) -> str:
    """The culprits with their explanations, what the engine says it used, and what was not audited."""
    config = trace.config
    steps = sum(sequence.step_count for sequence in trace.sequences)
    lines = [f"audited    {trace.path}  {trace.implementation}  {config.get('dtype') or ''}  {steps} steps"]
    lines.append(f"against    {checkpoint.path}")
    lines.append(_headline(found))
    lines += [f"  {sentence(loss)}" for loss in found.lost]
    lines += [] if found.non_finite is None else [f"  {sentence(found.non_finite)}"]
    lines += [f"  {_stated(difference)}" for difference in found.differences]
    if found.weights:
        more = f" and {len(found.weights) - 1} more" if len(found.weights) > 1 else ""
        lines.append(f"  parameter {found.weights[0]}{more}: bytes differ from the checkpoint")
    groups = grouped(found.culprits)
    for group in groups[:SHOWN]:
        lines += mistake_lines(group, found.consequences)
    if len(groups) > SHOWN:
        lines.append(f"  and {sum(map(len, groups[SHOWN:]))} more culprits")
    lines += [f"  {line}" for line in consequence_lines(found.consequences)]
    coverage = audited_coverage(found, trace)
    lines.append(f"  audited: {shares(coverage)}, {counted_values(found.values)}")
    lines += _not_audited(found)
    lines += [f"  {line}" for line in left_out(coverage)]
    lines += [f"  note: {sentence(note)}" for note in found.notes]
    return "\n".join(lines)


def _headline(found: ExplainedAudit) -> str:
    if found.lost and not found.departs:
        return "WITHHELD  capture"
    return PRECISE if found.precise and found.exit_code is ExitCode.AGREE else HEADLINES[found.exit_code]


def mistake_lines(group: list[ExplainedCulprit], consequences: Consequences | None = None) -> list[str]:
    """Culprits of one mistake: the first with its evidence and explanation, the names of others."""
    first, explanation = group[0], group[0].explanation
    place = f"sequence {first.sequence}, " if first.sequence else ""
    lines = [
        f"  {first.site} at {place}step {first.step}, position {first.position}",
        f"    {sentence(first.evidence)}",
    ]
    if explanation is not None:
        lines.append(f"    {sentence(Explained(explanation))}")
        lines += [f"    {sentence(said)}" for said in in_the_source(explanation)]
    lines += [f"    {sentence(said)}" for said in first.in_part]
    share = None if consequences is None else consequences.of(first.site)
    if share is not None and consequences is not None:
        lines.append(f"    {share_text(share, consequences)}{_with(group, share)}")
    if len(group) > 1:
        more = f" and {len(group) - 3} more" if len(group) > 3 else ""
        lines.append(f"    the same at {', '.join(culprit.site for culprit in group[1:3])}{more}")
    return lines


def _with(group: list[ExplainedCulprit], share: Consequence) -> str:
    """Of a group that was weighed together with others."""
    others = len(share.sites) - len(group)
    return f", with {others} other culprit{'s' if others > 1 else ''}" if others else ""


def _stated(difference: Difference) -> str:
    name = difference.name.removeprefix("model.")
    return f"your engine says {name} {difference.candidate}; the checkpoint declares {difference.reference}"


def _not_audited(found: ExplainedAudit) -> list[str]:
    """Sites by the reason that they were not audited, which may name the same module of several layers."""
    reasons: dict[NotAudited, dict[str, NotAudited]] = {}
    for site, why in found.unknown.items():
        of_any_layer = tuple(re.sub(r"\.\d+\.", ".*.", name) for name in why.of)
        reasons.setdefault(NotAudited(why.lacks, of_any_layer), {})[site] = why
    out = []
    for general, told in reasons.items():
        sites, each = list(told), set(told.values())
        more = f" and {len(sites) - 2} more" if len(sites) > 2 else ""
        shown = sentence(general if len(each) > 1 else each.pop())
        out.append(f"  not audited: {', '.join(sites[:2])}{more}: {shown}")
    return out


def audit_json(found: ExplainedAudit, trace: Trace, checkpoint: Checkpoint) -> Json:
    """The whole audit, ready for `json.dumps`."""
    return {
        "format": FORMAT,
        "verdict": "precision" if found.precise and found.exit_code is ExitCode.AGREE else VERDICTS[found.exit_code],
        "trace": trace.path,
        "checkpoint": checkpoint.path,
        "culprits": [culprit_json(culprit) for culprit in found.culprits],
        "consequences": consequences_json(found.consequences),
        "weights": list(found.weights),
        "differences": [vars(difference) for difference in found.differences],
        "sites": len(found.clean) + len(found.culprits),
        "values": found.values,
        "tests": found.tests,
        "false_alarms": FALSE_ALARMS,
        "not_audited": {site: sentence(why) for site, why in found.unknown.items()},
        "non_finite": None if found.non_finite is None else fields_and_text(found.non_finite),
        "notes": [sentence(note) for note in found.notes],
        "coverage": coverage_json(audited_coverage(found, trace)),
    }
