"""RMSNorm and LayerNorm: their weight, mean and eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from tracekit.auditing import operations
from tracekit.auditing.operations import Floats, Result, as_stored
from tracekit.auditing.operations.norms import LayerNorm, Norm, RmsNorm
from tracekit.auditing.recipe import Recipe
from tracekit.dtypes import SIXTEEN_BITS
from tracekit.mistakes.engine_steps import norm_steps
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, Made, narrower, plainly, unchanged

NORMS = (RmsNorm.kind, LayerNorm.kind)
COMMON_EPS = (1e-12, 1e-8, 1e-6, 1e-5, 1e-3)
USUAL = 1.5
"""Times what the fitted eps leaves that a usual one may leave, to be the one that was meant."""
ALIKE = 1.1
"""Times what the best eps leaves that another leaves which fits as well."""


def _norm(case: Case) -> Norm:
    assert isinstance(case.recipe.operation, Norm)
    return case.recipe.operation


def _with_weight(case: Case, factor: Floats | None) -> Result:
    x, norm = case.inputs[0], _norm(case)
    if isinstance(norm, RmsNorm):
        return _in_steps(
            case, operations.rms_norm(x, factor, norm.eps, case.dtype), replace(norm, plus_one=False), factor
        )
    bias = case.run.parameters.vector(case.recipe, "bias")
    return operations.layer_norm(x, factor, bias, norm.eps, case.dtype)


def _in_steps(case: Case, result: Result, norm: Norm, weight: Floats | None) -> Result:
    """The result with the values of engines that round every step, in 16 bits."""
    if case.dtype not in SIXTEEN_BITS or not isinstance(norm, RmsNorm):
        return result
    return replace(result, rounded=(*result.rounded, *(steps.made() for steps in norm_steps(case, norm, weight))))


def _shifted(case: Case, factor: Floats) -> Result:
    """The sum is taken in float32, or rounded as the weight is."""
    made, narrow = _with_weight(case, factor), _with_weight(case, as_stored(factor, case.dtype))
    return replace(made, rounded=(*made.rounded, *narrow.rounded))


def _weight_plus(by: int) -> Callable[[Case], Iterator[Hypothesis]]:
    def hypotheses(case: Case) -> Iterator[Hypothesis]:
        weight = case.run.parameters.vector(case.recipe, "weight")
        if weight is not None:
            stated = int(_norm(case).plus_one)
            values = {"found": _sum(stated + by), "stated": _sum(stated)}
            yield plainly(_shifted, case, weight + float(stated + by), **values)

    return hypotheses


def _sum(more: int) -> str:
    return "weight" if more == 0 else f"weight {'+' if more > 0 else '-'} {abs(more)}"


def _unweighted(case: Case) -> Iterator[Hypothesis]:
    if case.run.parameters.vector(case.recipe, "weight") is not None:
        yield plainly(_with_weight, case, None)


def _weight_rounded(case: Case) -> Iterator[Hypothesis]:
    """What a norm multiplies by, in a narrower format: its weight, or the sum of that and 1."""
    weight, one = case.run.parameters.vector(case.recipe, "weight"), float(_norm(case).plus_one)
    if weight is None:
        return
    for dtype in narrower(case):
        narrow = as_stored(weight, dtype)
        options = {"weight": narrow + one}
        if one:
            options |= {
                _sum(1): as_stored(weight + one, dtype),
                f"weight and {_sum(1)}": as_stored(narrow + one, dtype),
            }
        tried = [weight + one]
        for what, factor in options.items():
            if not any(np.array_equal(factor, other) for other in tried):
                tried.append(factor)
                yield plainly(_with_weight, case, factor, what=what, dtype=dtype)


def _centred(case: Case) -> Iterator[Hypothesis]:
    if isinstance(_norm(case), RmsNorm):
        yield plainly(_with_mean_off, case)


def _with_mean_off(case: Case) -> Result:
    weight = case.run.parameters.vector(case.recipe, "weight")
    centred = case.inputs[0] - case.inputs[0].mean(axis=1, keepdims=True)
    return operations.rms_norm(centred, weight, _norm(case).eps, case.dtype, _norm(case).plus_one)


def _not_centred(case: Case) -> Iterator[Hypothesis]:
    if isinstance(_norm(case), LayerNorm):
        yield plainly(_with_mean, case)


def _with_mean(case: Case) -> Floats:
    weight, bias = (case.run.parameters.vector(case.recipe, role) for role in ("weight", "bias"))
    scaled = operations.rms_norm(case.inputs[0], weight, _norm(case).eps, case.dtype).values
    return scaled if bias is None else scaled + bias


def _recipe(case: Case, eps: float) -> Recipe:
    return replace(case.recipe, operation=_norm(case).with_eps(eps))


def _with_eps(case: Case, eps: float) -> Result:
    recipe = _recipe(case, eps)
    assert isinstance(recipe.operation, Norm)
    weight = case.run.parameters.vector(recipe, "weight")
    return _in_steps(case, case.run.result(recipe, case.window, case.inputs), recipe.operation, weight)


def _fitted_eps(case: Case) -> Made | None:
    """Every row's scale gives an eps; rows of small mean square, which depend on it, count most."""
    x = case.inputs[0]
    if isinstance(_norm(case), LayerNorm):
        x = x - x.mean(axis=1, keepdims=True)
    means = np.mean(np.square(x), axis=1)
    bias = case.run.parameters.vector(case.recipe, "bias")
    offset = 0.0 if bias is None else bias
    right, recorded = case.right.values - offset, case.recorded - offset
    gains = np.einsum("pc,pc->p", right, recorded) / np.maximum(np.einsum("pc,pc->p", right, right), 1e-290)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (means + _norm(case).eps) / np.square(gains) - means
    weights = 1.0 / np.square(means + _norm(case).eps)
    good = np.isfinite(found)
    if not good.any():
        return None
    fitted = float(np.sum((found * weights)[good]) / np.sum(weights[good]))
    # In 16 bits a scale is known to three digits, and a usual eps may be the better one.
    options = [eps for eps in (fitted, *COMMON_EPS) if eps > 0.0]
    sizes = {eps: case.judge(_with_eps(case, eps))[0].size for eps in options}
    best = min(options, key=sizes.__getitem__)
    usual = [eps for eps in COMMON_EPS if sizes[eps] <= max(1.0, USUAL * sizes[best])]
    best = min(usual, key=sizes.__getitem__, default=best)
    # Where several leave as much, the data cannot tell them apart: the one nearest to what was declared is claimed.
    alike = [eps for eps in usual if sizes[eps] <= ALIKE * sizes[best]]
    best = min(alike, key=lambda eps: abs(math.log(eps / _norm(case).eps)), default=best)
    return _with_eps(case, best), {"found": best}


def _eps(case: Case) -> Iterator[Hypothesis]:
    stated = _norm(case).eps
    yield Hypothesis(lambda: _fitted_eps(case), {"stated": stated}, at=lambda eps: _with_eps(case, eps))


WEIGHT_PLUS_1 = SiteMistake(
    "norm_weight_plus_1", "{found} used instead of {stated}", at=NORMS, hypotheses=_weight_plus(1)
)
WEIGHT_MINUS_1 = SiteMistake(
    "norm_weight_minus_1", "{found} used instead of {stated}", at=NORMS, hypotheses=_weight_plus(-1)
)
WEIGHT_LEFT_OUT = SiteMistake("norm_weight_left_out", "weight left out", at=NORMS, hypotheses=_unweighted)
WEIGHT_ROUNDED = SiteMistake(
    "norm_weight_rounded", "{what} rounded to {dtype}", main="dtype", at=NORMS, hypotheses=_weight_rounded
)
SKIPPED = SiteMistake(
    "norm_skipped",
    "the norm is skipped",
    at=NORMS,
    hypotheses=lambda case: [plainly(unchanged, case.inputs[0])],
)
MEAN_SUBTRACTED = SiteMistake(
    "mean_subtracted", "the mean is subtracted, as in a LayerNorm", at=NORMS, hypotheses=_centred
)
MEAN_NOT_SUBTRACTED = SiteMistake(
    "mean_not_subtracted", "the mean is not subtracted", at=NORMS, hypotheses=_not_centred
)
EPS = SiteMistake(
    "norm_eps",
    "eps {found:.3g} instead of {stated:.3g}",
    main="found",
    at=NORMS,
    complexity=Complexity.NUMBER,
    hypotheses=_eps,
)
