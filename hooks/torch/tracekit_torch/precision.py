"""Running a model in another precision than its own: what an oracle is.

Casting the parameters is not enough. Models compute parts in float32 whatever their dtype (a norm's mean square, the
rotary table, the softmax), which is an improvement under bfloat16 and a loss under float64. So while such a model runs,
every conversion to a narrower floating-point format, and every tensor that is made in one, is lifted to the precision
asked for. Numbers that are data stay as they are declared: rotary frequencies that the configuration defines in float32
keep their float32 values, since the other implementation starts from the same ones; what is computed from them (angles,
cosines) is computed in the precision asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

CONVERSIONS = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16}
"""Tensor methods that convert to a format named by themselves."""


def run_in(model: nn.Module, word: str, lifted: nn.Module | None = None) -> None:
    """Cast `model` to the dtype named `word` and make its forward, or that of `lifted` inside it, compute in it."""
    dtype: torch.dtype = getattr(torch, word)
    widens = any(_narrower(value.dtype, dtype) for value in model.parameters())
    cast(model, dtype, buffers=widens)
    if widens:
        runs = model if lifted is None else lifted
        runs.forward = _lifted(runs.forward, dtype)


def cast(model: nn.Module, dtype: torch.dtype, *, buffers: bool) -> None:
    """Cast the parameters and persistent buffers, and all other buffers with `buffers`.

    Buffers that are no part of the checkpoint (rotary frequencies) may be widened, which is exact, but not narrowed:
    models keep them in float32 on purpose.
    """
    saved = set(model.state_dict(keep_vars=True))
    with torch.no_grad():
        for value in model.parameters():
            if value.is_floating_point():
                value.data = value.data.to(dtype)
        for path, module in model.named_modules():
            for name, buffer in module._buffers.items():
                kept = f"{path}.{name}" if path else name
                if buffer is not None and buffer.is_floating_point() and (buffers or kept in saved):
                    module._buffers[name] = buffer.to(dtype)


class Lift(TorchFunctionMode):
    """Turns conversions to, and creations in, a narrower floating-point format into ones of `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in CONVERSIONS and len(args) == 1 and isinstance(args[0], torch.Tensor):
            return args[0].to(self._dtype)
        if any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values())):
            args = tuple(self._lift(value) for value in args)
            kwargs = {key: self._lift(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)

    def _lift(self, value: Any) -> Any:
        return self._dtype if isinstance(value, torch.dtype) and _narrower(value, self._dtype) else value


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _lifted(forward: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    @functools.wraps(forward)
    def lifted(*args: Any, **kwargs: Any) -> Any:
        widen = functools.partial(_widen, dtype=dtype)
        with _default_dtype(dtype), Lift(dtype):
            return forward(*map(widen, args), **{key: widen(value) for key, value in kwargs.items()})

    return lifted


def _widen(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and _narrower(value.dtype, dtype) else value


def _narrower(one: torch.dtype, other: torch.dtype) -> bool:
    return one.is_floating_point and torch.finfo(one).bits < torch.finfo(other).bits
