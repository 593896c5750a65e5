"""Seeds that fail alike: by cause, site and mechanism, how often that is, and whether seeds that pass have it, too."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tracekit.postmortem import margins as luck
from tracekit.postmortem.examine import APART_FACTOR, fault_of, quietest
from tracekit.trace import Json
from tracekit.verdict.outcome import BROKEN, FAILING, Group, Postmortem, Seed, State

UNLIKELY = 0.01
"""A probability below which luck is no explanation."""
NAME_LENGTH = 60


class Key(NamedTuple):
    """What seeds of a group have in common."""

    cause: str
    site: str | None
    mechanism: str | None


@dataclass
class _Members:
    key: Key
    seeds: list[Seed] = field(default_factory=list)
    also: dict[Key, list[Seed]] = field(default_factory=dict)  # seeds of other groups that show this fault, too


def conclude(reference: str, candidate: str, seeds: Iterable[Seed], asked: int) -> Postmortem:
    """Group the seeds of two commands, of which there should be `asked`. Raises TraceError where scipy is missing."""
    found = tuple(sorted(seeds, key=lambda seed: seed.seed))
    members = _gathered(found)
    passing = [seed for seed in found if seed.state is State.PASS]
    quiet = quietest(list(found))
    groups = [_group(one, len(found), passing, quiet) for one in members]
    groups = _named(sorted(groups, key=lambda group: (not group.failing, -len(group.seeds), group.name)))
    failing = sum(seed.state in FAILING for seed in found)
    return Postmortem(
        reference, candidate, found, tuple(groups), luck.rate(failing, len(found)), complete=len(found) == asked
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
        return Key("near-tie", None, None)
    return _key(fault_of(seed.verdict))


def _key(fault: Json) -> Key:
    return Key(str(fault["cause"]), fault["site"], fault["mechanism"])


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


def _group(members: _Members, of: int, passing: list[Seed], quiet: float) -> Group:
    key, own = members.key, members.seeds
    shown = own or next(iter(members.also.values()))
    # The plainest example: tokens part, and nothing else is wrong with it.
    example = min(shown, key=lambda seed: (seed.step is None, bool(seed.also), seed.seed))
    showing = len(own) + len({seed.seed for seeds in members.also.values() for seed in seeds})
    sentence, numbers = _luck(key, shown, passing, quiet)
    return Group(
        name=_slug(key),
        cause=key.cause,
        site=key.site,
        mechanism=key.mechanism,
        failing=key.cause != "near-tie" and any(seed.state is not State.LATENT for seed in shown),
        seeds=tuple(seed.seed for seed in own),
        steps=tuple(seed.verdict["step"] if seed.verdict else seed.step for seed in own),
        latent=tuple(seed.seed for seed in own if seed.state is State.LATENT),
        example=example.seed,
        verdict=example.verdict,
        text=example.text or example.note or "",
        rate=luck.rate(showing, of),
        lucky=sentence,
        luck=numbers,
        overlaps={_slug(other): tuple(seed.seed for seed in seeds) for other, seeds in members.also.items()},
    )


def _slug(key: Key) -> str:
    """A folder's name."""
    words = [key.cause, key.mechanism or key.site or ""]
    plain = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
    return plain[:NAME_LENGTH].rstrip("-") or "unnamed"


def _named(groups: list[Group]) -> list[Group]:
    """No two of the same name."""
    seen: dict[str, int] = {}
    out = []
    for group in groups:
        seen[group.name] = seen.get(group.name, 0) + 1
        out.append(group if seen[group.name] == 1 else replace(group, name=f"{group.name}-{seen[group.name]}"))
    return out


# -------------------------------------------------------------------- luck


def _luck(key: Key, own: list[Seed], passing: list[Seed], quiet: float) -> tuple[str | None, Json]:
    """May seeds that pass have this fault? A sentence, and its numbers."""
    if not passing:
        return None, {}
    if key.cause in ("rng", "sampler"):
        return _luck_of_draws(passing)
    if key.cause in ("layer", "weights"):
        return _luck_of_values(own, passing, quiet)
    if key.cause == "stop":
        return _luck_of_length(own, passing)
    if key.cause in ("filter", "input", "config"):
        what = {"filter": "survivors", "input": "prompts", "config": "settings and survivors"}[key.cause]
        return f"the {what} of all {len(passing)} passing seeds agree: none of them has it", {"passing": len(passing)}
    return None, {}


def _luck_of_draws(passing: list[Seed]) -> tuple[str, Json]:
    """Other draws give a seed's tokens with the product of their probabilities."""
    known = sorted(seed.chance for seed in passing if seed.chance is not None)
    best = known[-1] / 2.302585 if known else 0.0
    numbers: Json = {"passing": len(passing), "log10_chance_at_most": round(best, 1)}
    if best < -2:
        said = f"draws made so would give a passing seed's tokens with probability 1e{best:.0f} at most"
        return f"{said}: none of the {len(passing)} passing seeds has it", numbers
    return "passing seeds are so short or so certain that they may have it, too", numbers


def _luck_of_values(own: list[Seed], passing: list[Seed], quiet: float) -> tuple[str | None, Json]:
    """Errors of these seeds' size, against the margins of the passing seeds."""
    errors = sorted(seed.apart for seed in own if seed.apart is not None)
    rows = [seed.margins for seed in passing if seed.margins]
    if not errors or not rows:
        return None, {}
    error = errors[len(errors) // 2]
    chance = luck.pass_by_luck(rows, error)
    off = [seed for seed in passing if seed.apart is not None and seed.apart > APART_FACTOR * quiet]
    worst = max((seed.apart or 0.0) for seed in passing)
    numbers: Json = {
        "error_nats": error,
        "pass_probability": float(f"{chance:.4g}"),
        "margins": sum(map(len, rows)),
        "passing": len(passing),
        "largest_apart_nats": worst,
    }
    said = f"probabilities off by {error:.1e} leave a seed all of its tokens with probability {chance:.0%}"
    if chance < UNLIKELY:
        return f"{said}: a seed that passes does not have it", numbers
    clean = f"those of the {len(passing)} passing seeds are {worst:.1e} apart at most"
    if off:
        return f"{said}: equal tokens prove little", numbers
    return f"{said}, so equal tokens prove little; but {clean}: none of them has it", numbers


def _luck_of_length(own: list[Seed], passing: list[Seed]) -> tuple[str | None, Json]:
    """A sequence that ends before the fault's first step cannot show it."""
    steps = [seed.verdict["step"] if seed.verdict else seed.step for seed in own]
    first = min((step for step in steps if step is not None), default=None)
    if first is None:
        return None, {}
    short = [seed.seed for seed in passing if seed.reference.tokens <= first]
    numbers: Json = {"passing": len(passing), "first_step": first, "too_short": len(short)}
    if short:
        said = f"{len(short)} of {len(passing)} passing seeds end before step {first}, where it shows first"
        return f"{said}: they may have it, too", numbers
    return (
        f"all {len(passing)} passing seeds run beyond step {first}, where it shows first: none of them has it",
        numbers,
    )
