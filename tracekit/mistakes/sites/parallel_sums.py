"""The sum of a layer whose blocks read the same input: a term that is missing."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.auditing.operations.parallel_sum import ParallelSum
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, plainly, unchanged


def _without_a_term(case: Case) -> Iterator[Hypothesis]:
    for index, source in enumerate(case.recipe.inputs):
        one, other = (values for at, values in enumerate(case.inputs) if at != index)
        yield plainly(unchanged, one + other, term=source)


TERM_LEFT_OUT = SiteMistake(
    "term_left_out", "{term} is not added", main="term", at=(ParallelSum.kind,), hypotheses=_without_a_term
)
