"""What was found of the mutants, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.mutants.trial import Outcome, State

START, END = "<!-- mutants -->", "<!-- end of mutants -->"


def report(outcomes: Sequence[Outcome], twins: Sequence[Outcome]) -> str:
    """Tables by family and by kind, the counts, and every miss."""
    misses = [
        *(missed(outcome) for outcome in outcomes if outcome.judged and not _good(outcome)),
        *(f"ALARM  {twin.family}, tokens {twin.seed}/{twin.index}: {twin.found}" for twin in twins if twin.found),
    ]
    return "\n\n".join([*tables(outcomes), "\n".join(totals(outcomes, twins)), "\n".join(misses)])


def tables(outcomes: Sequence[Outcome]) -> list[str]:
    """By family and by kind."""
    families = [outcome.family for outcome in outcomes]
    return [_table(outcomes, "family", families), _table(outcomes, "changed", [outcome.kind for outcome in outcomes])]


def written(page: Path, outcomes: Sequence[Outcome], twins: Sequence[Outcome]) -> None:
    """Put the tables and the counts into a page, between its two marks."""
    text = page.read_text(encoding="utf-8")
    head, tail = text[: text.index(START) + len(START)], text[text.index(END) :]
    seeds = ", ".join(str(seed) for seed in sorted({outcome.seed for outcome in outcomes}))
    counts = "\n".join(f"- {line}" for line in totals(outcomes, twins))
    page.write_text("\n\n".join([head, f"Seeds {seeds}:", counts, *tables(outcomes), tail]), encoding="utf-8")


def totals(outcomes: Sequence[Outcome], twins: Sequence[Outcome]) -> list[str]:
    """The counts, a sentence each."""
    states = Counter(outcome.state for outcome in outcomes)
    judged = [outcome for outcome in outcomes if outcome.judged]
    small = [outcome for outcome in outcomes if outcome.state == State.ROUNDING.value]
    claims = [outcome for outcome in judged if outcome.claimed]
    right = sum(outcome.line_right is True for outcome in claims)
    by_recipe = sum(bool(o.explained) and not o.claimed for o in judged)
    return [
        f"{len(outcomes)} mutants: " + ", ".join(f"{state}: {count}" for state, count in sorted(states.items())),
        f"of those below rounding, found nevertheless: {_of(sum(bool(o.found) for o in small), len(small))}",
        f"found at all: {_of(sum(bool(o.found) for o in judged), len(judged))}",
        "site right (the first culprit is the first site that changes): "
        + _of(sum(o.site_right for o in judged), len(judged)),
        f"every site that changes is a culprit: {_of(sum(not o.missed for o in judged), len(judged))}",
        f"a culprit where nothing changes: {_of(sum(bool(o.elsewhere) for o in judged), len(judged))}",
        f"line right: {_of(right, len(judged))}",
        "line right, and no other line named with it: "
        + _of(sum(o.line_right is True and len(o.claimed) == 1 for o in claims), len(judged)),
        f"line claimed and wrong: {_of(len(claims) - right, len(judged))}",
        f"explained by a recipe, without a line: {_of(by_recipe, len(judged))}",
        f"false alarm on the unmutated twin: {_of(sum(bool(t.found) for t in twins), len(twins))}",
        f"{sum(o.seconds for o in outcomes):.0f} s of CPU",
    ]


def missed(outcome: Outcome) -> str:
    """One mutant of which something is not right."""
    what = []
    if not outcome.site_right:
        found = outcome.found[:3] or "nothing"
        what.append(f"first {outcome.first} ({outcome.deviations:.3g} deviations), found {found}")
    if outcome.missed:
        what.append(f"not found at {outcome.missed[:3]} ({len(outcome.missed)} of {len(outcome.sites)})")
    if outcome.elsewhere:
        what.append(f"alarm at {outcome.elsewhere[:3]}")
    if outcome.line_right is False:
        what.append(f"claimed {outcome.claimed}")
    head = f"{outcome.family} #{outcome.seed}/{outcome.index} {outcome.kind}, {outcome.function} {outcome.words}"
    return f"MISS  {head}: {'; '.join(what)}"


def _good(outcome: Outcome) -> bool:
    return outcome.site_right and not outcome.missed and not outcome.elsewhere and outcome.line_right is not False


def _table(outcomes: Sequence[Outcome], head: str, groups: Sequence[str]) -> str:
    rows = []
    for name in sorted(set(groups)):
        ours = [outcome for outcome, group in zip(outcomes, groups, strict=True) if group == name]
        states = Counter(outcome.state for outcome in ours)
        judged = [outcome for outcome in ours if outcome.judged]
        rows.append(
            [
                name,
                len(ours),
                *(states[state.value] for state in (State.CRASHED, State.UNRECORDED, State.EQUIVALENT, State.ROUNDING)),
                len(judged),
                sum(outcome.site_right for outcome in judged),
                sum(outcome.line_right is True for outcome in judged),
                sum(outcome.line_right is False for outcome in judged),
            ]
        )
    heads = [head, "mutants", "crash", "no audit", "equivalent", "rounding", "judged", "site", "line", "line wrong"]
    return tabulate(rows, headers=heads, tablefmt="github")


def _of(count: int, whole: int) -> str:
    return f"{count} of {whole}" + (f" ({100.0 * count / whole:.1f} %)" if whole else "")
