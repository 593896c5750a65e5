"""Where a candidate's router chose other experts, as the values of the sites after it show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracekit.auditing.evidence import Statistic
from tracekit.auditing.own_error import Own, deviations
from tracekit.auditing.routing import OtherExperts
from tracekit.inspection.positions import prompt_length, step_of
from tracekit.mistakes.explanation import Explanation, Mistake, Value
from tracekit.trace import Sequence
from tracekit_torch.reference_program.routing import Choice

if TYPE_CHECKING:
    from tracekit_torch.reference_program.audit import Judge

TRIED = 12
"""Choices that are tried at a position, the nearest by their scores."""
BEFORE = 3
"""Choices before a wrong site that are tried: of groups, of experts within them, of the layer before."""
DECISIVE = 10.0
"""Times that a row's error is smaller with the experts that were taken."""
OTHER_EXPERTS = Mistake("other_experts", "the router chose {found} instead of {stated} at position {position}{more}")
"""The router chose by other scores than the reference's."""


@dataclass
class Taken:
    """What the candidate chose otherwise in one sequence: by number of the choice and position, the experts."""

    near_ties: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    others: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    found: list[OtherExperts] = field(default_factory=list)


def chosen_otherwise(judge: Judge, sequence: Sequence, owns: Iterable[Own], level: float) -> Taken:
    """Try, at the wrong rows of each wrong site, the choices before it."""
    out = Taken()
    before: dict[str, list[Choice]] = {}
    for choice in judge.choices:
        after = (own.recipe.site for own in owns if own.wrong and judge.made_before[own.recipe.site] > choice.index)
        site = next(after, None)
        if site is not None:
            before.setdefault(site, []).append(choice)
    for choices in before.values():
        # Those of the last module first; within it a choice of groups before that of experts, whose scores it hides.
        last = {choice.module: place for place, choice in enumerate(choices)}
        choices.sort(key=lambda choice: (-last[choice.module], choice.index))
    limits = {own.recipe.site: own.limits[Statistic.ROW] for own in owns}
    wrong = {
        site: {position: error for position, error in judge.row_errors[site].items() if error > limits[site]}
        for site in before
    }
    for place in range(BEFORE):
        asked = {site: choices[place] for site, choices in before.items() if len(choices) > place and wrong[site]}
        options = {
            (site, position): choice.others(position) for site, choice in asked.items() for position in wrong[site]
        }
        best: dict[tuple[str, int], tuple[float, tuple[int, ...]]] = {}
        for _ in range(TRIED):
            trial = {key: taken for key, others in options.items() if (taken := next(others, None)) is not None}
            if not trial:
                break
            forced = {(asked[site].index, position): taken for (site, position), taken in trial.items()}
            errors = judge.errors_with(forced, asked.keys())
            for (site, position), taken in trial.items():
                error = errors.get(site, {}).get(position, math.inf)
                best[site, position] = min(best.get((site, position), (math.inf, ())), (error, taken))
                if error <= limits[site]:
                    del options[site, position]
        for (site, position), (error, taken) in best.items():
            if error * DECISIVE <= wrong[site][position]:
                _take(out, sequence, asked[site], position, taken, level)
                del wrong[site][position]
    return out


def _take(out: Taken, sequence: Sequence, choice: Choice, position: int, taken: tuple[int, ...], level: float) -> None:
    left, instead, margin, spread = choice.apart(position, taken)
    step = step_of(position, prompt_length(sequence))
    rounding = deviations(level) * spread
    among = choice.scores.shape[1]
    found = OtherExperts(
        choice.module, choice.index, among, sequence.index, step, position, left, instead, taken, margin, rounding
    )
    out.found.append(found)
    (out.near_ties if found.near_tie else out.others)[choice.index, position] = taken


def explanation(taken: Taken, before: int, after: int) -> Explanation | None:
    """What the choices that are no near-ties explain, of those made from the choice `after` on and before `before`."""
    mine = [each for each in taken.found if not each.near_tie and after <= each.choice < before]
    if not mine:
        return None
    first = min(mine, key=lambda each: each.position)
    said: dict[str, Value] = {
        "found": ", ".join(map(str, first.candidate)),
        "stated": ", ".join(map(str, first.reference)),
        "position": first.position,
        "more": f" and {len(mine) - 1} more" if len(mine) > 1 else "",
        "margin": first.margin,
    }
    return Explanation(OTHER_EXPERTS, said)
