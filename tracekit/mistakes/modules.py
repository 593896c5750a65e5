"""Mistakes of linear layers, norms, gates, residual sums and embeddings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing import operations
from tracekit.auditing.operations import ACTIVATIONS, Floats, Result, as_stored, unit
from tracekit.auditing.recipe import Recipe
from tracekit.mistakes.quantised import ROUNDINGS, rounded
from tracekit.mistakes.suspect import Case, Hypothesis, Value, narrowed, plainly

SIBLINGS = {
    "q_proj": ("k_proj", "v_proj", "o_proj"),
    "k_proj": ("v_proj", "q_proj"),
    "v_proj": ("k_proj", "q_proj"),
    "o_proj": ("q_proj",),
    "gate_proj": ("up_proj",),
    "up_proj": ("gate_proj",),
    "input_layernorm": ("post_attention_layernorm",),
    "post_attention_layernorm": ("input_layernorm",),
}
"""Parameters of the same shape that a loader may mix up."""


COMMON_EPS = (1e-12, 1e-8, 1e-6, 1e-5, 1e-3)
USUAL = 1.5
"""Times what the fitted eps leaves that a usual one may leave, to be the one that was meant."""

ALIKE = 1.1
"""Times what the best eps leaves that another leaves which fits as well."""


def module_mistakes(case: Case) -> Iterator[Hypothesis]:
    """Hypotheses for the culprit's kind of module."""
    kinds = {
        "linear": _linear,
        "rms_norm": _norm,
        "layer_norm": _norm,
        "gate": _gate,
        "residual": _residual,
        "embedding": _embedding,
        "identity": _passed,
        "capped": _capped,
    }
    yield from kinds[case.recipe.kind](case)


def _passed(case: Case) -> Iterator[Hypothesis]:
    width = case.right.values.shape[1]
    scaled = case.right.values * float(np.sqrt(width))
    yield plainly("embedding scale", f"scaled by sqrt({width})", _same, scaled)


def _capped(case: Case) -> Iterator[Hypothesis]:
    x, recipe = case.inputs[0], case.recipe
    if recipe.cap is not None:
        yield plainly("soft cap left out", f"the soft cap of {recipe.cap:g} is left out", _same, x * recipe.factor)
    if recipe.factor != 1.0:
        text = f"the logits are not multiplied by {recipe.factor:.6g}"
        yield plainly("logits scale left out", text, _uncapped_factor, case)


def _uncapped_factor(case: Case) -> Result:
    return operations.capped(case.inputs[0], 1.0, case.recipe.cap, case.dtype)


def _same(values: Floats) -> Floats:
    return values


# ---------------------------------------------------------------- linear layers


def _linear(case: Case) -> Iterator[Hypothesis]:
    matrix = case.run.parameters.matrix(case.recipe)
    x, weight, bias = case.inputs[0], matrix.weight, matrix.bias
    if bias is not None:
        product = case.right.values - bias
        yield plainly("bias left out", "bias left out", _same, product)
        yield plainly("bias added twice", "bias added twice", _same, product + 2.0 * bias)
        yield Hypothesis("bias times", 2, lambda: _scaled_bias(case, product), lambda times: f"bias times {times:.6g}")
    if weight.shape[0] == weight.shape[1]:
        yield plainly("weight transposed", "weight transposed", _multiplied, case, weight.T, bias)
    yield from _siblings(case)
    yield from _other_head(case, x, bias)
    for source in _other_inputs(case):
        text = f"computed from {source} instead of {case.recipe.inputs[0]}"
        yield plainly("another input", text, _from_other, case, source, weight, bias)
    for name, order in _head_orders(case, weight.shape[0]):
        yield plainly(name, name, _reordered, case.right.values, order)
    for dtype in ("float16", "bfloat16"):
        if unit(dtype) > unit(case.dtype) * 1.5:
            text = f"weight rounded to {dtype}"
            yield plainly(text, text, _product, x, as_stored(weight, dtype), bias)
            text = f"input rounded to {dtype}"
            yield plainly(text, text, _product, as_stored(x, dtype), weight, bias)
    for text in ROUNDINGS:
        yield plainly("weight quantised", text, _quantised, text, x, weight, bias)
    if case.dtype in ("float16", "bfloat16"):
        yield Hypothesis("gain", 2, lambda: _weight_gain(case), lambda gain: f"weight times {gain:.6g}")
    yield Hypothesis("one weight", 3, lambda: _one_weight(case, x), str)


def _other_head(case: Case, x: Floats, bias: Floats | None) -> Iterator[Hypothesis]:
    """The head with the embeddings' table where it has one of its own, and the other way round."""
    checkpoint, asked = case.run.parameters.checkpoint, case.recipe.parameters["weight"]
    used, other = checkpoint.find(asked), checkpoint.other_head(asked)
    if used is None or other is None or checkpoint.shape(used) != checkpoint.shape(other):
        return
    declared = checkpoint.config.get("tie_word_embeddings")
    text = f"the head's table is {other} instead of {used} (tie_word_embeddings {str(bool(declared)).lower()})"
    yield plainly("another head", text, _multiplied, case, checkpoint.values(other).astype(np.float64), bias)


def _product(x: Floats, weight: Floats, bias: Floats | None) -> Floats:
    values = x @ weight.T
    return values if bias is None else values + bias


def _multiplied(case: Case, weight: Floats, bias: Floats | None) -> Result:
    """The product with another matrix, with what its own sums may be off."""
    return operations.linear(operations.Matrix(weight, bias), case.inputs[0], case.dtype, closely=True)


def _quantised(text: str, x: Floats, weight: Floats, bias: Floats | None) -> Floats | None:
    values = rounded(text, weight)
    return None if values is None else _product(x, values, bias)


def _from_other(case: Case, source: str, weight: Floats, bias: Floats | None) -> Floats:
    return _product(case.run.recorded(source, case.window), weight, bias)


def _reordered(values: Floats, order: NDArray[np.int64]) -> Floats:
    return np.asarray(values[:, order])


def _siblings(case: Case) -> Iterator[Hypothesis]:
    """This site with the parameters of a sibling of the same shape."""
    for own, others in SIBLINGS.items():
        for other in others:
            names = {role: _swapped(name, own, other) for role, name in case.recipe.parameters.items()}
            recipe = replace(case.recipe, parameters=names)
            if names == dict(case.recipe.parameters) or not case.run.parameters.has(recipe):
                continue
            text = f"computed with the weight of {names['weight'].removesuffix('.weight')}"
            yield plainly("another weight", text, _with, case, recipe)


def _swapped(name: str, own: str, other: str) -> str:
    return re.sub(rf"(^|\.){own}(\.|$)", rf"\g<1>{other}\g<2>", name)


def _with(case: Case, recipe: Recipe) -> Result | None:
    """The site computed with another recipe's parameters, where shapes allow."""
    checkpoint = case.run.parameters.checkpoint
    found, own = checkpoint.find(recipe.parameters["weight"]), checkpoint.find(case.recipe.parameters["weight"])
    if found is None or own is None or checkpoint.shape(found) != checkpoint.shape(own):
        return None
    return case.run.result(recipe, case.window, case.inputs)


def _other_inputs(case: Case) -> Iterator[str]:
    """What the module's input was itself made from: a norm that is skipped."""
    if case.recipe.site == "logits":
        return
    for recipe in case.recipes.known:
        if recipe.stored == case.recipe.inputs[0] and recipe.kind.endswith("norm"):
            yield from (name for name in recipe.inputs[:1] if case.run.covers(name, case.window))


def _head_orders(case: Case, width: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Rows of a projection as they lie where the two rotary layouts were mixed up, or heads were miscounted."""
    cores = [recipe.core for recipe in case.recipes.known if case.recipe.stored in recipe.inputs]
    core = next((core for core in cores if core is not None), None)
    if core is None:
        return
    head = core.head_dim
    yield "rows in interleaved order instead of half-split", _interleaved(width, head)
    yield "rows in half-split order instead of interleaved", np.argsort(_interleaved(width, head))
    for heads in sorted({core.heads, core.kv_heads}):
        wide = width // heads
        if width % heads == 0 and wide != head and wide % 2 == 0:
            yield f"rows interleaved as if there were {heads} heads", _interleaved(width, wide)
            yield f"rows half-split as if there were {heads} heads", np.argsort(_interleaved(width, wide))


def _interleaved(width: int, head: int) -> NDArray[np.int64]:
    """Columns 0, h/2, 1, h/2 + 1 ... of every head."""
    pairs = np.arange(head).reshape(2, head // 2).T.reshape(-1)
    return np.asarray((np.arange(0, width, head)[:, None] + pairs[None, :]).reshape(-1))


def _scaled_bias(case: Case, product: Floats) -> tuple[Floats, Value]:
    bias = case.right.values - product
    weights = 1.0 / case.right.variance
    power = max(float(np.sum(weights * np.square(bias))), 1e-290)
    times = float(np.sum(weights * bias * (case.recorded - product))) / power
    return product + times * bias, times


def _weight_gain(case: Case) -> tuple[Result, Value]:
    """The weight multiplied, and rounded again, before it is used."""
    matrix, dtype = case.run.parameters.matrix(case.recipe), case.dtype
    power = max(float(np.sum(np.square(case.right.values) / case.right.variance)), 1e-290)
    fitted = float(np.sum(case.right.values * case.recorded / case.right.variance)) / power
    steps: Floats = fitted * (1.0 + 2.0 * unit(dtype) * np.arange(-3.0, 4.0))
    gains = [float(gain) for gain in np.unique(as_stored(steps, dtype)) if gain != 1.0]

    def changed(gain: float) -> Result:
        matrix_then = operations.Matrix(as_stored(matrix.weight * gain, dtype), matrix.bias)
        return operations.linear(matrix_then, case.inputs[0], dtype, closely=True)

    best = min(gains, key=lambda gain: case.distance(changed(gain).values))
    return changed(best), best


def _one_weight(case: Case, x: Floats) -> tuple[Floats, Value] | None:
    """One entry of the weight off: one column's error is one input column times a number."""
    error = case.recorded - case.right.values
    column = int(np.sum(np.square(error) / case.right.variance, axis=0).argmax())
    powers = np.maximum(np.square(x).sum(axis=0), 1e-290)
    gains = x.T @ error[:, column] / powers
    row = int((np.square(gains) * powers).argmax())
    values = case.right.values.copy()
    values[:, column] += gains[row] * x[:, row]
    return values, f"weight[{column}, {row}] off by {gains[row]:.4g}"


# ---------------------------------------------------------------- norms


def _norm(case: Case) -> Iterator[Hypothesis]:
    x, parameters, recipe = case.inputs[0], case.run.parameters, case.recipe
    weight, bias = parameters.vector(recipe, "weight"), parameters.vector(recipe, "bias")

    def with_weight(factor: Floats | None) -> Result:
        if recipe.kind == "rms_norm":
            return operations.rms_norm(x, factor, recipe.eps, case.dtype)
        return operations.layer_norm(x, factor, bias, recipe.eps, case.dtype)

    def shifted(factor: Floats) -> Result:
        """The sum is taken in float32, or rounded as the weight is."""
        made, narrow = with_weight(factor), with_weight(as_stored(factor, case.dtype))
        return replace(made, rounded=(*made.rounded, *narrow.rounded))

    if weight is not None:
        used = weight + 1.0 if recipe.plus_one else weight
        right = "weight + 1" if recipe.plus_one else "weight"
        more, less = ("weight + 2", "weight") if recipe.plus_one else ("weight + 1", "weight - 1")
        yield plainly("norm weight + 1", f"{more} used instead of {right}", shifted, used + 1.0)
        yield plainly("norm weight - 1", f"{less} used instead of {right}", shifted, used - 1.0)
        yield plainly("norm weight left out", "weight left out", with_weight, None)
    yield from _siblings(case)
    yield plainly("norm skipped", "the norm is skipped", _same, x)
    if recipe.kind == "rms_norm":
        yield plainly("mean subtracted", "the mean is subtracted, as a LayerNorm does", _centred, case, weight)
    else:
        yield plainly("mean not subtracted", "the mean is not subtracted", _without_mean, case, weight, bias)
    yield Hypothesis("norm eps", 2, lambda: _eps(case), partial(_eps_text, case), partial(_with_eps, case))


def _eps_text(case: Case, value: Value) -> str:
    return f"eps {value:.3g} instead of {case.recipe.eps:.3g}"


def _centred(case: Case, weight: Floats | None) -> Result:
    centred = case.inputs[0] - case.inputs[0].mean(axis=1, keepdims=True)
    return operations.rms_norm(centred, weight, case.recipe.eps, case.dtype, case.recipe.plus_one)


def _without_mean(case: Case, weight: Floats | None, bias: Floats | None) -> Floats:
    scaled = operations.rms_norm(case.inputs[0], weight, case.recipe.eps, case.dtype).values
    return scaled if bias is None else scaled + bias


def _with_eps(case: Case, eps: float) -> Result:
    recipe = replace(case.recipe, operation=case.recipe.operation.with_eps(eps))
    return case.run.result(recipe, case.window, case.inputs)


def _eps(case: Case) -> tuple[Result, Value] | None:
    """Every row's scale gives an eps; rows of small mean square, which depend on it, count most."""
    x = case.inputs[0]
    if case.recipe.kind == "layer_norm":
        x = x - x.mean(axis=1, keepdims=True)
    means = np.mean(np.square(x), axis=1)
    bias = case.run.parameters.vector(case.recipe, "bias")
    offset = 0.0 if bias is None else bias
    right, recorded = case.right.values - offset, case.recorded - offset
    gains = np.einsum("pc,pc->p", right, recorded) / np.maximum(np.einsum("pc,pc->p", right, right), 1e-290)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (means + case.recipe.eps) / np.square(gains) - means
    weights = 1.0 / np.square(means + case.recipe.eps)
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
    best = min(alike, key=lambda eps: abs(math.log(eps / case.recipe.eps)), default=best)
    return _with_eps(case, best), best


# ---------------------------------------------------------------- gates, sums, embeddings


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -700.0, 700.0))))


FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "silu": operations.silu,
    "gelu": operations.gelu,
    "tanh-gelu": operations.gelu_tanh,
    "relu": operations.relu,
    "sigmoid": _sigmoid,
    "no activation": _same,
}


def _gate(case: Case) -> Iterator[Hypothesis]:
    gate, up = case.inputs
    declared = ACTIVATIONS[case.recipe.activation]
    yield plainly("gate and up swapped", "gate and up swapped", _gated, declared, up, gate)
    for name, function in FUNCTIONS.items():
        if function is not declared:
            text = f"{name} instead of {case.recipe.activation}"
            made = plainly("activation", text, _gated, function, gate, up)
            yield replace(made, variance=operations.cancelled(gate, up))
    yield plainly("up left out", "the up projection is left out", declared, gate)
    yield plainly("gate left out", "the gate is left out", _same, up)


def _gated(function: Callable[[Floats], Floats], gate: Floats, up: Floats) -> Floats:
    return np.asarray(function(gate) * up)


def _residual(case: Case) -> Iterator[Hypothesis]:
    stream, branch = case.inputs
    source, added = case.recipe.inputs
    yield plainly("branch left out", f"{added} is not added", _same, stream)
    yield plainly("residual dropped", f"the residual {source} is dropped", _same, branch)
    yield plainly("branch added twice", f"{added} is added twice", _same, stream + 2.0 * branch)
    for other in _before(case):
        before = case.run.recorded(other, case.window)
        yield plainly("layer skipped", f"it is {other} unchanged: what lies between is skipped", _same, before)
        text = f"{added} is added to {other} instead of {source}"
        yield plainly("another stream", text, _same, before + branch)
    for other in _beside(case):
        text = f"{other} is added as well"
        yield plainly("another branch", text, _same, stream + branch + case.run.recorded(other, case.window))
    for dtype in ("float16", "bfloat16"):
        if unit(dtype) > unit(case.dtype) * 1.5:
            text = f"sum taken in {dtype}"
            parts = as_stored(stream, dtype) + as_stored(branch, dtype)
            yield plainly("sum rounded", text, narrowed, case, parts, dtype)
    yield Hypothesis(
        "branch times",
        2,
        lambda: _scaled_branch(case, stream, branch),
        lambda times: f"{added} is added times {times:.6g}",
        lambda times: stream + times * branch,
    )


def _beside(case: Case) -> list[str]:
    """The layer's other branch."""
    layer = case.recipe.site.removesuffix(".post_attention_layernorm:in")
    names = (f"{layer}.self_attn.o_proj", f"{layer}.mlp.down_proj")
    stored = {recipe.stored for recipe in case.recipes.known if recipe.site in names}
    return [name for name in sorted(stored - set(case.recipe.inputs)) if case.run.covers(name, case.window)]


def _before(case: Case) -> list[str]:
    """What the stream that goes into the sum was made from."""
    made = [recipe for recipe in case.recipes.known if recipe.stored == case.recipe.inputs[0] and recipe.inputs]
    return [recipe.inputs[0] for recipe in made if case.run.covers(recipe.inputs[0], case.window)]


def _scaled_branch(case: Case, stream: Floats, branch: Floats) -> tuple[Floats, Value]:
    weights = 1.0 / case.right.variance
    power = max(float(np.sum(weights * np.square(branch))), 1e-290)
    times = float(np.sum(weights * branch * (case.recorded - stream))) / power
    return stream + times * branch, times


def _embedding(case: Case) -> Iterator[Hypothesis]:
    factor = case.recipe.factor
    if factor != 1.0:
        text = f"the embeddings are not multiplied by {factor:.6g}"
        ids = case.run.ids[case.window.first : case.window.stop]
        rows = case.run.parameters.table(case.recipe)[ids].astype(np.float64)
        yield plainly("embedding scale left out", text, _same, rows)
        twice = f"the embeddings are multiplied by {factor:.6g} twice"
        yield plainly("embedding scale twice", twice, _same, case.right.values * factor)
    else:
        width = case.right.values.shape[1]
        scaled = case.right.values * float(np.sqrt(width))
        yield plainly("embedding scale", f"scaled by sqrt({width})", _same, scaled)
    yield Hypothesis("other tokens", 3, lambda: _looked_up(case), str)


def _looked_up(case: Case) -> tuple[Floats, Value] | None:
    """Rows of the table that are what was recorded, though not of the recorded token ids."""
    table = case.run.parameters.table(case.recipe)
    first = int(case.wrong.argmax())
    found = np.flatnonzero(np.abs(table[:, 0] - case.recorded[first, 0]) <= 1e-6 * np.abs(case.recorded[first, 0]))
    ids = [int(row) for row in found if np.array_equal(table[row].astype(np.float64), case.recorded[first])]
    if not ids:
        return None
    values = case.right.values.copy()
    values[first] = case.recorded[first]
    position = int(case.window.rows[first])
    return values, f"token {ids[0]} at position {position} instead of {int(case.run.ids[position])}"
