"""A postmortem as a person reads it on a terminal: how many seeds fail, and a paragraph a group."""

from __future__ import annotations

from dataclasses import asdict

from tracekit.report.words import sentence
from tracekit.trace import Json
from tracekit.verdict.outcome import FORMAT, Group, Postmortem, Rate

MOST_SEEDS = 12


def postmortem_text(found: Postmortem) -> str:
    """Rates with their 95 % intervals, groups with their seeds and where they part, and the control."""
    lines = [
        f"reference  {found.reference}",
        f"candidate  {found.candidate}",
        f"{found.failing.count} of {found.failing.of} seeds fail ({_interval(found.failing)})",
    ]
    if not found.complete:
        lines.append("not complete: seeds are missing")
    for group in found.groups:
        lines += ["", *_group(group)]
    if found.control is not None and found.control_text is not None:
        verdict = next(
            line for line in found.control_text.splitlines() if not line.startswith(("reference", "candidate"))
        )
        lines += ["", f"seed {found.control} passes and was recorded in full, too: {verdict}"]
    return "\n".join(lines)


def postmortem_json(found: Postmortem) -> Json:
    """Ready for `json.dumps`. Of each group `luck` has the numbers and `lucky` the sentence that says them."""
    groups = [
        asdict(group)
        | {
            "lucky": None if group.luck is None else sentence(group.luck),
            "luck": {} if group.luck is None else asdict(group.luck),
        }
        for group in found.groups
    ]
    return {"format": FORMAT, **asdict(found), "groups": groups}


def _group(group: Group) -> list[str]:
    kind = "" if group.failing else "  (no failure)"
    lines = [f"{group.name}: {_counted(group.rate.count, 'seed')} ({_interval(group.rate)}){kind}"]
    if group.seeds:
        lines.append(f"  seeds {_listed(group.seeds)}")
    if group.latent:
        lines.append(f"  of these the tokens agree in {_listed(group.latent)}")
    for other, seeds in group.overlaps.items():
        lines.append(f"  also shows in {_listed(seeds)}, after {other}")
    steps = sorted({step for step in group.steps if step is not None})
    if steps:
        lines.append(f"  diverges at step {_listed(tuple(steps))}")
    lines += [f"  {line.strip()}" for line in _said(group)]
    if group.luck is not None:
        lines.append(f"  {sentence(group.luck)}")
    return lines


def _said(group: Group) -> list[str]:
    """The headline of the example's verdict, and what explains it."""
    rows = group.text.splitlines()
    heads = [row for row in rows if row.startswith(("DIVERGENCE", "WITHHELD"))]
    why = [row for row in rows if row.strip().startswith("explained:")]
    if not heads:
        return rows[:1]
    behind = rows[rows.index(heads[0]) + 1 :]
    return [f"seed {group.example}: {heads[0]}", *(why or behind)[:1]]


def _interval(rate: Rate) -> str:
    share = rate.count / rate.of if rate.of else 0.0
    return f"{share:.0%}, {rate.low:.1%} to {rate.high:.1%}"


def _listed(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:MOST_SEEDS]))
    return shown if len(numbers) <= MOST_SEEDS else f"{shown} and {len(numbers) - MOST_SEEDS} more"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
