"""The verdict as a person reads it: short, the cause first."""

from __future__ import annotations

from tracekit.report.coverage import left_out, shares
from tracekit.report.json import accused_record
from tracekit.report.words import sentence
from tracekit.report.words.consequence import consequence_lines, share_text
from tracekit.trace import Trace
from tracekit.verdict.coverage import Share
from tracekit.verdict.decision import Decision
from tracekit.verdict.record import ExplanationRecord, VerdictRecord, by_mistake
from tracekit.verdict.verdict import AuditShare, Unmatched, Verdict


def verdict_text(verdict: Verdict, reference: Trace, candidate: Trace, oracle: Trace | None = None) -> str:
    """A dozen lines at most."""
    lines = _heads([("reference", reference), ("candidate", candidate), *([("oracle", oracle)] if oracle else [])])
    lines.append(headline(verdict))
    lines += [f"  {sentence(each)}" for each in verdict.evidence]
    lines += [f"  {line}" for line in _share(verdict, verdict.site)]
    lines += [f"  {line}" for line in _more_culprits(verdict)]
    lines += [f"  {line}" for line in consequence_lines(verdict.consequences)]
    if verdict.token is not None:
        lines.append(f"  {sentence(verdict.token)}")
    if verdict.drift is not None:
        lines.append(f"  drift: {sentence(verdict.drift)}")
    if verdict.decision is Decision.PARITY and verdict.unexercised:
        lines.append(f"  not exercised: {'; '.join(sentence(each) for each in verdict.unexercised)}")
    if verdict.coverage is not None and verdict.compared is not None:
        lines.append(f"  compared: {shares(verdict.coverage)}, {counted_values(verdict.compared.values)}")
        lines += [f"  {line}" for line in left_out(verdict.coverage)]
    lines += [f"  {line}" for line in _unmatched(verdict.unmatched, reference, candidate)]
    lines += [f"  note: {sentence(note)}" for note in verdict.notes]
    if verdict.audit is not None:
        lines += [
            f"  {line}" for line in _audited(verdict.audit, verdict.coverage.audited if verdict.coverage else None)
        ]
    elif verdict.calibration == "uncalibrated":
        lines.append("  uncalibrated: no oracle was given, so small errors may be missed (tracekit oracle makes one)")
    return "\n".join(lines)


def _heads(traces: list[tuple[str, Trace]]) -> list[str]:
    """One line a trace, in columns."""
    rows = [[role, trace.path, *_about(trace)] for role, trace in traces]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _about(trace: Trace) -> list[str]:
    versions = trace.config.get("versions") or {}
    engine = next((f"{name} {versions[name]}" for name in ("torch", "candle") if name in versions), "")
    sequences = trace.sequences
    seed = sequences[0].seed if sequences else None
    steps = sum(sequence.step_count for sequence in sequences)
    counted = f"{steps} steps" if len(sequences) == 1 else f"{steps} steps in {len(sequences)} sequences"
    return [trace.implementation, engine, str(trace.config.get("dtype") or ""), f"seed {seed}", counted]


def headline(verdict: Verdict | VerdictRecord) -> str:
    """The verdict, its cause and its place, in a line."""
    if verdict.decision is Decision.PARITY and verdict.cause is None:
        return "PARITY"
    if verdict.decision is Decision.WITHHELD:
        return f"WITHHELD  {verdict.cause}"
    place = []
    if verdict.sequence:
        place.append(f"sequence {verdict.sequence}")
    if verdict.step is not None:
        place.append(f"step {verdict.step}")
    if verdict.position is not None:
        place.append(f"position {verdict.position}")
    if verdict.site:
        place.append(verdict.site)
    return f"{verdict.decision.value.upper()}  {verdict.cause}" + (f"  at {', '.join(place)}" if place else "")


def _share(verdict: Verdict, site: str | None) -> list[str]:
    """What a culprit's mistake does to the logits, where a reference program tells."""
    accused = next((one for one in verdict.culprits if one.site == site and one.culprit is not None), None)
    if verdict.consequences is None or accused is None or accused.culprit is None:
        return []
    group = verdict.consequences.of(accused.culprit.site)
    return [] if group is None else [share_text(group, verdict.consequences)]


def _together(verdict: Verdict, site: str) -> bool:
    """Whether a culprit is of the mistake that the verdict names."""
    named = {one.site: one.culprit.site for one in verdict.culprits if one.culprit is not None}
    groups = verdict.consequences.groups if verdict.consequences is not None else ()
    return any(named.get(site) in group.sites and named.get(verdict.site or "") in group.sites for group in groups)


def _more_culprits(verdict: Verdict) -> list[str]:
    """The culprits after the first, those with the same mistake together, choices of precision last."""
    place = verdict.site, verdict.step
    rows = [accused_record(accused) for accused in verdict.culprits if (accused.site, accused.step) != place]
    out = []
    for explanation, sites in sorted(by_mistake(rows), key=lambda group: _precise(group[0])):
        more = f" and {len(sites) - 2} more" if len(sites) > 2 else ""
        text = "not explained" if explanation is None else explanation.text
        head = "precision" if _precise(explanation) else "also at fault"
        mine = _share(verdict, sites[0])
        share = f" ({mine[0]})" if mine and not _together(verdict, sites[0]) else ""
        out.append(f"{head}: {', '.join(sites[:2])}{more}: {text}{share}")
    return out


def _precise(explanation: ExplanationRecord | None) -> bool:
    return explanation is not None and explanation.precision


def _audited(audit: AuditShare, share: Share | None) -> list[str]:
    """How much of the candidate was recomputed, and what was not; nothing where nothing was recorded to be."""
    if not audit.sites:
        return []
    sites = audit.sites if share is None else share
    lines = [f"audited against {audit.checkpoint}: {sites} sites, {counted_values(audit.values)}"]
    missing = list(audit.not_audited)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        lines.append(f"not audited: {', '.join(missing[:3])}{more}")
    if audit.recipe_not_followed:
        lines.append(f"both sides depart from the recipe alike at {', '.join(audit.recipe_not_followed[:3])}")
    return lines


def counted_values(values: int) -> str:
    """A number of values in words."""
    return f"{values / 1e6:.1f} million values" if values >= 1e6 else f"{values:,} values"


def _unmatched(unmatched: Unmatched, reference: Trace, candidate: Trace) -> list[str]:
    out = []
    for side, missing, other in (
        ("reference", unmatched.reference, candidate),
        ("candidate", unmatched.candidate, reference),
    ):
        if missing and not any(sequence.sites for sequence in other.sequences):
            name = "candidate" if side == "reference" else "reference"
            out.append(f"the {name} recorded no layers: they are not compared")
        elif missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            out.append(f"only in the {side}: {', '.join(missing[:3])}{more}")
    if unmatched.candidate_sequences:
        out.append(f"sequences of the candidate without a partner: {len(unmatched.candidate_sequences)}")
    return out
