"""Seeds that fail alike: by cause, site and mechanism, how often that is, and whether seeds that pass have it, too."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tracekit.postmortem.examine import fault_of
from tracekit.postmortem.margins import pass_probability, rate
from tracekit.postmortem.suspicious import is_suspicious, quietest
from tracekit.verdict.cause import Cause
from tracekit.verdict.causes import is_fault, rule_of
from tracekit.verdict.outcome import (
    BROKEN,
    FAILING,
    AllAgree,
    Chance,
    EndsTooSoon,
    Group,
    OtherDraws,
    Postmortem,
    Seed,
    SeenFault,
    State,
    WrongProbabilities,
)
from tracekit.verdict.rule import Grouping, Luck

NAME_LENGTH = 60


class Key(NamedTuple):
    """What seeds of a group have in common."""

    cause: str  # id of a cause, or a state
    site: str | None
    mechanism: str | None  # id of a mistake


@dataclass
class _Members:
    key: Key
    seeds: list[Seed] = field(default_factory=list)
    also: dict[Key, list[Seed]] = field(default_factory=dict)  # seeds of other groups that show this fault, too


def conclude(reference: str, candidate: str, seeds: Iterable[Seed], asked: int) -> Postmortem:
    """Group the seeds of two commands, of which there should be `asked`."""
    found = tuple(sorted(seeds, key=lambda seed: seed.seed))
    members = _gathered(found)
    passing = [seed for seed in found if seed.state is State.PASS]
    quiet = quietest(found)
    named = _names(one.key for one in members)
    groups = [_group(one, named, len(found), passing, quiet) for one in members]
    groups.sort(key=lambda group: (not group.failing, -len(group.seeds), group.name))
    failing = sum(seed.state in FAILING for seed in found)
    return Postmortem(
        reference, candidate, found, tuple(groups), rate(failing, len(found)), complete=len(found) == asked
    )


def key_of(seed: Seed) -> Key | None:
    """The group that a seed belongs to; None where it passes."""
    if seed.state is State.PASS:
        return None
    if seed.state in BROKEN:
        return Key(str(seed.state), _blamed(seed), None)
    if seed.verdict is None:
        return Key(str(seed.state), None, None)  # a rule of the user's is broken where every token agrees
    if seed.state is State.NEAR_TIE:
        return Key(Cause.NEAR_TIE, None, None)
    return _key(fault_of(seed.verdict))


def _key(fault: SeenFault) -> Key:
    return Key(fault.cause, fault.site, fault.mechanism)


def _blamed(seed: Seed) -> str | None:
    """The side that ended as it should not."""
    for side, run in (("reference", seed.reference), ("candidate", seed.candidate)):
        if run.trouble is not None or run.exit_code != 0:
            return side
    return None


def _gathered(seeds: tuple[Seed, ...]) -> list[_Members]:
    """The groups, and which seeds show another group's fault besides their own."""
    groups: dict[Key, _Members] = {}
    for seed in seeds:
        key = key_of(seed)
        if key is not None:
            groups.setdefault(key, _Members(key)).seeds.append(seed)
    for seed in seeds:
        own = key_of(seed)
        for fault in seed.also:
            key = _matching(_key(fault), groups)
            if own is None or key == own:
                continue
            others = groups.setdefault(key, _Members(key)).also.setdefault(own, [])
            if seed not in others:
                others.append(seed)
    return list(groups.values())


def _matching(key: Key, groups: dict[Key, _Members]) -> Key:
    """The group of a fault; one whose mechanism is not known is that of its cause and site."""
    if key in groups:
        return key
    alike = [other for other in groups if other[:2] == key[:2]]
    return alike[0] if alike and None in (key.mechanism, alike[0].mechanism) else key


def _group(members: _Members, named: Mapping[Key, str], of: int, passing: list[Seed], quiet: float) -> Group:
    key, own = members.key, members.seeds
    shown = own or next(iter(members.also.values()))
    # The plainest example: tokens differ, and nothing else is wrong with it.
    example = min(shown, key=lambda seed: (seed.step is None, bool(seed.also), seed.seed))
    showing = len(own) + len({seed.seed for seeds in members.also.values() for seed in seeds})
    return Group(
        name=named[key],
        cause=key.cause,
        site=key.site,
        mechanism=key.mechanism,
        failing=is_fault(key.cause) and any(seed.state is not State.LATENT for seed in shown),
        seeds=tuple(seed.seed for seed in own),
        steps=tuple(map(_step, own)),
        latent=tuple(seed.seed for seed in own if seed.state is State.LATENT),
        example=example.seed,
        verdict=example.verdict,
        text=example.text or example.note or "",
        rate=rate(showing, of),
        luck=_chance(key, shown, passing, quiet),
        overlaps={named[other]: tuple(seed.seed for seed in seeds) for other, seeds in members.also.items()},
    )


def _names(keys: Iterable[Key]) -> dict[Key, str]:
    """A folder's name for each: cause and mistake, or cause and site where no mistake is known; where two would have
    the same, the site as well, and a number in the end."""
    keys = list(keys)
    short = {key: _slug(key.cause, key.mechanism or key.site or "") for key in keys}
    count = Counter(short.values())
    names: dict[Key, str] = {}
    seen: Counter[str] = Counter()
    for key in keys:
        name = short[key] if count[short[key]] == 1 else _slug(key.cause, key.mechanism or "", key.site or "")
        seen[name] += 1
        names[key] = name if seen[name] == 1 else f"{name}-{seen[name]}"
    return names


def _slug(*words: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
    return plain[:NAME_LENGTH].rstrip("-") or "unnamed"


# -------------------------------------------------------------------- luck


def _chance(key: Key, own: list[Seed], passing: list[Seed], quiet: float) -> Chance | None:
    """May seeds that pass have this fault?"""
    if not passing:
        return None
    grouping = Grouping() if (rule := rule_of(key.cause)) is None else rule.grouping
    if grouping.luck is Luck.DRAWS:
        return _chance_of_draws(passing)
    if grouping.luck is Luck.VALUES:
        return _chance_of_values(own, passing, quiet)
    if grouping.luck is Luck.LENGTH:
        return _chance_of_length(own, passing)
    return None if grouping.agrees is None else AllAgree(len(passing), grouping.agrees)


def _chance_of_draws(passing: list[Seed]) -> OtherDraws:
    """Other draws give a seed's tokens with the product of their probabilities."""
    best = max((seed.chance for seed in passing if seed.chance is not None), default=0.0)
    return OtherDraws(len(passing), round(best / math.log(10.0), 1))


def _chance_of_values(own: list[Seed], passing: list[Seed], quiet: float) -> WrongProbabilities | None:
    """Errors of these seeds' size, against the margins of the passing seeds."""
    errors = sorted(seed.apart for seed in own if seed.apart is not None)
    rows = [seed.margins for seed in passing if seed.margins]
    if not errors or not rows:
        return None
    error = errors[len(errors) // 2]
    return WrongProbabilities(
        error_nats=error,
        pass_probability=float(f"{pass_probability(rows, error):.4g}"),
        margins=sum(map(len, rows)),
        passing=len(passing),
        largest_apart_nats=max((seed.apart or 0.0) for seed in passing),
        suspicious=any(is_suspicious(seed, quiet) for seed in passing),
    )


def _chance_of_length(own: list[Seed], passing: list[Seed]) -> EndsTooSoon | None:
    """A sequence that ends before the fault's first step cannot show it."""
    first = min((step for step in map(_step, own) if step is not None), default=None)
    if first is None:
        return None
    return EndsTooSoon(len(passing), first, sum(seed.reference.tokens <= first for seed in passing))


def _step(seed: Seed) -> int | None:
    """The first divergent step of a seed, as its verdict says."""
    return seed.step if seed.verdict is None else seed.verdict.step
