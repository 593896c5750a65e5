"""What is the mistake? The recipe with one thing changed, tried on a culprit's own recorded input.

A hypothesis that brings the error down to the rounding bound explains it; of those that do, the simplest, and of the
equally simple ones the closest. With none, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.audit import Culprit, explained
from tracekit.explain.attention import attention_mistakes
from tracekit.explain.case import Case, Fit
from tracekit.explain.modules import module_mistakes
from tracekit.explain.outputs import output_mistakes
from tracekit.recipe import Recipes
from tracekit.recompute import Recomputation
from tracekit.trace import Json

__all__ = ["explain"]


def explain(culprit: Culprit, run: Recomputation, recipes: Recipes) -> Culprit:
    """The culprit with its explanation, where one holds on all of its recorded positions."""
    return explained(culprit, explanation_of(Case.of(culprit, run, recipes)))


def explanation_of(case: Case) -> Json | None:
    """`kind`, `value`, `residual` (the error that is left, over its rounding bound) and `text`; None where no
    hypothesis fits."""
    best: dict[int, Fit] = {}
    for fit in _mistakes(case):
        known = best.get(fit.complexity)
        simpler = min(best, default=fit.complexity)
        if simpler < fit.complexity:
            break
        if fit.holds and (known is None or fit.residual < known.residual):
            best[fit.complexity] = fit
    return best[min(best)].to_json() if best else None


def _mistakes(case: Case) -> Iterator[Fit]:
    """Hypotheses, the simplest first: what is left out or swapped, then one number fitted, then many."""
    families = [attention_mistakes(case) if case.recipe.kind == "attention" else module_mistakes(case)]
    families.append(output_mistakes(case))
    made = [list(family) for family in families]
    for complexity in (1, 2, 3):
        for family in made:
            for hypothesis in family:
                if hypothesis.complexity == complexity:
                    yield from case.tried(hypothesis)
