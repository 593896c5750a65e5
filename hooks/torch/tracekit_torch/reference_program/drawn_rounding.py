"""Monte Carlo arithmetic: runs of a torch program in which every operation's result is off by a drawn rounding error.

Parker 1997, "Monte Carlo Arithmetic"; Denis et al. 2016, Verificarlo. A result y becomes y * (1 + u * z), z uniform in
[-1, 1] and u the unit roundoff of the dtype that the judged program computes in. Sums get what their accumulation may
be off besides, of terms that are added one after the other: u^2 / 3 for each partial sum squared, which over all orders
is K (S^2 / 3 + T^2 / 6) for K terms with the sum S and the root of the sum of squares T (`auditing/sums.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._decomp import decomposition_table

from tracekit.dtypes import SMALLEST_BY_UNIT
from tracekit_torch.reference_program.error_function import formula_off, pieces_off
from tracekit_torch.reference_program.lockstep import Lockstep, out_of_place
from tracekit_torch.reference_program.sine_tables import SineTable

EXACT = {
    "neg", "abs", "clone", "where", "maximum", "minimum", "relu", "masked_fill", "copy", "clamp", "clamp_min",
    "clamp_max", "floor", "ceil", "round", "trunc", "sign", "zeros_like", "ones_like", "fill", "isinf", "isnan",
    "threshold",
}  # fmt: skip
"""Pointwise operations whose result is one of their operands, or exact."""
MOVES = {
    "amax", "amin", "aminmax", "as_strided", "bernoulli", "cat", "col2im", "complex", "constant_pad_nd", "cummax",
    "cummin", "diag_embed", "diagonal_scatter", "embedding", "eye", "flip", "gather", "im2col", "index", "index_copy",
    "index_fill", "index_put", "index_select", "kthvalue", "lift", "lift_fresh", "linspace", "masked_scatter",
    "masked_select",
    "max", "max_pool2d_with_indices", "max_pool3d_with_indices", "median", "min", "mode", "nanmedian", "native_dropout",
    "nonzero", "one_hot", "pixel_shuffle", "pixel_unshuffle", "put", "reflection_pad1d", "reflection_pad2d", "repeat",
    "repeat_interleave", "replication_pad1d", "replication_pad2d", "resize", "roll", "rot90", "scatter",
    "select_scatter",
    "set", "slice_scatter", "sort", "split_with_sizes_copy", "stack", "take", "topk", "tril", "triu", "unfold_copy",
    "unique_dim", "upsample_nearest1d", "upsample_nearest2d", "_index_put_impl", "_pack_padded_sequence", "_to_copy",
    "_unique2", "_unsafe_index", "_unsafe_view", "_reshape_copy", "clone", "copy", "fill", "zero", "zeros_like",
}  # fmt: skip
"""Operations that move numbers, or choose among them. What is neither pointwise nor one of these rounds."""
LIBRARY = {
    "exp",
    "log",
    "sin",
    "cos",
    "tanh",
    "erf",
    "gelu",
    "silu",
    "sigmoid",
    "softplus",
    "rsqrt",
    "pow",
    "exp2",
    "expm1",
    "log1p",
    "mish",
}
"""Functions that libraries compute to some units in the last place, not to half of one."""
LIBRARY_UNITS = 2.0
EXPONENTIALS = {"exp", "exp2", "pow", "sigmoid"}
"""Functions that many libraries compute as an exponential of a float32 product, whose rounding the exponential takes
times the logarithm of the result: exp(-20) is off by 20 units in MLX, by one in torch."""
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "convolution", "mv", "dot", "_grouped_mm"}
SUMS = {
    "sum",
    "mean",
    "var",
    "var_mean",
    "cumsum",
    "logsumexp",
    "_softmax",
    "_safe_softmax",
    "_log_softmax",
    "linalg_vector_norm",
    "norm",
    "native_layer_norm",
    "native_group_norm",
    "prod",
    "cumprod",
    "std",
    "std_mean",
    "logcumsumexp",
    "_cdist_forward",
}
SCATTERED = {"index_add", "scatter_add", "scatter_reduce", "index_put", "index_reduce"}
"""Sums whose terms are added one after the other to what is stored, each time rounded to its format."""
FOURIER = {"_fft_r2c", "_fft_c2r", "_fft_c2c"}
"""Transforms, whose errors are those of all terms, as large in a small result as in a large one."""


SCALED = {"mul", "div"}
"""Operations whose scalar operand is rounded to the accumulators' dtype first: one error that all results share."""
SHIFTED = {"add", "sub", "rsub"}
"""The same of one that is added."""
FILLED = {"full", "full_like", "new_full", "scalar_tensor"}
"""Constants of a program, in the dtype that it computes in: one error that all that is computed from them shares."""
SIGNED = {"sum", "mean"}
"""Sums of which the terms may have both signs."""
TAKEN_APART = {
    "gelu", "silu", "mish", "softplus", "glu", "hardswish", "log_sigmoid_forward", "native_layer_norm",
    "native_group_norm", "_softmax", "_safe_softmax", "_log_softmax",
}  # fmt: skip
"""Operations whose own steps each round: a step that cancels (1 + erf far to the left) may be off by far more than a
unit of the result."""
SEEN = 2.0**-126
"""Steps between the smallest numbers from which a format's are wider than float32's, in which the errors are drawn."""
HUGE = 1e30
"""Constants beyond it stand for infinity."""


def inexact(value: Any) -> bool:
    """Whether a scalar operand of a program is no float32."""
    return isinstance(value, float) and math.isfinite(value) and float(np.float32(value)) != value


class DrawnRounding(Lockstep):  # type: ignore[no-untyped-call]
    """While this mode is on, every floating-point result is off by a drawn rounding error in each of `runs` runs beside
    the exact one. `unit`: unit roundoff of what is stored between operations, `sums`: of accumulators; `only`: the
    operations, by their number in the program, that are off, as bits; all of them by default."""

    def __init__(self, unit: float, sums: float, seed: int, runs: int = 8, only: int | None = None) -> None:
        super().__init__(runs)
        self._unit, self._sums, self._only = unit, sums, only
        self._least = SMALLEST_BY_UNIT.get(unit, 0.0) / 2.0
        self._draws = torch.Generator().manual_seed(seed)

    def tables(self, found: Iterable[SineTable]) -> None:
        """Numbers that the candidate may have computed itself are off as well."""
        for table in found:
            table.draw(self, self._unit, self._draws)

    def taken_apart(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name not in TAKEN_APART or func not in decomposition_table:
            return NotImplemented
        with self:
            out = decomposition_table[func](*args, **kwargs)
        if self._draws_here():
            self._kernel(name, args, kwargs, out)
        return out

    def own_errors(
        self, func: Any, args: tuple[Any, ...], out: Any, kwargs: dict[str, Any]
    ) -> tuple[Tensor | None, ...]:
        name = func.overloadpacket.__name__
        plain = out_of_place(name)
        if not self._draws_here():
            return ()
        moves = plain in MOVES and not (plain == "index_put" and _accumulates(args, kwargs))
        if moves or plain in EXACT or plain in FILLED:
            return (self._constant(plain, args, kwargs, out),)
        if isinstance(out, tuple | list):
            first = self._off(plain, args, out[0], kwargs)
            if name in ("var_mean", "std_mean") and first is not None:
                variance = out[0] if name == "var_mean" else out[0].square()
                return first, self._cancelled(out[1], (variance + out[1].square()).sqrt_())
            return (first,)
        if plain in SCATTERED:
            return (self._scattered(func, plain, args, out, kwargs),)
        off = self._off(plain, args, out, kwargs)
        known = plain in PRODUCTS or plain in SUMS or plain in FOURIER or torch.Tag.pointwise in func.tags
        if off is not None and not known and not off.is_complex():  # a sum of a kind of its own, whose terms may cancel
            off += self._drawn(out).mul_(float(out.square().mean().sqrt()) * self._sums * LIBRARY_UNITS)
        return (off,)

    def _rounded(self, out: Tensor, unit: float) -> Tensor:
        """By how much at most results of this unit roundoff are off: the steps between small ones are all as large."""
        if self._least <= SEEN:
            return out * unit
        size = out.abs()
        return torch.maximum(size * unit, size.clamp_max(self._least))

    def _draws_here(self) -> bool:
        return self._only is None or bool(self._only >> self.operations & 1)

    def _kernel(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """What the fused kernels of torch are off besides, which compute otherwise than step by step."""
        if name == "gelu" and kwargs.get("approximate", "none") == "none":
            # A formula's error is the same at the same argument: it is drawn once for all. The error function is then
            # 1 less what is near 1, and rounds as that does, or as the polynomial of another library.
            once = self._drawn(out.new_empty([1] * out.dim())).mul_(math.sqrt(3.0))
            off = self._times(args[0] * pieces_off(args[0]).clamp_min(LIBRARY_UNITS) * (0.5 * self._sums))
            self.add(out, off.add_(once * formula_off(args[0]).to(torch.float32)))
        if name == "native_layer_norm":
            # x * scale - mean * scale, where the steps have (x - mean) * scale: rows far from zero cancel.
            value, (result, mean, scale) = args[0], out
            weight = scale * self._sums if args[2] is None else scale * self._sums * args[2]
            off = self._times(value * weight)
            # The mean is off by one amount in all of a row.
            self.add(result, off.add_(self._drawn(mean) * (mean * weight).to(torch.float32)))

    def _off(self, name: str, args: tuple[Any, ...], out: Any, kwargs: dict[str, Any]) -> Tensor | None:
        if not isinstance(out, Tensor) or not out.numel() or not any(_holds_fractions(value) for value in args):
            return None
        if name in FOURIER:
            return self._transformed(args, out)
        if out.is_complex():
            size = out.abs() * (self._unit * (LIBRARY_UNITS if name in LIBRARY or name == "polar" else 1.0))
            return self._complex(size)
        if not out.is_floating_point():
            return None
        unit = self._unit * (LIBRARY_UNITS if name in LIBRARY else 1.0)
        off = self._times(self._rounded(out, unit))
        if name in LIBRARY:  # and not to either side alike: what it is off on average, all results share
            once = self._drawn(out.new_empty([1] * out.dim()))
            off += once * (out * (self._sums * LIBRARY_UNITS)).to(torch.float32)
        if name in EXPONENTIALS:
            off += self._times((out * out.abs().log()).nan_to_num_(0.0, 0.0, 0.0) * self._sums)
        if name in SCALED | SHIFTED and any(inexact(value) for value in args[1:]):
            once = self._drawn(out.new_empty([1] * out.dim()))
            size = out if name in SCALED else torch.full_like(out, sum(value for value in args[1:] if inexact(value)))
            off += once * (size * self._sums).to(torch.float32)
        if name in PRODUCTS:
            self._product(name, args, out, kwargs, off)
        elif name in SUMS and args and isinstance(args[0], Tensor):
            length = max(args[0].numel() / max(out.numel(), 1), args[0].shape[-1] if args[0].dim() else 1, 1)
            off += self._times(out * (self._sums * math.sqrt(length / 3.0)))
            if name in SIGNED and args[0].is_floating_point():
                size = getattr(torch, name)(args[0].square(), *args[1:], **kwargs).sqrt_()
                off += self._cancelled(out, size if name == "mean" else size.mul_(math.sqrt(length)))
        return off.nan_to_num_(0.0, 0.0, 0.0)  # minus infinity of a mask is exact

    def _constant(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Tensor | None:
        """What constants of the program are off by being rounded to its dtype, where they are made or chosen: each by
        one amount, wherever it goes."""
        if not isinstance(out, Tensor) or not out.is_floating_point() or not out.numel():
            return None
        if name.startswith("lift"):
            mantissa = torch.frexp(out).mantissa / self._unit
            return self._times((out * self._unit).where(mantissa != mantissa.round(), 0.0)).nan_to_num_(0.0, 0.0, 0.0)
        off = None
        for value in (*args, *kwargs.values()):
            if isinstance(value, float) and abs(value) < HUGE and (math.frexp(value)[0] / self._unit) % 1.0:
                once = self._drawn(out.new_empty([1] * out.dim())).mul_(value * self._unit)
                chosen = once * (out == value)
                off = chosen if off is None else off.add_(chosen)
        return off

    def _scattered(
        self, func: Any, name: str, args: tuple[Any, ...], out: Tensor, kwargs: dict[str, Any]
    ) -> Tensor | None:
        """What terms that are added one after the other to stored numbers are off: the partial sums of the n terms with
        the squares' sum T^2 are n (S^2 / 3 + T^2 / 6) squared, the last is S."""
        if not out.is_floating_point() or not out.numel():
            return None
        if name not in ("index_add", "scatter_add", "index_put"):  # means, products, largest ones, too
            return self._times(out * self._unit)
        at = 2 if name == "index_put" else 3
        plain = {key: value for key, value in kwargs.items() if key != "alpha"}
        before, terms = args[0], args[at]
        alpha = float(kwargs.get("alpha", 1.0))

        def summed(start: Tensor, each: Tensor) -> Tensor:
            given = list(args)
            given[0], given[at] = start.clone(), each
            done: Tensor = func(*given, **plain)
            return done

        count = summed(torch.zeros_like(before), torch.ones_like(terms))
        squares = summed(before.square(), terms.square() * alpha**2)
        partial = (out.square() / 3.0 + squares / 6.0).mul_((count - 1.0).clamp_min_(0.0))
        return self._times(partial.add_(out.square()).sqrt_().mul_(self._unit).where(count > 0.0, 0.0))

    def _transformed(self, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """What a Fourier transform is off: the logarithm of its length in rounding errors of the whole."""
        dims = [dim % out.dim() for dim in args[1]] if isinstance(args[1], list | tuple) else [out.dim() - 1]
        length = max(math.prod(max(out.shape[dim], args[0].shape[dim]) for dim in dims), 2)
        typical = out.abs().square().mean(dims, keepdim=True).sqrt()
        size = out.abs() * self._unit + typical * (self._sums * math.log2(length))
        return self._complex(size) if out.is_complex() else self._times(size)

    def _complex(self, size: Tensor) -> Tensor:
        """Complex numbers whose parts are drawn as `_times` does it."""
        return torch.complex(self._times(size), self._times(size))

    def _cancelled(self, out: Tensor, size: Tensor) -> Tensor:
        """The error of a sum whose terms have both signs: its partial sums do not cancel as the whole does. `size`: the
        terms' root mean square, times their number for a sum that is no mean."""
        return self._times(size.mul_(self._sums / math.sqrt(2.0)))

    def _product(self, name: str, args: tuple[Any, ...], out: Tensor, kwargs: dict[str, Any], into: Tensor) -> None:
        """Add what a product of matrices is off by the order of its sums to `into`, [runs, *out.shape]."""
        tensors = [value for value in args if isinstance(value, Tensor)]
        one, two = tensors[-2:] if name in ("addmm", "baddbmm") else tensors[:2]
        if name == "convolution":
            length = two[0].numel()
            into += self._drawn(out).mul_(float(out.abs().max()) * self._sums * math.sqrt(length / 6.0))
            return
        # Added up in float32, in another order or on another grid: rows that are alike, and those that have terms in
        # common, are rounded alike, which independent draws would not show. Engines take the terms in their order,
        # which matters where those in common come last. An engine that adds one product after the other, from the bias
        # where there is one, is off by more than a blocked sum.
        bias = tensors[0] if len(tensors) == 3 else None
        alpha, beta = float(kwargs.get("alpha", 1.0)), float(kwargs.get("beta", 1.0))
        product = out if bias is None or not alpha else (out - beta * bias).div_(alpha)
        left, right = one.to(torch.float32), two.to(torch.float32)
        terms = left.square().to(product.dtype) @ right.square().mean(-1, keepdim=True).to(product.dtype)
        squares = product.square().mean(-1, keepdim=True).div_(3.0).add_(terms, alpha=1.0 / 6.0).mul_(alpha**2)
        squares += 0.0 if bias is None or not beta else float(bias.square().mean()) * beta**2
        walk = squares.mul_(one.shape[-1] / 3.0).sqrt_().mul_(self._sums)  # of a row's typical value, [..., rows, 1]
        for run in into:
            in_turn, grid = (torch.rand(2, generator=self._draws) + 0.5).tolist()
            rows, weight = left.mul(grid), right
            if in_turn < 1.0:
                order = torch.randperm(one.shape[-1], generator=self._draws)
                # Of a weight matrix, which is stored transposed, columns are chosen: rows of the view lie far apart.
                rows, weight = rows[..., order], right.mT.index_select(-1, order).mT
            off = (torch.matmul(rows, weight).to(product.dtype).div_(grid) - product).mul_(alpha)
            measured = off.square().mean(-1, keepdim=True).sqrt_()
            run.add_(off.mul_((walk / measured).nan_to_num_(1.0, 1.0, 1.0).clamp_min_(1.0)))

    def _times(self, size: Tensor) -> Tensor:
        """`size` times a number drawn from [-1, 1], in each run."""
        return self._drawn(size).mul_(size.to(torch.float32))

    def _drawn(self, like: Tensor) -> Tensor:
        drawn = torch.empty((self.runs, *like.shape), dtype=torch.float32)
        return drawn.uniform_(-1.0, 1.0, generator=self._draws)


def _holds_fractions(value: Any) -> bool:
    """Whether an operand is made of floating-point or complex tensors, or a list of them."""
    if isinstance(value, list | tuple):
        return any(_holds_fractions(each) for each in value)
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _accumulates(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an `index_put` adds to what is there."""
    return bool(args[3] if len(args) > 3 else kwargs.get("accumulate", False))
