"""Norms: RMSNorm and LayerNorm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tracekit.auditing import sums
from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.auditing.operations.operation import Given, Module, Operation, Shape
from tracekit.auditing.rounding import LIBRARY, Floats, Result, accumulator, as_stored, constants, in_16_bits, rounding
from tracekit.trace import Json


def rms_norm(x: Floats, weight: Floats | None, eps: float, dtype: str, plus_one: bool = False) -> Result:
    """x / sqrt(mean(x^2) + eps) * w (Zhang and Sennrich 2019); the mean is taken in float32. A weight that is shorter
    than a row is that of each head."""
    if weight is not None and weight.size < x.shape[1]:
        return _each_head(rms_norm(x.reshape(-1, weight.size), weight, eps, dtype, plus_one), x.shape)
    mean = np.mean(np.square(x), axis=1, keepdims=True)
    result = _scaled(x / np.sqrt(mean + eps), weight, None, dtype, plus_one)
    return replace(_in_orders(result, x, mean, eps, dtype), leverage=_leverage(mean, eps))


def layer_norm(
    x: Floats, weight: Floats | None, bias: Floats | None, eps: float, dtype: str, plus_one: bool = False
) -> Result:
    """(x - mean) / sqrt(variance + eps) * w + b (Ba, Kiros and Hinton 2016). A weight that is shorter than a row is
    that of each head."""
    if weight is not None and weight.size < x.shape[1]:
        return _each_head(layer_norm(x.reshape(-1, weight.size), weight, bias, eps, dtype, plus_one), x.shape)
    centred = x - x.mean(axis=1, keepdims=True)
    mean = np.mean(np.square(centred), axis=1, keepdims=True)
    scale = 1.0 / np.sqrt(mean + eps)
    result = _scaled(centred * scale, weight, bias, dtype, plus_one)
    if bias is None:
        result = _in_orders(result, centred, mean, eps, dtype)
    # The mean is subtracted with an error of its own, the same for the whole row and as large as the row's entries.
    lost = (2.0 * accumulator(dtype)) ** 2 * np.mean(np.square(x), axis=1, keepdims=True) * np.square(scale)
    factor = 1.0 if weight is None else np.square(weight + float(plus_one))
    return replace(result, variance=result.variance + lost * factor, leverage=_leverage(mean, eps))


def _leverage(mean: Floats, eps: float) -> Floats:
    """How much each row's scale moves with eps, [rows], as parts of the most."""
    moves = 1.0 / np.maximum(mean[:, 0] + eps, 1e-290)
    return np.asarray(moves / max(float(moves.max(initial=0.0)), 1e-290))


def _each_head(heads: Result, shape: tuple[int, ...]) -> Result:
    """The result of rows that are one head each, as rows of a position each."""
    rounded = tuple(values.reshape(shape) for values in heads.rounded)
    scales = tuple(scale.reshape(shape[0], -1) for scale in heads.scales)
    values, variance = heads.values.reshape(shape), heads.variance.reshape(shape)
    return replace(heads, values=values, variance=variance, rounded=rounded, scales=scales, leverage=None)


def _in_orders(result: Result, x: Floats, mean: Floats, eps: float, dtype: str) -> Result:
    """A norm's result with the scales that its rows have where float32 sums their squares; in 16 bits they do not
    show, and in float64 they are not float32's."""
    if dtype != "float32":
        return result
    orders = sums.squares(x)
    # The root halves the error of the mean square, of which eps is another part.
    share = mean[:, 0] / (2.0 * (mean[:, 0] + eps))
    scales = [share * -error for error in orders.errors]
    shared = math.hypot(result.shared, 0.5 * orders.spread)
    # 1 / n is one constant, eps another.
    known = (
        LIBRARY + constants(dtype, x.shape[1]) / 2.0 + constants(dtype, eps) * float(np.max(0.5 - share, initial=0.0))
    )
    return replace(
        result,
        shared=shared,
        bias_in_order=known,
        bias=known + max(abs(float(np.mean(scale))) for scale in scales),
        scales=tuple(scale[:, None] for scale in scales),
    )


def _scaled(normal: Floats, weight: Floats | None, bias: Floats | None, dtype: str, plus_one: bool) -> Result:
    factor = 1.0 if weight is None else weight + 1.0 if plus_one else weight
    offset = 0.0 if bias is None else bias
    values = normal * factor + offset
    variance = rounding(values - offset, dtype, 2.0) + (0.0 if bias is None else rounding(values, dtype))

    def orders() -> list[Floats]:
        return [as_stored(values, dtype), as_stored(as_stored(normal, dtype) * factor + offset, dtype)]

    # The sum of squares runs over positive terms: its relative error grows as sqrt(K) / 3, and the root halves it.
    shared = accumulator(dtype) * math.hypot(math.sqrt(normal.shape[1]) / 6.0, 1.5)
    variance += np.square(accumulator(dtype) * values)
    return Result(values, variance, shared, in_16_bits(dtype, orders), bias=LIBRARY)


@dataclass(frozen=True)
class Norm(Operation):
    """A norm of each row, or of each head where the weight is as long as one head."""

    finest = "float32"  # transformers' norms convert to float32 in whatever dtype a model runs

    eps: float = 0.0
    plus_one: bool = False
    """Whether it multiplies by 1 + weight."""

    def numbers(self) -> Json:
        return {"eps": self.eps, "plus_one": self.plus_one}

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        shape = shapes.get("weight", ())
        alike = all(source == width for source in inputs)
        return len(shape) == 1 and alike and shape[0] > 0 and width % shape[0] == 0

    def with_eps(self, eps: float) -> Operation:
        return replace(self, eps=eps)

    @classmethod
    def of_module(cls, attributes: Mapping[str, object]) -> Operation | NotAudited:
        eps = attributes.get("eps")
        return cls(float(str(eps))) if eps is not None else NotAudited(Lacks.EPS)

    @classmethod
    def candidates(cls, module: Module) -> Iterator[Operation]:
        alike = len(module.weight) == 1 and module.width == module.inputs
        if alike and module.eps > 0.0 and module.width % module.weight[0] == 0:
            yield from (cls(module.eps, plus_one) for plus_one in (False, True))


@dataclass(frozen=True)
class RmsNorm(Norm):
    """x / sqrt(mean(x^2) + eps) * w (Zhang and Sennrich 2019)."""

    kind = "rms_norm"

    @property
    def in_repro(self) -> bool:
        return True

    def result(self, given: Given) -> Result:
        weight = given.weights.vector("weight")
        return rms_norm(given.inputs[0], weight, self.eps, given.dtype, self.plus_one)

    @classmethod
    def candidates(cls, module: Module) -> Iterator[Operation]:
        yield from () if module.bias else super().candidates(module)


@dataclass(frozen=True)
class LayerNorm(Norm):
    """(x - mean) / sqrt(variance + eps) * w + b (Ba, Kiros and Hinton 2016)."""

    kind = "layer_norm"
    classes = frozenset({"LayerNorm"})

    @property
    def in_repro(self) -> bool:
        return not self.plus_one

    def result(self, given: Given) -> Result:
        weight, bias = given.weights.vector("weight"), given.weights.vector("bias")
        return layer_norm(given.inputs[0], weight, bias, self.eps, given.dtype, self.plus_one)
