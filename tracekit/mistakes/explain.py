"""What is the mistake? The recipe with one thing changed, tried on a culprit's own recorded input.

A hypothesis that brings the error down to the rounding bound explains it; of those that do, the simplest, and of the
equally simple ones the closest. With none, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from tracekit.mistakes.explanation import Explanation, Mistake
from tracekit.mistakes.registry import Complexity, SiteMistake, mistakes_at
from tracekit.mistakes.suspect import Case, Fit
from tracekit.mistakes.together import TOGETHER, Pair, pairs

NEARLY = 1.3
"""A simpler hypothesis is taken if it leaves at most this many times what the best one leaves."""
ROUNDED_AWAY = 0.05
"""Residuals below this are the same: next to nothing."""
TIERS = ((Complexity.PLAIN, Complexity.NUMBER), (Complexity.ENTRY,), (Complexity.VECTOR,))
"""Mistakes of a later tier are tried where none of an earlier one holds."""

TWO_MISTAKES = Mistake("two_mistakes", "in the prompt: {parts[0]}; in decoding: {parts[1]}")

Held = tuple[SiteMistake, Fit]
Named = TypeVar("Named")


def explain(
    case: Case, known: Sequence[Explanation] = (), others: bool = True, together: bool = True, single: bool = False
) -> Explanation | None:
    """What is wrong at a site; None where no hypothesis fits on all of its recorded rows. `known`: explanations of
    other sites, which are tried first, and without `others` alone: a mistake made in every layer is one mistake.
    `together`: whether two mistakes at once are tried, which takes seconds; `single`: whether none are, nor one in the
    prompt and another in decoding, as something else explains the site by one."""
    mistakes = mistakes_at(case.recipe.kind)
    for explanation in known:
        if explanation.mistake is TOGETHER:
            named = {part.mistake for part in explanation.parts}
            again = [said for said, _ in pairs(case, [one for one in mistakes if one in named])]
            same = next((said for said in again if said.same(explanation)), None)
            if same is not None:
                return same
        elif explanation.parts:
            both = _apart(case, explanation.parts, others=False, together=False)
            if both is not None:
                return both
        held = _held(case, [one for one in mistakes if one is explanation.mistake])
        same = next((found for found in map(_explanation, held) if found.same(explanation)), None)
        if same is not None:
            return same
    if not others:
        return None
    # The declared formula to the bit, in another arithmetic: what changes next to nothing beside it would fit as well.
    precise = _held(case, [one for one in mistakes if one.precision])
    if precise:
        return _best(precise)
    for tier in TIERS:
        held = _held(case, [one for one in mistakes if one.complexity in tier and not one.precision])
        if held:
            return _best(held)
    if single:
        return None
    return (_best_pair(pairs(case, mistakes)) if together else None) or _apart(case, (), others=True, together=together)


def _best(held: list[Held]) -> Explanation:
    """The simplest of those that leave about as little as the closest; of the equally simple ones the closest. With
    others of the same complexity that cannot be told from it."""
    near = _near(held)
    best = min(near, key=lambda each: (each[0].complexity, _order(each[1])))
    alike = [each for each in near if each[0].complexity == best[0].complexity and each[1].where == best[1].where]
    return _with_others(_explanation(best), [_explanation(each) for each in sorted(alike, key=lambda e: _order(e[1]))])


def _best_pair(held: list[Pair]) -> Explanation | None:
    near = sorted(_near(held), key=lambda each: _order(each[1]))
    return _with_others(near[0][0], [said for said, _ in near]) if near else None


def _near(held: list[tuple[Named, Fit]]) -> list[tuple[Named, Fit]]:
    least = min((fit.residual for _, fit in held), default=0.0)
    return [(one, fit) for one, fit in held if fit.residual <= max(NEARLY * least, ROUNDED_AWAY)]


def _order(fit: Fit) -> tuple[bool, int, float]:
    return fit.partial, fit.changes, fit.residual


def _with_others(one: Explanation, near: list[Explanation]) -> Explanation:
    return replace(one, also=tuple(other for other in near if not other.same(one)))


def _explanation(held: Held) -> Explanation:
    mistake, fit = held
    return Explanation(mistake, fit.values, fit.residual, where=fit.where)


def _apart(case: Case, known: Sequence[Explanation], others: bool, together: bool) -> Explanation | None:
    """The mistake in the prompt and the one in decoding, where both are wrong and each has its own."""
    found: list[Explanation] = []
    for part in reversed(case.prompt_and_decoding()):  # what has the fewest rows first
        explanation = explain(part, known, others, together)
        if explanation is None:
            return None
        found.insert(0, explanation)
    if not found:
        return None
    return Explanation(TWO_MISTAKES, residual=max(part.residual for part in found), parts=tuple(found))


def _held(case: Case, mistakes: Sequence[SiteMistake]) -> list[Held]:
    """Those that hold, each as often as it does."""
    return [
        (mistake, fit)
        for mistake in mistakes
        for hypothesis in mistake.hypotheses(case)
        for fit in case.tried(mistake, hypothesis)
        if fit.holds
    ]
