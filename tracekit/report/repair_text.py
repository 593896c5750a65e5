"""A repair in the live engine as a person reads it."""

from __future__ import annotations

from dataclasses import asdict

from tracekit.auditing.consequence import StepTokens
from tracekit.mistakes.culprit_groups import grouped
from tracekit.report.audit import mistake_lines
from tracekit.report.words.consequence import token_columns
from tracekit.report.words.culprits import culprit_json
from tracekit.report.words.numbers import number
from tracekit.trace import Json
from tracekit.verdict.live_repair import BesideReference, LiveRepair

FORMAT = 1
SHOWN = 5
"""Mistakes and names of sites."""
STEPS = 8
"""Steps whose tokens are shown."""
RUNS = ("reference", "mended", "candidate")


def repair_text(found: LiveRepair) -> str:
    """Whether the tokens are the reference's now, where values were written and why, the tokens and logits of all."""
    lines = [
        f"reference  {found.reference}",
        f"candidate  {found.candidate}  {found.engine}  {found.model}",
        f"against    {found.checkpoint}",
        _headline(found),
    ]
    groups = grouped(found.culprits)
    for group in groups[:SHOWN]:
        lines += mistake_lines(group)
    lines += [f"  and {sum(map(len, groups[SHOWN:]))} more culprits"] if len(groups) > SHOWN else []
    if found.sites:
        more = f" and {len(found.sites) - SHOWN} more" if len(found.sites) > SHOWN else ""
        lines.append(f"  written while {found.engine} ran: {', '.join(found.sites[:SHOWN])}{more}")
    left = found.left
    if left:
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        lines.append(f"  left as they were: {', '.join(left[:SHOWN])}{more}")
    lines += [f"  {line}" for line in _logits(found)]
    lines += [f"  {line}" for line in token_columns(_shown(found))]
    lines += [f"  {name.ljust(9)}  {text!r}" for name, text in zip(RUNS, found.texts, strict=True)]
    lines += [f"  {line}" for line in _notes(found)]
    return "\n".join(lines)


def _headline(found: LiveRepair) -> str:
    after, before = found.after, found.before
    if not found.sites:
        head = f"NOTHING TO REPAIR  all {found.audited} audited sites are within their rounding bounds"
        return f"{head}; {_tokens(after)}"
    was = "as before" if before.same == after.same else f"before {before.same}"
    return f"{'REPAIRED' if after.whole else 'NOT REPAIRED'}  {_tokens(after)}, {was}"


def _tokens(run: BesideReference) -> str:
    if run.whole:
        return f"all {run.steps} tokens are the reference's"
    return f"{run.same} of {run.steps} tokens are the reference's"


def _logits(found: LiveRepair) -> list[str]:
    """How far the logits are off, and what decides the first token that is another one."""
    before, after = found.before, found.after
    lines = []
    if before.error is not None and after.error is not None:
        was = f", before {number(before.error, 2)}" if found.sites else ""
        lines.append(f"logits are off by {number(after.error, 2)} (relative){was}")
    if after.margin is not None:
        lines.append(f"at step {after.same} the reference's token leads by {number(after.margin, 2)} in its logits")
    if not after.whole and not found.left:
        other = f" or the {found.unaudited} sites that are not audited" if found.unaudited else ""
        lines.append(f"no other audited site is beyond its bound: rounding is left{other}, or the reference's own")
    return lines


def _shown(found: LiveRepair) -> list[StepTokens]:
    """Up to the last step of interest: the first at which the candidate's token is another one, or the repaired run's
    is."""
    until = found.after.same if not found.after.whole else found.before.same
    return list(found.tokens[: until + 1][-STEPS:])


def _notes(found: LiveRepair) -> list[str]:
    notes = []
    if found.drawn:
        notes.append("note: tokens are drawn, in all runs with the candidate's settings and seed")
    if not found.repeated:
        notes.append("note: run again as it was, the engine gives other logits than the candidate recorded")
    if found.unaudited:
        notes.append(f"note: {found.unaudited} of {found.audited + found.unaudited} sites are not audited")
    return notes


def repair_json(found: LiveRepair) -> Json:
    """The whole repair, ready for `json.dumps`."""
    names = ("engine", "model", "checkpoint", "reference", "candidate", "audited", "unaudited", "repeated", "drawn")
    return {
        "format": FORMAT,
        "repaired": found.after.whole,
        **{name: getattr(found, name) for name in names},
        "sites": list(found.sites),
        "culprits": [culprit_json(culprit) for culprit in found.culprits],
        "before": asdict(found.before),
        "after": asdict(found.after),
        "tokens": [asdict(each) for each in found.tokens],
        "texts": dict(zip(RUNS, found.texts, strict=True)),
        "text": repair_text(found),
    }
