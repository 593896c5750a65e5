"""What a call is given, by the names of the parameters; of what `*rest` takes, each is `rest[0]`, `rest[1]`, ..."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from inspect import Parameter, signature
from typing import Any

from torch import nn

from tracekit.trace import Json

_IN_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def parameters_of(module: nn.Module) -> Mapping[str, Parameter]:
    """What a call of `module` takes, in order, by name. A library may put something in the place of its `forward` that
    hands everything on: an object that shows the signature of the class's, `self` included (nnsight), or a function
    that takes anything. The class says then what a call means."""
    shown = signature(module.forward).parameters
    if "forward" not in vars(module):
        return shown
    of_class = signature(type(module).forward).parameters
    takes_anything = all(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in shown.values())
    if shown != of_class and not takes_anything:
        return shown
    first = next(iter(of_class.values()), None)
    skipped = first.name if first is not None and first.kind in _IN_PLACE else ""
    return {name: each for name, each in of_class.items() if name != skipped}


def named(parameters: Collection[Parameter], args: tuple[Any, ...], kwargs: Json) -> Json:
    """What a call with `args` and `kwargs` gives, by name."""
    names = [each.name for each in parameters if each.kind in _IN_PLACE]
    rest = _rest(parameters)
    names += [f"{rest}[{index}]" for index in range(len(args) - len(names))] if rest else []
    return dict(zip(names, args, strict=False)) | kwargs


def accepted(parameters: Collection[Parameter], name: str) -> bool:
    """Whether a call may be given something of this name."""
    known = any(each.name == name for each in parameters if each.kind in (*_IN_PLACE, Parameter.KEYWORD_ONLY))
    rest = _rest(parameters)
    return known or any(each.kind is Parameter.VAR_KEYWORD for each in parameters) or _is_of(rest, name)


def in_place(parameters: Collection[Parameter], given: Json, skipped: int = 0) -> tuple[list[Any], Json]:
    """The arguments of a call that gives `given`, those in their places and those by name. `skipped`: parameters that
    come first and are given otherwise; None stands for what `given` lacks of `*rest`."""
    rest = _rest(parameters)
    numbers = [int(name[len(rest) + 1 : -1]) for name in given if _is_of(rest, name)]
    if not numbers:
        return [], given
    before = [each for each in parameters if each.kind in _IN_PLACE][skipped:]
    args = [given.get(each.name, None if each.default is each.empty else each.default) for each in before]
    args += [given.get(f"{rest}[{index}]") for index in range(max(numbers) + 1)]
    known = {each.name for each in before}
    return args, {name: value for name, value in given.items() if name not in known and not _is_of(rest, name)}


def _rest(parameters: Collection[Parameter]) -> str:
    return next((each.name for each in parameters if each.kind is Parameter.VAR_POSITIONAL), "")


def _is_of(rest: str, name: str) -> bool:
    """A file may say anything: no number of more digits than a program has arguments."""
    return bool(rest) and re.fullmatch(rf"{re.escape(rest)}\[\d{{1,3}}\]", name, re.ASCII) is not None
