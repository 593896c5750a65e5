"""Monte Carlo arithmetic: a run of a torch program in which every operation's result is off by a drawn rounding error.

Parker 1997, "Monte Carlo Arithmetic"; Denis et al. 2016, Verificarlo. A result y becomes y * (1 + u * z), z uniform in
[-1, 1] and u the unit roundoff of the dtype that the judged program computes in. Sums get what their accumulation may
be off besides: a random walk of `length` roundings, u * sqrt(length / 6) times the root of the sum of squares.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode

EXACT = {
    "neg", "abs", "clone", "where", "maximum", "minimum", "relu", "masked_fill", "copy", "clamp", "clamp_min",
    "clamp_max", "floor", "ceil", "round", "trunc", "sign", "zeros_like", "ones_like", "fill", "isinf", "isnan",
    "threshold",
}  # fmt: skip
"""Pointwise operations whose result is one of their operands, or exact."""
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
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "convolution", "mv", "dot", "_grouped_mm"}
SUMS = {
    "sum",
    "mean",
    "var",
    "var_mean",
    "cumsum",
    "logsumexp",
    "_softmax",
    "_log_softmax",
    "linalg_vector_norm",
    "norm",
    "native_layer_norm",
    "native_group_norm",
    "prod",
    "cumprod",
}


SIGNED = {"sum", "mean"}
"""Sums of which the terms may have both signs."""
TAKEN_APART = {"gelu", "silu", "mish", "softplus", "native_layer_norm", "native_group_norm", "_softmax", "_log_softmax"}
"""Operations whose own steps each round: a step that cancels (1 + erf far to the left) may be off by far more than a
unit of the result."""
GELU_UNITS, GELU_FROM, GELU_TO = 6.0, 2.0, 5.0
"""torch's vectorised GELU takes the error function from a polynomial that is off by as many roundoff units of its
argument, where that lies between these."""


class DrawnRounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every floating-point result is off by a drawn rounding error while this mode is on. `unit`: unit roundoff of what
    is stored between operations, `sums`: of accumulators."""

    def __init__(self, unit: float, sums: float, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unit, self._sums = unit, sums
        self._draws = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in TAKEN_APART and func in decomposition_table:
            with self:
                out = decomposition_table[func](*args, **(kwargs or {}))
            return self._kernel(name, args, kwargs or {}, out)
        out = func(*args, **(kwargs or {}))
        plain = name.rstrip("_") if not name.startswith("_") else name
        if plain in EXACT:
            return out
        if plain in PRODUCTS or plain in SUMS or torch.Tag.pointwise in func.tags:
            off = self._off(plain, args, out, kwargs or {})
            # What an operation in place returns is dropped: torch goes on with the tensor that it was given.
            return out.copy_(off) if func._schema.is_mutable and isinstance(out, torch.Tensor) else off
        return out

    def _kernel(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """What the fused kernels of torch are off besides, which compute otherwise than step by step."""
        if name == "gelu" and kwargs.get("approximate", "none") == "none":
            size = args[0].abs()
            loose = torch.where((size > GELU_FROM) & (size < GELU_TO), size * (GELU_UNITS * self._sums), 0.0)
            return out + self._drawn(out).mul_(loose)
        if name == "native_layer_norm":
            # x * scale - mean * scale, where the steps have (x - mean) * scale: rows far from zero cancel.
            value, (result, mean, scale) = args[0], out
            off = self._drawn(value).mul_(value).add_(self._drawn(mean).mul_(mean)).mul_(scale).mul_(self._sums)
            return result + (off if args[2] is None else off.mul_(args[2])), mean, scale
        return out

    def _off(self, name: str, args: tuple[Any, ...], out: Any, kwargs: dict[str, Any]) -> Any:
        if isinstance(out, tuple | list):
            if name == "var_mean":
                size = (out[0] + out[1].square()).sqrt_()
                return self._off(name, args, out[0], kwargs), out[1] + self._cancelled(out[1], size)
            return type(out)([self._off(name, args, out[0], kwargs), *out[1:]])
        if not isinstance(out, torch.Tensor) or not out.is_floating_point() or not out.numel():
            return out
        unit = self._unit * (LIBRARY_UNITS if name in LIBRARY else 1.0)
        off = self._drawn(out).mul_(out).mul_(unit)
        if name in PRODUCTS:
            off += self._product(name, args, out, kwargs)
        elif name in SUMS and args and isinstance(args[0], torch.Tensor):
            length = max(args[0].numel() / max(out.numel(), 1), args[0].shape[-1] if args[0].dim() else 1, 1)
            off += self._drawn(out).mul_(out).mul_(self._sums * math.sqrt(length / 6.0))
            if name in SIGNED and args[0].is_floating_point():
                size = getattr(torch, name)(args[0].square(), *args[1:], **kwargs).sqrt_()
                off += self._cancelled(out, size if name == "mean" else size.mul_(math.sqrt(length)))
        return out + off.nan_to_num_(0.0, 0.0, 0.0)  # minus infinity of a mask is exact

    def _cancelled(self, out: torch.Tensor, size: torch.Tensor) -> Any:
        """The error of a sum whose terms have both signs: its partial sums do not cancel as the whole does. `size`: the
        terms' root mean square, times their number for a sum that is no mean."""
        return self._drawn(out).mul_(size).mul_(self._sums / math.sqrt(2.0))

    def _product(self, name: str, args: tuple[Any, ...], out: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        one, two = tensors[-2:] if name in ("addmm", "baddbmm") else tensors[:2]
        if name == "convolution":
            length = two[0].numel()
            return self._drawn(out).mul_(out.abs().max()).mul_(self._sums * math.sqrt(length / 6.0))
        # Added up in float32 in another order: rows that are alike are rounded alike, which independent draws would not
        # show. An engine that adds one product after the other is off by more than a blocked sum: a random walk, from
        # the bias where there is one, whose partial sums have half of the last one's mean square.
        order = torch.randperm(one.shape[-1], generator=self._draws)
        bias = tensors[0] if len(tensors) == 3 else None
        alpha, beta = float(kwargs.get("alpha", 1.0)), float(kwargs.get("beta", 1.0))
        again = torch.matmul(one[..., order].float(), two[..., order, :].float()).to(out.dtype)
        if (alpha, beta) == (1.0, 1.0) and bias is not out:
            off = (again if bias is None else again + bias).sub_(out)
        else:  # what the sum began with is scaled, or was overwritten by it
            off = again.sub_(torch.matmul(one, two)).mul_(alpha)
        squares = float(torch.matmul(one.square().mean(-2, keepdim=True), two.square()).mean()) / 2.0 * alpha**2
        squares += 0.0 if bias is None or not beta else float(bias.square().mean()) * beta**2
        walk = self._sums * math.sqrt(one.shape[-1] * squares / 3.0)
        measured = float(off.square().mean()) ** 0.5
        return off.mul_(max(1.0, walk / measured) if measured > 0.0 else 1.0)

    def _drawn(self, like: torch.Tensor) -> torch.Tensor:
        drawn = torch.rand(like.shape, generator=self._draws, dtype=torch.float32)
        return drawn.mul_(2.0).sub_(1.0).to(like.dtype)
