"""Which seeds are recorded again, in full: those that only the layers explain, an example of each group, a control."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tracekit.postmortem.groups import Key, key_of
from tracekit.postmortem.suspicious import is_suspicious, quietest
from tracekit.verdict.causes import rule_of
from tracekit.verdict.outcome import BROKEN, Seed, State


def wanted(found: Iterable[Seed]) -> list[int]:
    """Seeds of which only the layers say what is wrong, and an example of each group."""
    found = sorted(found, key=lambda seed: seed.seed)
    quiet = quietest(found)
    out = {seed.seed for seed in found if needs_full(seed, quiet)}
    examples: dict[Key, int] = {}
    for seed in found:
        key = key_of(seed)
        if key is not None and seed.state not in BROKEN and not seed.also:
            examples.setdefault(key, seed.seed)
    return sorted({*out, *examples.values()})


def control_of(found: Iterable[Seed], full: Collection[int]) -> int | None:
    """The passing seed whose probabilities are furthest apart, of those not in `full`: do its layers pass, too?"""
    found = list(found)
    quiet = quietest(found)
    passing = [
        seed for seed in found if seed.state is State.PASS and not is_suspicious(seed, quiet) and seed.seed not in full
    ]
    return max(passing, key=lambda seed: (seed.apart or 0.0, -seed.seed)).seed if passing else None


def needs_full(seed: Seed, quiet: float) -> bool:
    """Whether only the layers can say what is wrong with a seed."""
    if seed.state in BROKEN:
        return False
    if is_suspicious(seed, quiet):
        return True
    verdict = seed.verdict
    if verdict is None:
        return False
    found = rule_of(verdict.cause)
    return found is None or not found.grouping.proven_by_tokens or verdict.explanation is None
