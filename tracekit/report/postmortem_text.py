"""A postmortem as a person reads it on a terminal: how many seeds fail, and a paragraph a group."""

from __future__ import annotations

from dataclasses import asdict, replace

from tracekit.report.text import headline
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
    if found.control is not None and found.control_headline is not None:
        lines += ["", f"seed {found.control} passes and was recorded in full, too: {found.control_headline}"]
    return "\n".join(lines)


def postmortem_json(found: Postmortem) -> Json:
    """Ready for `json.dumps`. Of each group `luck` has the numbers and `lucky` the sentence that says them."""
    groups = [
        asdict(replace(group, verdict=None))
        | {
            "verdict": None if group.verdict is None else group.verdict.json,
            "lucky": None if group.luck is None else sentence(group.luck),
            "luck": {} if group.luck is None else asdict(group.luck),
        }
        for group in found.groups
    ]
    rest = asdict(replace(found, seeds=(), groups=()))
    return {"format": FORMAT, **rest, "seeds": [seed.to_json() for seed in found.seeds], "groups": groups}


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
    verdict = group.verdict
    if verdict is None:
        return group.text.splitlines()[:1]
    why = verdict.explained or next((each.text for each in verdict.evidence), None)
    return [f"seed {group.example}: {headline(verdict)}", *([] if why is None else [why])]


def _interval(rate: Rate) -> str:
    share = rate.count / rate.of if rate.of else 0.0
    return f"{share:.0%}, {rate.low:.1%} to {rate.high:.1%}"


def _listed(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:MOST_SEEDS]))
    return shown if len(numbers) <= MOST_SEEDS else f"{shown} and {len(numbers) - MOST_SEEDS} more"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
