"""What is the mistake? The recipe with one thing changed, tried on a culprit's own recorded input.

A hypothesis that brings the error down to the rounding bound explains it; of those that do, the simplest, and of the
equally simple ones the closest. With none, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.auditing.audit import Culprit, explained
from tracekit.auditing.recipe import Recipes
from tracekit.auditing.recompute import Recomputation
from tracekit.mistakes.attention import attention_mistakes
from tracekit.mistakes.modules import module_mistakes
from tracekit.mistakes.outputs import output_mistakes
from tracekit.mistakes.suspect import Case, Fit, Hypothesis
from tracekit.trace import Json

__all__ = ["explain"]


NEARLY = 1.3
"""A simpler hypothesis is taken if it leaves at most this many times what the best one leaves."""
ROUNDED_AWAY = 0.05
"""Residuals below this are the same: next to nothing."""


def explain(
    culprit: Culprit, run: Recomputation, recipes: Recipes, known: tuple[Json, ...] = (), others: bool = True
) -> Culprit:
    """The culprit with its explanation, where one holds on all of its recorded positions. `known`: explanations of
    other culprits, which are tried first, and without `others` alone: a mistake made in every layer is one mistake."""
    if not (known or others):
        return culprit
    return explained(culprit, explanation_of(Case.of(culprit, run, recipes), known, others))


def explanation_of(case: Case, known: tuple[Json, ...] = (), others: bool = True) -> Json | None:
    """`kind`, `value`, `residual` (the error that is left, over its rounding bound) and `text`; None where no
    hypothesis fits."""
    hypotheses = list(_mistakes(case))
    kinds = {explanation["kind"] for explanation in known}
    for explanation in known:
        if "parts" in explanation:
            both = _apart(case, tuple(explanation["parts"]), others=False)
            if both is not None:
                return both
        same = [fit for fit in _held(case, hypotheses, kinds) if fit.text == explanation["text"]]
        if same:
            return same[0].to_json()
    if not others:
        return None
    best: list[Fit] = []
    for complexities in ((1, 2), (3,), (4,)):
        best = best or _held(case, [one for one in hypotheses if one.complexity in complexities])
    if not best:
        return _apart(case, (), others=True)
    least = min(fit.residual for fit in best)
    near = [fit for fit in best if fit.residual <= max(NEARLY * least, ROUNDED_AWAY)]
    return min(near, key=lambda fit: (fit.complexity, fit.partial, fit.residual)).to_json()


def _apart(case: Case, known: tuple[Json, ...], others: bool) -> Json | None:
    """The mistake in the prompt and the one in decoding, where both are wrong and each has its own."""
    parts = case.prompt_and_decoding()
    found = [explanation_of(part, known, others) for part in parts]
    if len(found) < 2 or found[0] is None or found[1] is None:
        return None
    text = f"in the prompt: {found[0]['text']}; in decoding: {found[1]['text']}"
    residual = max(float(one["residual"]) for one in found if one is not None)
    return {"kind": "two mistakes", "value": None, "residual": residual, "text": text, "parts": found}


def _held(case: Case, hypotheses: list[Hypothesis], kinds: set[str] | None = None) -> list[Fit]:
    chosen = [one for one in hypotheses if kinds is None or one.kind in kinds]
    return [fit for hypothesis in chosen for fit in case.tried(hypothesis) if fit.holds]


def _mistakes(case: Case) -> Iterator[Hypothesis]:
    """What a module of this kind gets wrong, and what any module does."""
    yield from attention_mistakes(case) if case.recipe.kind == "attention" else module_mistakes(case)
    yield from output_mistakes(case)
