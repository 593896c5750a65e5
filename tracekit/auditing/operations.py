"""What the modules of a decoder compute, in float64, and how far correct arithmetic may be off.

Every operation gives its result and the variance of the rounding error that a correct implementation makes, by
element. Each rounding to a format with unit roundoff u is taken as a factor 1 + u * uniform(-1, 1), of variance u^2 / 3
(Monte Carlo arithmetic; Parker 1997). A sum of K products rounds each of its partial sums s, u^2 / 3 sum(s^2); over all
orders of the same products with the sum S, sum(s^2) is K (S^2 / 3 + |products|^2 / 6) on average (`walked`).
Where errors pass through no closed form, the attention core, they are drawn and their spread is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing import sums
from tracekit.dtypes import UNIT_ROUNDOFF, round_to, to_float

Floats = NDArray[np.float64]

ACCUMULATOR = UNIT_ROUNDOFF["float32"]
"""Sums, norms and softmax of 16-bit models are taken in float32; an engine that keeps them narrower is reported."""
LIBRARY = 2.0 * ACCUMULATOR
"""Relative error of a float32 library function (exp, rsqrt, tanh, sin): good to one unit in the last place, which is
two unit roundoffs, and not unbiased."""
SCALE_ROUNDINGS = math.sqrt((0.25 + 0.25 + 1.0 + 1.0) / 3.0)
"""Standard deviation, in unit roundoffs, of a norm's scale beyond its sum of squares: mean and eps, halved by the root,
the root and its reciprocal, a roundoff each, of variance u^2 / 3."""
SMALLEST: dict[str, float] = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
"""Smallest number above zero of each format: below the normal range, rounding is no longer relative."""


@dataclass(frozen=True)
class Result:
    """Values [rows, width], the variance of each one's rounding error, and the relative error that a row shares."""

    values: Floats
    variance: Floats
    shared: float = 0.0
    rounded: tuple[Floats, ...] = ()
    """The values as engines round them on the way, in each usual order. In 16 bits inputs lie on a coarse grid, and a
    factor near a power of two then moves every product the same way: errors that no average takes away. An engine that
    rounds in one of these orders is compared with that."""
    draws: tuple[Floats, ...] = ()
    """Errors of whole runs with drawn roundings at the rows `drawn_rows`, where no closed form gives their spread."""
    drawn_rows: NDArray[np.int64] | None = None
    reordered: tuple[Floats, ...] = ()
    """Errors of the same products added up in float32 in other orders, all rows: how they spread over rows and columns
    together. Rows that are alike are rounded alike, and an average over them takes nothing away."""
    hows: tuple[Emulated, ...] = ()
    """The arithmetics that an attention core is emulated in, where it is."""
    others: tuple[Result, ...] = ()
    """The same in other precisions that engines use, with their own bounds; the closest is what the engine did."""
    bias: float = 0.0
    """Relative error that no average takes away: of library functions, and of sums on a coarse grid."""
    excess: float = 1.0
    """How much more than `variance` says correct arithmetic may be off, measured on the site's own sums."""
    scales: tuple[Floats, ...] = ()
    """Relative errors [rows, groups] that the scale of each row, or of each of its heads, has in the orders in which
    engines sum its squares. An engine that sums in one of them is compared with that."""

    def closest(self, recorded: Floats) -> Result:
        """Itself, one of the others, or one of its own orders, whichever is nearest to what was recorded."""
        if self.scales:
            return self._in_its_order(recorded)

        def distance(option: Result) -> tuple[float, float]:
            return min(typical(recorded - values) for values in (option.values, *option.rounded))

        return min((self, *self.others), key=distance) if self.others else self

    def _in_its_order(self, recorded: Floats) -> Result:
        """The values with the scale of the order that the recorded rows show, if one of them does."""
        grouped = (len(self.values), self.scales[0].shape[1], -1)
        values, gap = self.values.reshape(grouped), (recorded - self.values).reshape(grouped)
        with np.errstate(invalid="ignore", over="ignore"):
            gains = (gap * values).sum(axis=2) / np.maximum(np.square(values).sum(axis=2), 1e-290)
            left = [float(np.median(np.square(gains - scale))) for scale in (np.zeros_like(gains), *self.scales)]
        best = int(np.argmin(np.where(np.isfinite(left), left, np.inf)))
        if best == 0:
            return self
        made = (values * (1.0 + self.scales[best - 1])[..., None]).reshape(self.values.shape)
        return replace(self, values=made, shared=SCALE_ROUNDINGS * ACCUMULATOR, bias=LIBRARY, scales=())


def typical(gap: Floats) -> tuple[float, float]:
    """Median and sum of the rows' squared lengths: a few rows that are wrong do not decide what the others are near."""
    squares = np.einsum("pc,pc->p", gap, gap)
    return float(np.median(squares)), float(squares.sum())


def unit(dtype: str) -> float:
    """Unit roundoff of a float format; float32's for anything else."""
    return UNIT_ROUNDOFF.get(dtype, ACCUMULATOR)


def accumulator(dtype: str) -> float:
    """Unit roundoff of the sums of a model in `dtype`."""
    return min(unit(dtype), ACCUMULATOR)


def rounding(values: Floats, dtype: str, times: float = 1.0) -> Floats:
    """Variance of `times` roundings of `values` to `dtype`."""
    smallest = SMALLEST.get(dtype, 0.0)
    variance = np.square(np.asarray(values, dtype=np.float64))
    variance *= times * (unit(dtype) ** 2 / 3.0)
    variance += smallest * smallest + 1e-290
    return variance


def as_stored(values: Floats, dtype: str) -> Floats:
    """`values` rounded to a float format, as float64."""
    return to_float(round_to(values, dtype), dtype).astype(np.float64)


# ---------------------------------------------------------------- modules


def embedding(table: NDArray[Any], ids: NDArray[np.int64], dtype: str, factor: float = 1.0) -> Result:
    """Rows of the table; exact where the engine holds the table in the dtype that it records. `factor`: what they are
    multiplied by, which engines round to the dtype first or do not."""
    values = table[ids].astype(np.float64)
    plain = Result(values, np.full_like(values, SMALLEST.get(dtype, 0.0) ** 2 + 1e-290))
    return plain if factor == 1.0 else times(values, factor, dtype)


def times(x: Floats, factor: float, dtype: str) -> Result:
    """x times a number, which engines round to the dtype first or do not."""

    def with_factor(number: float) -> Result:
        values = x * number
        orders = in_16_bits(dtype, lambda: [as_stored(values, dtype)])
        return Result(values, rounding(values, dtype) + rounding(values, "float32"), rounded=orders)

    narrow = float(as_stored(np.array([factor]), dtype)[0])
    return replace(with_factor(factor), others=() if narrow == factor else (with_factor(narrow),))


def capped(x: Floats, factor: float, cap: float | None, dtype: str) -> Result:
    """Logits from what the head gave: times a number, then softly capped."""
    if cap is None:
        return times(x, factor, dtype)
    inside = x * factor / cap
    values = cap * np.tanh(inside)
    # Quotient, tanh and product each round; the first error shrinks as tanh flattens.
    variance = rounding(values, dtype, 3.0) + rounding(values, "float32", 4.0)
    variance += rounding(inside, dtype, 2.0) * np.square(cap * (1.0 - np.square(np.tanh(inside))))

    def orders() -> list[Floats]:
        tanh = as_stored(np.tanh(as_stored(inside, dtype)), dtype)
        return [as_stored(values, dtype), as_stored(tanh * cap, dtype)]

    return Result(values, variance, rounded=in_16_bits(dtype, orders))


def identity(x: Floats, dtype: str) -> Result:
    """What is passed on as it is, at most in a narrower format."""
    return Result(x, rounding(x, dtype), rounded=(x,))


@dataclass(frozen=True)
class Matrix:
    """A linear layer's weight in float64, [outputs, inputs], and the sums that its bound needs."""

    weight: Floats
    bias: Floats | None
    squares: NDArray[np.float32] = field(init=False)  # [outputs, inputs]; a bound needs no more digits
    by_input: NDArray[np.float32] = field(init=False)  # [inputs], squares summed over the outputs

    def __post_init__(self) -> None:
        squares = self.weight.astype(np.float32)
        np.square(squares, out=squares)
        object.__setattr__(self, "squares", squares)
        object.__setattr__(self, "by_input", np.ones(len(squares), np.float32) @ squares)


def linear(matrix: Matrix, x: Floats, dtype: str, closely: bool = False) -> Result:
    """x W' + b. Unless `closely`, the products' squares are summed over rows and over columns only, and their outer
    product stands for each element's sum, which would cost a second multiplication."""
    product = x @ matrix.weight.T
    values = product if matrix.bias is None else product + matrix.bias
    squares = np.square(x)
    if closely:
        walked = squares @ np.square(matrix.weight).T
    else:
        by_row = squares @ matrix.by_input.astype(np.float64)
        # In float32 the sums over all rows would overflow where one value is huge; their sizes alone matter.
        power = squares.sum(axis=0)
        largest = float(power.max(initial=0.0)) or 1.0
        by_column = (matrix.squares @ (power / largest).astype(np.float32)) * largest
        walked = by_row[:, None] * (by_column / max(by_row.sum(), 1e-290))
    variance = rounding(values, dtype)
    variance += walked * _stored_between(x.shape[1], dtype)
    variance += sums.walked(product, walked, x.shape[1], accumulator(dtype))
    excess = sums.excess(x, matrix.weight) if dtype == "float32" else 1.0
    reordered = _reordered(matrix, x, values, dtype) if closely else ()
    if matrix.bias is None:
        rounded = in_16_bits(dtype, lambda: [as_stored(values, dtype)])
        return Result(values, variance, rounded=rounded, excess=excess, reordered=reordered)
    bias = matrix.bias
    orders = in_16_bits(dtype, lambda: [as_stored(values, dtype), as_stored(as_stored(product, dtype) + bias, dtype)])
    return Result(values, variance + rounding(product, dtype), rounded=orders, excess=excess, reordered=reordered)


ORDERS = 8
"""Orders in which a product is added up again: with a site's columns, some hundred errors to take a variance of."""


def _reordered(matrix: Matrix, x: Floats, values: Floats, dtype: str) -> tuple[Floats, ...]:
    """Errors of x W' + b whose products are added up in float32 in `ORDERS` drawn orders, [rows, width] each."""
    generator, errors = np.random.default_rng(0), []
    narrow, weight = x.astype(np.float32), matrix.weight.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(ORDERS):
            order = generator.permutation(x.shape[1])
            total = narrow[:, order] @ weight[:, order].T
            if matrix.bias is not None:
                total += matrix.bias.astype(np.float32)
            errors.append(as_stored(total.astype(np.float64), dtype) - values)
    return tuple(np.where(np.isfinite(error), error, 0.0) for error in errors)


SPLIT = 256
"""Products that a matrix multiplication sums before it adds them to what is stored: 16-bit kernels (candle's float16,
split-K ones on GPUs) keep the sum of these blocks in the stored format. 256 is the smallest usual block: what 32 KB of
first-level cache hold of a panel (Goto and van de Geijn 2008)."""


def _stored_between(terms: int, dtype: str) -> float:
    """Variance of what is lost where blocks of a sum are stored in 16 bits, over the sum of the products' squares."""
    blocks = math.ceil(terms / SPLIT) - 1 if unit(dtype) > ACCUMULATOR else 0
    return unit(dtype) ** 2 / 3.0 * blocks


def in_16_bits(dtype: str, orders: Callable[[], list[Floats]]) -> tuple[Floats, ...]:
    """`orders()` of a 16-bit format, nothing of a wider one."""
    return tuple(orders()) if dtype in ("bfloat16", "float16") else ()


def rms_norm(x: Floats, weight: Floats | None, eps: float, dtype: str, plus_one: bool = False) -> Result:
    """x / sqrt(mean(x^2) + eps) * w (Zhang and Sennrich 2019); the mean is taken in float32. A weight that is shorter
    than a row is that of each head."""
    if weight is not None and weight.size < x.shape[1]:
        return _each_head(rms_norm(x.reshape(-1, weight.size), weight, eps, dtype, plus_one), x.shape)
    mean = np.mean(np.square(x), axis=1, keepdims=True)
    result = _scaled(x / np.sqrt(mean + eps), weight, None, dtype, plus_one)
    return _in_orders(result, x, mean, eps, dtype)


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
    return replace(result, variance=result.variance + lost * factor)


def _each_head(heads: Result, shape: tuple[int, ...]) -> Result:
    """The result of rows that are one head each, as rows of a position each."""
    rounded = tuple(values.reshape(shape) for values in heads.rounded)
    scales = tuple(scale.reshape(shape[0], -1) for scale in heads.scales)
    values, variance = heads.values.reshape(shape), heads.variance.reshape(shape)
    return replace(heads, values=values, variance=variance, rounded=rounded, scales=scales)


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
    return replace(
        result,
        shared=shared,
        bias=result.bias + max(abs(float(np.mean(scale))) for scale in scales),
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


def residual(one: Floats, other: Floats, dtype: str, factor: float = 1.0) -> Result:
    """The residual stream and what a block adds to it, times a number."""
    added = other if factor == 1.0 else other * factor
    values = one + added
    if factor == 1.0:
        return Result(values, rounding(values, dtype), rounded=in_16_bits(dtype, lambda: [as_stored(values, dtype)]))
    orders = in_16_bits(dtype, lambda: [as_stored(values, dtype), as_stored(one + as_stored(added, dtype), dtype)])
    return Result(values, rounding(values, dtype) + rounding(added, dtype), rounded=orders)


def silu(x: Floats) -> Floats:
    """x * sigmoid(x) (Elfwing et al. 2017)."""
    with np.errstate(over="ignore"):
        return np.asarray(x / (1.0 + np.exp(-x)))


def gelu(x: Floats) -> Floats:
    """x * Phi(x), exactly (Hendrycks and Gimpel 2016)."""
    return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))))


def gelu_tanh(x: Floats) -> Floats:
    """The tanh approximation of GELU (`gelu_pytorch_tanh`)."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))))


def cancelled(gate: Floats, up: Floats) -> Floats:
    """Variance of GELU's `1 + tanh` and `1 + erf` in float32, which cancel where the gate is negative."""
    return np.asarray(np.square(2.0 * ACCUMULATOR * gate * up) / 3.0)


def relu(x: Floats) -> Floats:
    return np.maximum(x, 0.0)


def _erf(x: Floats) -> Floats:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), dtype=np.float64)


ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
}
"""`hidden_act` -> function."""


UNDERFLOW = 1e-36
"""Size of activations that float32 may lose: 88 * exp(-88)."""


def gated(gate: Floats, up: Floats, activation: str, dtype: str) -> Result:
    """act(gate) * up, the activation rounded before the product."""
    active = ACTIVATIONS[activation](gate)
    values = active * up
    # exp, sum, quotient in float32; then the activation and the product in the model's dtype.
    variance = rounding(values, dtype, 2.0) + rounding(values, "float32", 4.0)
    # exp(-gate) overflows float32 behind 88, and what is left of the activation becomes 0.
    variance += np.square(UNDERFLOW * up)
    if activation.startswith("gelu"):
        variance += cancelled(gate, up)

    def orders() -> list[Floats]:
        return [as_stored(values, dtype), as_stored(as_stored(active, dtype) * up, dtype)]

    return Result(values, variance, rounded=in_16_bits(dtype, orders), bias=LIBRARY)


# ---------------------------------------------------------------- rotary


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (Su et al. 2021) as `config.json` declares it."""

    theta: float
    width: int  # dimensions of a head that are rotated
    scaling: tuple[tuple[str, Any], ...] = ()

    @property
    def kind(self) -> str:
        """`default`, `linear`, `llama3` ..."""
        scaling = dict(self.scaling)
        return str(scaling.get("rope_type", scaling.get("type")) or "default")

    def frequencies(self) -> tuple[Floats, float]:
        """Inverse frequencies [width / 2], and the factor on cos and sin (1 but for yarn).

        Source: transformers `modeling_rope_utils.py`. Raises KeyError for a scaling that is not known here.
        """
        inverse = self.theta ** (-np.arange(0, self.width, 2, dtype=np.float64) / self.width)
        scaling, kind = dict(self.scaling), self.kind
        if kind in ("default", "dynamic"):  # dynamic changes nothing within the trained length
            return inverse, 1.0
        if kind == "linear":
            return inverse / float(scaling["factor"]), 1.0
        if kind == "llama3":
            return _llama3(inverse, scaling), 1.0
        raise KeyError(kind)


def _llama3(inverse: Floats, scaling: dict[str, Any]) -> Floats:
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    length = 2.0 * math.pi / inverse
    smooth = (original / length - low) / (high - low)
    between = (1.0 - smooth) * inverse / factor + smooth * inverse
    out = np.where(length > original / low, inverse / factor, inverse)
    return np.where((length <= original / low) & (length >= original / high), between, out)


# ---------------------------------------------------------------- the attention core


@dataclass(frozen=True)
class Core:
    """Grouped-query attention from projected queries, keys and values to the output projection's input.

    The fields behind `window` are what a recipe has right; an explanation changes one of them.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotary: Rotary
    scale: float
    window: int | None = None
    softcap: float | None = None
    interleaved: bool = False  # pairs (0, 1), (2, 3) ... instead of the two halves
    table: str | None = None  # cos and sin rounded to this format
    angles: str | None = None  # positions times frequencies rounded to this format
    query_offset: int = 0
    late_from: int | None = None  # the first position that is not where it should be ...
    late_by: int | None = None  # ... but this much further; None: at position 0
    rotate_queries: bool = True
    rotate_keys: bool = True
    backwards: bool = False  # sin with the other sign on queries alone
    mask: str = "causal"  # or: open (the whole prompt), past (own key unseen), future (one key too many)
    prompt: int = 0  # positions of the prompt, which a mask that is open shows to all of them
    head_map: str = "group"  # or: modulo
    prompt_keys_unrotated: bool = False  # while the prompt is read, though the cache gets rotated ones
    lost_row: int | None = None  # a cache row that is not there, for queries from `since`
    stale_row: int | None = None  # a cache row that holds another row's key and value: `source`, or nothing (-1)
    source: int = -1
    since: int = 0
    weights: str | None = None  # probabilities rounded to this format
    scores: str | None = None  # scores rounded to this format
    softmax: str | None = None  # the whole softmax in this format, its sum taken one by one
    sink_from: int | None = None  # one more entry in the softmax, of score and value 0, for queries from here


class Rounding:
    """Multiplies by 1 + u * uniform(-1, 1) where an implementation rounds; one draw of a whole run. With `wide` scores,
    they stay in float32 up to the softmax, as fused kernels keep them."""

    def __init__(self, dtype: str, seed: int, wide: bool = False) -> None:
        self.stored = unit(dtype)
        self.sums = accumulator(dtype)
        self.wide = wide
        self._random = np.random.default_rng(seed)

    def score(self, values: Floats, times: int) -> Floats:
        return self.float32(values) if self.wide else self.store(values)

    def store(self, values: Floats) -> Floats:
        return self._times(values, self.stored)

    def float32(self, values: Floats) -> Floats:
        return self._times(values, self.sums)

    def walk(self, values: Floats, terms: int, size: Floats) -> Floats:
        """A sum of `terms` products whose squares sum to `size` squared."""
        noise = self._random.standard_normal(values.shape, dtype=np.float32)
        noise = noise * np.sqrt(sums.walked(values, np.square(size), terms, self.sums))
        noise += values
        return np.asarray(noise)

    def _times(self, values: Floats, roundoff: float) -> Floats:
        noise = self._random.random(values.shape, dtype=np.float32) - np.float32(0.5)
        out = values * noise
        out *= 2.0 * roundoff
        out += values
        return np.asarray(out)


class Emulated:
    """Rounds to the model's format where an implementation does, in its order."""

    def __init__(self, dtype: str, scores: int) -> None:
        self.dtype = dtype
        self.scores = scores  # how often a score is rounded: not, as a product, or again when it is scaled

    def store(self, values: Floats) -> Floats:
        return as_stored(values, self.dtype)

    def score(self, values: Floats, times: int) -> Floats:
        return self.store(values) if times <= self.scores else values

    def float32(self, values: Floats) -> Floats:
        return values

    def walk(self, values: Floats, terms: int, size: Floats) -> Floats:
        return values


class Exact:
    """The same without rounding."""

    def score(self, values: Floats, times: int) -> Floats:
        return values

    def store(self, values: Floats) -> Floats:
        return values

    def float32(self, values: Floats) -> Floats:
        return values

    def walk(self, values: Floats, terms: int, size: Floats) -> Floats:
        return values


Arithmetic = Rounding | Emulated | Exact


def attend(
    core: Core, q: Floats, k: Floats, v: Floats, rows: NDArray[np.int64], how: Arithmetic | None = None
) -> Floats:
    """The core at query positions `rows`, [rows, heads * head_dim].

    q [rows, heads * head_dim] are those positions' queries; k and v [positions, kv_heads * head_dim] all keys and
    values from position 0.
    """
    how = how or Exact()
    width, positions = core.head_dim, len(k)
    queries = q.reshape(len(rows), core.heads, width).transpose(1, 0, 2)
    keys = k.reshape(positions, core.kv_heads, width).transpose(1, 0, 2)
    values = v.reshape(positions, core.kv_heads, width).transpose(1, 0, 2)
    at = np.arange(positions, dtype=np.float64)
    if core.rotate_queries:
        queries = _rotate(
            core, queries, _places(core, rows.astype(np.float64)) + core.query_offset, how, core.backwards
        )
    plain = keys
    if core.rotate_keys:
        keys = _rotate(core, keys, _places(core, at), how, False)
    visible = _visible(core, rows, positions)
    out = np.empty((len(rows), core.heads, width))
    for part, seen_keys, seen_values in _caches(core, rows, plain, keys, values):
        sink = core.sink_from is not None and bool(rows[part].min(initial=1 << 62) >= core.sink_from)
        for head in range(core.heads):
            kv = head // (core.heads // core.kv_heads) if core.head_map == "group" else head % core.kv_heads
            heads = queries[head, part], seen_keys[kv], seen_values[kv]
            out[part, head] = _one_head(core, *heads, visible[part], how, sink)
    return out.reshape(len(rows), -1)


def _caches(
    core: Core, rows: NDArray[np.int64], plain: Floats, keys: Floats, values: Floats
) -> list[tuple[NDArray[np.bool_], Floats, Floats]]:
    """Which queries see which keys and values; all see the same, but for the mistakes that only some see."""
    since = core.sink_from if core.sink_from is not None else core.since
    if core.prompt_keys_unrotated:
        reading = rows < core.prompt
        parts = [(reading, plain, values), (~reading, keys, values)]
    elif core.stale_row is not None:
        parts = [(rows < since, keys, values), (rows >= since, *_stale(core, keys, values))]
    else:
        parts = [(rows < since, keys, values), (rows >= since, keys, values)]
    return [part for part in parts if part[0].any()]


def _stale(core: Core, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
    out = keys.copy(), values.copy()
    for side in out:
        side[:, core.stale_row] = side[:, core.source] if core.source >= 0 else 0.0
    return out


def _places(core: Core, positions: Floats) -> Floats:
    if core.late_from is None:
        return positions
    moved = positions + core.late_by if core.late_by is not None else np.zeros_like(positions)
    return np.where(positions >= core.late_from, moved, positions)


def _visible(core: Core, rows: NDArray[np.int64], positions: int) -> NDArray[np.bool_]:
    """Which keys each query sees, [rows, positions]."""
    at = np.arange(positions)[None, :]
    behind = rows[:, None] - at
    reading = (rows[:, None] < core.prompt) & (at < core.prompt)
    seen = behind >= (1 if core.mask == "past" else 0)
    if core.mask == "past":
        seen |= (rows[:, None] == 0) & (behind == 0)
    if core.mask in ("open", "future"):
        seen |= reading & (behind >= (-1 if core.mask == "future" else -positions))
    if core.lost_row is not None:
        seen &= (at != core.lost_row) | (rows[:, None] < core.since)
    return seen if core.window is None else seen & (behind < core.window)


def _rotate(core: Core, heads: Floats, places: Floats, how: Arithmetic, backwards: bool) -> Floats:
    """Rotates [heads, rows, head_dim] by position."""
    frequencies, factor = core.rotary.frequencies()
    angles = how.float32(places[:, None] * how.float32(frequencies)[None, :])
    if core.angles is not None:
        angles = as_stored(angles, core.angles)
    cos, sin = how.store(np.cos(angles) * factor), how.store(np.sin(angles) * factor)
    if core.table is not None:
        cos, sin = as_stored(cos, core.table), as_stored(sin, core.table)
    if backwards:
        sin = -sin
    width = core.rotary.width
    turned = heads.copy()
    if core.interleaved:
        first, second = (slice(0, width, 2), slice(1, width, 2))
    else:
        first, second = (slice(0, width // 2), slice(width // 2, width))
    one, other = heads[..., first], heads[..., second]
    turned[..., first] = how.store(how.store(one * cos) - how.store(other * sin))
    turned[..., second] = how.store(how.store(other * cos) + how.store(one * sin))
    return turned


def _one_head(
    core: Core, q: Floats, k: Floats, v: Floats, visible: NDArray[np.bool_], how: Arithmetic, sink: bool
) -> Floats:
    scores = q @ k.T
    if isinstance(how, Rounding):
        size = np.sqrt(np.square(q) @ np.square(k).T)
        scores = how.walk(scores, q.shape[1], size)
    scores = how.score(how.score(scores, 1) * core.scale, 2)
    if core.scores is not None:
        scores = as_stored(scores, core.scores)
    if core.softcap is not None:
        scores = core.softcap * np.tanh(scores / core.softcap)
    scores = np.where(visible, scores, -np.inf)
    if core.softmax is not None:
        return how.store(how.store(_narrow_softmax(scores, core.softmax)) @ v)
    top = np.maximum(scores.max(axis=1, keepdims=True), 0.0 if sink else -np.inf)
    weights = how.float32(np.exp(scores - np.where(np.isfinite(top), top, 0.0)))
    total = weights.sum(axis=1, keepdims=True) + (np.exp(-top) if sink else 0.0)
    if isinstance(how, Rounding):
        total = how.walk(total, v.shape[0], np.sqrt(np.square(weights).sum(axis=1, keepdims=True)))
    weights = how.store(how.float32(weights / np.maximum(total, 1e-290)))
    if core.weights is not None:
        weights = as_stored(weights, core.weights)
    out = weights @ v
    if isinstance(how, Rounding):
        out = how.walk(out, v.shape[0], np.sqrt(np.square(weights) @ np.square(v)))
    return how.store(out)


def _narrow_softmax(scores: Floats, dtype: str) -> Floats:
    """Every operation rounded, and the sum added up in the same format (candle's `softmax_last_dim` in 16 bits)."""
    rounded = np.where(np.isfinite(scores), as_stored(np.where(np.isfinite(scores), scores, 0.0), dtype), -np.inf)
    weights = as_stored(np.exp(as_stored(rounded - rounded.max(axis=1, keepdims=True), dtype)), dtype)
    total = np.zeros(len(weights))
    for column in weights.T:
        total = as_stored(total + column, dtype)
    return as_stored(weights / total[:, None], dtype)
