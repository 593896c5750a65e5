"""A postmortem as a page shows it: in words, its groups, its seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection

from tracekit.report.token_text import lines_without_controls
from tracekit.report.verdict_words import verdict_words
from tracekit.report.words import sentence
from tracekit.trace import Json
from tracekit.verdict.outcome import Group, Postmortem, Rate, Run, Seed, State

HEADS = (
    ("seed", True, None),
    ("state", False, None),
    ("tokens", True, "reference | candidate"),
    ("longer by", True, "tokens of the candidate beyond the reference's"),
    ("ended by", False, "reference | candidate"),
    ("fallbacks", True, "draws again because of repetition or of a stop that came too early"),
    ("first divergent step", True, None),
    ("closest margin", True, "nats: how near another token came to being drawn, at the tightest step"),
    ("apart", True, "nats: median difference of the survivors' log-probabilities"),
    ("group", False, None),
)
"""Columns of the table of seeds: name, whether numbers are in it, what it says."""
FEW = 12
"""Seeds of a group that are named before the rest is folded away."""


def postmortem_rows(found: Postmortem, shown: Collection[str]) -> Json:
    """Everything the page's seeds and groups need. `shown`: groups that have a section of their own."""
    groups_of: dict[int, list[Json]] = {}
    for number, group in enumerate(found.groups, 1):
        for seed in group.seeds:
            groups_of.setdefault(seed, []).append({"name": group.name, "number": number})
    states = {state.value: sum(seed.state is state for seed in found.seeds) for state in State}
    return {
        "reference": found.reference,
        "candidate": found.candidate,
        "complete": found.complete,
        "control": found.control,
        "control_text": lines_without_controls(found.control_text or ""),
        "headline": _headline(found),
        "tone": "bad" if found.failing.count else "warn" if _latent(found) else "good",
        "rate": rate_text(found.failing),
        "heads": [{"name": name, "number": number, "said": said} for name, number, said in HEADS],
        "states": {state: count for state, count in states.items() if count},
        "groups": [_group(group, group.name in shown) for group in found.groups],
        "seeds": [_seed(seed, groups_of.get(seed.seed, [])) for seed in found.seeds],
    }


def _headline(found: Postmortem) -> str:
    failing = [group for group in found.groups if group.failing]
    rate = found.failing
    if not rate.count:
        hidden = _latent(found)
        also = f", but {hidden} {'has' if hidden == 1 else 'have'} a fault that no token shows" if hidden else ""
        return f"None of {rate.of} seeds fails{also}"
    fail = "seed fails" if rate.of == 1 else f"seeds {'fails' if rate.count == 1 else 'fail'}"
    groups = "all alike" if len(failing) == 1 else f"in {len(failing)} groups"
    return f"{rate.count} of {rate.of} {fail}" + (f", {groups}" if rate.count > 1 and failing else "")


def _latent(found: Postmortem) -> int:
    return sum(seed.state is State.LATENT for seed in found.seeds)


def rate_text(rate: Rate) -> str:
    """`14 of 100, 14 % (95 % interval 8.5 to 22 %)`."""
    share = 100 * rate.count / rate.of if rate.of else 0.0
    interval = f"95 % interval {100 * rate.low:.3g} to {100 * rate.high:.3g} %"
    return f"{rate.count} of {rate.of}, {share:.3g} % ({interval})"


def _group(group: Group, shown: bool) -> Json:
    steps = [step for step in group.steps if step is not None]
    return {
        "name": group.name,
        "cause": group.cause,
        "site": group.site,
        "mechanism": group.mechanism,
        "failing": group.failing,
        "rate": rate_text(group.rate),
        "share": _percent(group.rate.count / group.rate.of if group.rate.of else 0.0),
        "low": _percent(group.rate.low),
        "high": _percent(group.rate.high),
        "count": len(group.seeds),
        "few": list(group.seeds[:FEW]),
        "rest": list(group.seeds[FEW:]),
        "steps": _steps(steps),
        "latent": list(group.latent),
        "lucky": None if group.luck is None else sentence(group.luck),
        "overlaps": [{"group": name, "seeds": list(seeds)} for name, seeds in group.overlaps.items()],
        "example": group.example,
        "words": None if group.verdict is None else verdict_words(group.verdict),
        "text": lines_without_controls(group.text),
        "shown": shown,
    }


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _steps(steps: list[int]) -> str:
    if not steps:
        return "none"
    if min(steps) == max(steps):
        return f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} in all of them"
    return f"{min(steps)} to {max(steps)}, median {sorted(steps)[len(steps) // 2]}"


def _seed(seed: Seed, groups: list[Json]) -> Json:
    return {
        "seed": seed.seed,
        "state": seed.state.value,
        "tokens": _sides(seed, lambda run: f"{run.tokens:,}"),
        "longer": seed.candidate.tokens - seed.reference.tokens,
        "ends": _sides(seed, lambda run: ", ".join(dict.fromkeys(run.ends)) or _exit(run)),
        "fallbacks": _sides(seed, lambda run: str(run.fallbacks + run.redraws)),
        "step": seed.step,
        "sequence": seed.sequence,
        "groups": groups,
        "note": seed.note or seed.reference.trouble or seed.candidate.trouble or "",
        "margin": f"{min(seed.margins):.2g}" if seed.margins else "",
        "apart": f"{seed.apart:.1e}" if seed.apart is not None else "",
    }


def _exit(run: Run) -> str:
    return "did not end" if run.exit_code is None else f"exit {run.exit_code}"


def _sides(seed: Seed, said: Callable[[Run], str]) -> str:
    """Both sides' text, once where they say the same."""
    texts = [said(run) for run in (seed.reference, seed.candidate)]
    return texts[0] if texts[0] == texts[1] else " | ".join(texts)
