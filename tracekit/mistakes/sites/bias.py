"""The bias of a linear layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tracekit.auditing.operations import Floats
from tracekit.mistakes.fitting import best_factor
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, Made, plainly, unchanged

LINEAR = ("linear",)


def _with_bias(change: Callable[[Floats, Floats], Floats]) -> Callable[[Case], Iterator[Hypothesis]]:
    """`change(product, bias)`, where there is a bias."""

    def hypotheses(case: Case) -> Iterator[Hypothesis]:
        bias = case.run.parameters.matrix(case.recipe).bias
        if bias is not None:
            yield plainly(unchanged, change(case.right.values - bias, bias))

    return hypotheses


def _times(case: Case) -> Iterator[Hypothesis]:
    bias = case.run.parameters.matrix(case.recipe).bias
    if bias is None:
        return
    product = case.right.values - bias
    added = case.right.values - product

    def make() -> Made:
        times = best_factor(added, case.recorded - product, case.right.variance)
        return product + times * added, {"times": times}

    yield Hypothesis(make)


LEFT_OUT = SiteMistake(
    "bias_left_out", "bias left out", at=LINEAR, hypotheses=_with_bias(lambda product, bias: product)
)
TWICE = SiteMistake(
    "bias_added_twice", "bias added twice", at=LINEAR, hypotheses=_with_bias(lambda product, bias: product + 2.0 * bias)
)
TIMES = SiteMistake(
    "bias_times",
    "bias times {times:.6g}",
    main="times",
    at=LINEAR,
    complexity=Complexity.NUMBER,
    hypotheses=_times,
)
