"""An operation in the place of another: + for -, < for <=, sine for cosine, silu for gelu."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from tracekit.mistakes.edited_line import EditKind
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom
from tracekit_torch.reference_program.segment import Given, Result, Segment

Functions = Mapping[str, Callable[..., Any]]
ARITHMETIC: Functions = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow,
    "floor_divide": torch.floor_divide, "remainder": torch.remainder, "rsub": torch.rsub,
}  # fmt: skip
COMPARISONS: Functions = {
    "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge, "eq": torch.eq, "ne": torch.ne
}  # fmt: skip
LOGIC: Functions = {
    "bitwise_and": torch.bitwise_and, "bitwise_or": torch.bitwise_or, "bitwise_xor": torch.bitwise_xor,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_xor": torch.logical_xor,
}  # fmt: skip
ACTIVATIONS: Functions = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "tanh gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
}
POWERS: Functions = {
    "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "reciprocal": torch.reciprocal, "square": torch.square,
    "abs": torch.abs, "exp": torch.exp, "log": torch.log, "neg": torch.neg,
}  # fmt: skip
WAVES: Functions = {"sin": torch.sin, "cos": torch.cos}
FAMILIES = (ARITHMETIC, COMPARISONS, LOGIC, ACTIVATIONS, POWERS, WAVES)
REDUCED: Functions = {"mean": torch.mean, "sum": torch.sum, "amax": torch.amax, "amin": torch.amin}


def _changes(segment: Segment, place: int) -> Iterator[Change]:
    name = segment.nodes[place].name.rstrip("_")
    for family in FAMILIES:
        if name in family:
            taken = 2 if family in (ARITHMETIC, COMPARISONS, LOGIC) else 1
            for other, function in family.items():
                if other != name:
                    yield Change(("operator", other), _by(function, taken), other=other)
    if name in REDUCED:
        for other, function in REDUCED.items():
            if other != name:
                yield Change(("operator", other), _reduced(function), other=other)


def _by(function: Callable[..., Any], taken: int) -> Any:
    def changed(given: Given, number: float) -> Result:
        return function(*given.args[:taken])

    return changed


def _reduced(function: Callable[..., Any]) -> Any:
    def changed(given: Given, number: float) -> Result:
        dims = given.args[1] if len(given.args) > 1 else tuple(range(given.args[0].dim()))
        return function(given.args[0], dim=dims, keepdim=len(given.args) > 2 and given.args[2])

    return changed


EDIT = Edit(EditKind.OPERATOR, Freedom.AMONG_FEW, 1, _changes)
