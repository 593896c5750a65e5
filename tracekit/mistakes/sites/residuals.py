"""A residual sum: what is added to what, and in which format."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.auditing.operations import Result, as_stored, in_16_bits, rounding
from tracekit.dtypes import SIXTEEN_BITS
from tracekit.mistakes.explanation import Value
from tracekit.mistakes.fitting import best_factor
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, Made, narrowed, narrower, plainly, unchanged

RESIDUAL = ("residual",)


def _names(case: Case) -> dict[str, Value]:
    """`stream`, and the `branch` that is added to it."""
    stream, branch = case.recipe.inputs
    return {"stream": stream, "branch": branch}


def _before(case: Case) -> list[str]:
    """What the stream that goes into the sum was made from."""
    made = [recipe for recipe in case.recipes.known if recipe.stored == case.recipe.inputs[0] and recipe.inputs]
    return [recipe.inputs[0] for recipe in made if case.run.covers(recipe.inputs[0], case.window)]


def _beside(case: Case) -> list[str]:
    """The layer's other branch."""
    layer = case.recipe.site.removesuffix(".post_attention_layernorm:in")
    names = (f"{layer}.self_attn.o_proj", f"{layer}.mlp.down_proj")
    stored = {recipe.stored for recipe in case.recipes.known if recipe.site in names}
    return [name for name in sorted(stored - set(case.recipe.inputs)) if case.run.covers(name, case.window)]


def _skipped(case: Case) -> Iterator[Hypothesis]:
    for other in _before(case):
        yield plainly(case.run.recorded, other, case.window, source=other)


def _another_stream(case: Case) -> Iterator[Hypothesis]:
    for other in _before(case):
        yield plainly(unchanged, case.run.recorded(other, case.window) + case.inputs[1], **_names(case), found=other)


def _another_branch(case: Case) -> Iterator[Hypothesis]:
    for other in _beside(case):
        values = case.inputs[0] + case.inputs[1] + case.run.recorded(other, case.window)
        yield plainly(unchanged, values, found=other)


def _rounded(case: Case) -> Iterator[Hypothesis]:
    for dtype in narrower(case):
        parts = as_stored(case.inputs[0], dtype) + as_stored(case.inputs[1], dtype)
        yield plainly(narrowed, case, parts, dtype, dtype=dtype)


def _times(case: Case) -> Iterator[Hypothesis]:
    stream, branch = case.inputs

    def added(times: float) -> Result:
        """The sum, with the product rounded first or not."""
        values = stream + times * branch
        stored = in_16_bits(case.dtype, lambda: [stream + as_stored(times * branch, case.dtype)])
        rounded = tuple(as_stored(each, case.dtype) for each in stored)
        variance = np.maximum(case.right.variance, rounding(times * branch, case.dtype, 2.0))
        return Result(values, variance, rounded=rounded)

    def make() -> Made:
        times = best_factor(branch, case.recorded - stream, rounding(case.recorded, case.dtype))
        # Of 16-bit values the factor is known to some three digits; an engine in 16 bits rounds it as well.
        rounded = [float(as_stored(np.array([times]), case.dtype)[0])] if case.dtype in SIXTEEN_BITS else []
        best = min([times, *rounded], key=lambda each: case.judge(added(each))[0].size)
        return added(best), {"times": best}

    yield Hypothesis(make, _names(case), at=added)


BRANCH_LEFT_OUT = SiteMistake(
    "branch_left_out",
    "{branch} is not added",
    at=RESIDUAL,
    hypotheses=lambda case: [plainly(unchanged, case.inputs[0], **_names(case))],
)
DROPPED = SiteMistake(
    "residual_dropped",
    "the residual {stream} is dropped",
    at=RESIDUAL,
    hypotheses=lambda case: [plainly(unchanged, case.inputs[1], **_names(case))],
)
TWICE = SiteMistake(
    "branch_added_twice",
    "{branch} is added twice",
    at=RESIDUAL,
    hypotheses=lambda case: [plainly(unchanged, case.inputs[0] + 2.0 * case.inputs[1], **_names(case))],
)
SKIPPED = SiteMistake(
    "layer_skipped",
    "output equals {source}; the layer was skipped",
    main="source",
    at=RESIDUAL,
    hypotheses=_skipped,
)
ANOTHER_STREAM = SiteMistake(
    "another_stream",
    "{branch} is added to {found} instead of {stream}",
    main="found",
    at=RESIDUAL,
    hypotheses=_another_stream,
)
ANOTHER_BRANCH = SiteMistake(
    "another_branch", "{found} is added as well", main="found", at=RESIDUAL, hypotheses=_another_branch
)
ROUNDED = SiteMistake("sum_rounded", "sum taken in {dtype}", main="dtype", at=RESIDUAL, hypotheses=_rounded)
TIMES = SiteMistake(
    "branch_times",
    "{branch} is added times {times:.6g}",
    main="times",
    at=RESIDUAL,
    complexity=Complexity.NUMBER,
    hypotheses=_times,
)
