"""What is the mistake? The recipe with one thing changed, tried on a culprit's own recorded input.

A hypothesis that brings the error down to the rounding bound explains it; of those that do, the simplest, and of the
equally simple ones the closest. With none, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracekit.mistakes.explanation import Explanation, Mistake
from tracekit.mistakes.registry import Complexity, SiteMistake, mistakes_at
from tracekit.mistakes.suspect import Case, Fit

__all__ = ["TWO_MISTAKES", "explain"]


NEARLY = 1.3
"""A simpler hypothesis is taken if it leaves at most this many times what the best one leaves."""
ROUNDED_AWAY = 0.05
"""Residuals below this are the same: next to nothing."""
TIERS = ((Complexity.PLAIN, Complexity.NUMBER), (Complexity.ENTRY,), (Complexity.VECTOR,))
"""Mistakes of a later tier are tried where none of an earlier one holds."""

TWO_MISTAKES = Mistake("two_mistakes", "in the prompt: {parts[0]}; in decoding: {parts[1]}")

Held = tuple[SiteMistake, Fit]


def explain(case: Case, known: Sequence[Explanation] = (), others: bool = True) -> Explanation | None:
    """What is wrong at a site; None where no hypothesis fits on all of its recorded rows. `known`: explanations of
    other sites, which are tried first, and without `others` alone: a mistake made in every layer is one mistake."""
    mistakes = mistakes_at(case.recipe.kind)
    for explanation in known:
        if explanation.parts:
            both = _apart(case, explanation.parts, others=False)
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
        return _explanation(_simplest(precise))
    for tier in TIERS:
        held = _held(case, [one for one in mistakes if one.complexity in tier and not one.precision])
        if held:
            return _explanation(_simplest(held))
    return _apart(case, (), others=True)


def _simplest(held: list[Held]) -> Held:
    """The simplest of those that leave about as little as the closest; of the equally simple ones the closest."""
    least = min(fit.residual for _, fit in held)
    near = [(one, fit) for one, fit in held if fit.residual <= max(NEARLY * least, ROUNDED_AWAY)]
    return min(near, key=lambda each: (each[0].complexity, each[1].partial, each[1].residual))


def _explanation(held: Held) -> Explanation:
    mistake, fit = held
    return Explanation(mistake, fit.values, fit.residual, where=fit.where)


def _apart(case: Case, known: Sequence[Explanation], others: bool) -> Explanation | None:
    """The mistake in the prompt and the one in decoding, where both are wrong and each has its own."""
    parts = [explain(part, known, others) for part in case.prompt_and_decoding()]
    found = tuple(part for part in parts if part is not None)
    if len(found) < 2:
        return None
    return Explanation(TWO_MISTAKES, residual=max(part.residual for part in found), parts=found)


def _held(case: Case, mistakes: Sequence[SiteMistake]) -> list[Held]:
    """Those that hold, each as often as it does."""
    return [
        (mistake, fit)
        for mistake in mistakes
        for hypothesis in mistake.hypotheses(case)
        for fit in case.tried(mistake, hypothesis)
        if fit.holds
    ]
