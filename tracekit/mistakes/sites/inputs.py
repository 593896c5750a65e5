"""The input of a linear layer: of another site, or rounded."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.auditing.operations import Floats, as_stored
from tracekit.auditing.operations.norms import Norm
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, narrower, plainly, product
from tracekit.trace import LOGITS

LINEAR = ("linear",)


def _another(case: Case) -> Iterator[Hypothesis]:
    """What the layer's input was itself made from: a norm that is skipped."""
    if case.recipe.site == LOGITS:
        return
    stated = case.recipe.inputs[0]
    for recipe in case.recipes.known:
        if recipe.stored == stated and isinstance(recipe.operation, Norm):
            for source in recipe.inputs[:1]:
                if case.run.covers(source, case.window):
                    yield plainly(_from_other, case, source, found=source, stated=stated)


def _from_other(case: Case, source: str) -> Floats:
    matrix = case.run.parameters.matrix(case.recipe)
    (read,) = case.recipe.operation.prepared([case.run.recorded(source, case.window)])
    return product(read, matrix.weight, matrix.bias)


def _rounded(case: Case) -> Iterator[Hypothesis]:
    matrix = case.run.parameters.matrix(case.recipe)
    for dtype in narrower(case):
        yield plainly(product, as_stored(case.inputs[0], dtype), matrix.weight, matrix.bias, dtype=dtype)


ANOTHER = SiteMistake(
    "another_input", "computed from {found} instead of {stated}", main="found", at=LINEAR, hypotheses=_another
)
ROUNDED = SiteMistake("input_rounded", "input rounded to {dtype}", main="dtype", at=LINEAR, hypotheses=_rounded)
