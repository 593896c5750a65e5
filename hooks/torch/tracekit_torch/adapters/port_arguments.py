"""What the calls of a plain PyTorch port are given beside their ids, as far as a reference must be given it, too.

The reference runs over all positions at once; so what a call's arguments say of its positions (their numbers, a mask of
later ones) is kept as that, and everything else as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import torch

from tracekit.trace import Json

ARGUMENTS = "arguments"
"""Of a sequence's metadata: the arguments of its first call, by name."""
DEEPEST = 2
"""Objects within objects of an argument in which it is looked for how many positions they hold."""


class Told(Enum):
    """What an argument is."""

    POSITIONS = "positions"
    """The number of each position, [time] or [batch, time]."""
    FIRST = "first"
    """The number of the first."""
    LENGTH = "length"
    """How many there are."""
    CAUSAL = "causal"
    """[..., time, time or more]: one value up to each position, another after it and in what a cache has room for."""
    EQUAL = "equal"
    """One value for all positions, [batch, time]."""
    VALUE = "value"
    """A number, text, or nothing."""
    INPUT = "input"
    """A tensor that is kept whole among the sequence's inputs, with the dimension of its batch."""
    UNKNOWN = "unknown"
    """A tensor of which none of this is true."""


KEPT = (Told.INPUT, Told.UNKNOWN)
"""What a sequence says elsewhere, or not at all."""


def arguments_told(arguments: Json, ids: torch.Tensor) -> Json:
    """What the first call of a sequence was given beside its `ids` [batch, time], for the sequence's metadata."""
    found = {name: _told(value, ids) for name, value in arguments.items() if value is not ids}
    return {name: told for name, told in found.items() if told is not None}


def arguments_again(told: Json, time: int) -> dict[str, Any]:
    """The same for a call of `time` positions from 0 on, batch 1; without what is unknown or among the inputs."""
    found = {name: _again(each, time) for name, each in told.items() if Told(each["is"]) not in KEPT}
    return dict(found)


def unknown_arguments(told: Json) -> list[str]:
    """Names of those that cannot be given again."""
    return [name for name, each in told.items() if each["is"] == Told.UNKNOWN.value]


def _told(value: Any, ids: torch.Tensor) -> Json | None:
    time = ids.shape[1]
    if value is None or isinstance(value, bool | str) or (isinstance(value, float) and math.isfinite(value)):
        return {"is": Told.VALUE.value, "value": value}
    if isinstance(value, int):
        if value == 0:
            return {"is": Told.FIRST.value}
        return {"is": Told.LENGTH.value} if value == time > 1 else {"is": Told.VALUE.value, "value": value}
    return _told_of_tensor(value.detach(), ids) if isinstance(value, torch.Tensor) else None


def _told_of_tensor(value: torch.Tensor, ids: torch.Tensor) -> Json:
    batch, time = ids.shape
    axes, word = value.dim(), str(value.dtype).removeprefix("torch.")
    if axes == 0 and counts(value) and int(value) == 0:
        return {"is": Told.FIRST.value, "dtype": word}
    whole = value.numel() in (time, ids.numel()) and value.shape[-1:] == (time,) and axes <= 2
    if whole and counts(value) and bool((value == torch.arange(time, device=value.device)).all()):
        return {"is": Told.POSITIONS.value, "axes": axes, "dtype": word}
    if whole and axes == 2 and not value.is_complex() and bool((value == value.reshape(-1)[0]).all()):
        return {"is": Told.EQUAL.value, "axes": axes, "dtype": word, "value": value.reshape(-1)[0].item()}
    if axes >= 2 and time > 1 and value.shape[-2] == time <= value.shape[-1]:
        rows = value.reshape(-1, time, value.shape[-1])
        seen, hidden = rows[0, 0, :2].tolist()
        earlier = torch.ones_like(rows[0], dtype=torch.bool).tril()
        alone = len(rows) in (1, batch) and seen != hidden
        if alone and bool((torch.where(earlier, rows[:1, :1, :1], rows[:1, :1, 1:2]) == rows).all()):
            return {"is": Told.CAUSAL.value, "axes": axes, "dtype": word, "value": [_written(seen), _written(hidden)]}
    return {"is": Told.UNKNOWN.value}


def _written(number: Any) -> Any:
    """JSON has no infinities."""
    return str(number) if isinstance(number, float) and not math.isfinite(number) else number


def _again(told: Mapping[str, Any], time: int) -> Any:
    what, axes = Told(told["is"]), int(told.get("axes", 0))
    if what is Told.VALUE:
        return told["value"]
    if what is Told.LENGTH:
        return time
    dtype: torch.dtype = getattr(torch, told.get("dtype", "int64"))
    dtype = torch.float64 if dtype.is_floating_point else dtype
    if what is Told.FIRST:
        return torch.tensor(0, dtype=dtype) if "dtype" in told else 0
    if what is Told.POSITIONS:
        return torch.arange(time, dtype=dtype).reshape((1,) * (axes - 1) + (time,))
    if what is Told.EQUAL:
        return torch.full((1, time), told["value"], dtype=dtype)
    seen, hidden = (float(each) if isinstance(each, str) else each for each in told["value"])
    earlier = torch.ones(time, time, dtype=torch.bool).tril()
    mask = torch.full((time, time), hidden, dtype=dtype).masked_fill_(earlier, seen)
    return mask.reshape((1,) * (axes - 2) + (time, time))


def counts(value: torch.Tensor) -> bool:
    """Whether a tensor is one of whole numbers, as ids and positions are."""
    return value.dtype in (torch.int64, torch.int32)


def counters(name: str, value: Any, count: int, depth: int = DEEPEST) -> Iterator[str]:
    """Where in an object that a call was given, and in what its attributes are, the number `count` stands, alone or in
    each place of a tensor: a cache knows how many positions it holds."""
    if isinstance(value, torch.Tensor):
        if counts(value) and value.dim() <= 1 and 0 < value.numel() <= 1024 and bool((value == count).all()):
            yield name
    elif isinstance(value, int):
        if not isinstance(value, bool) and value == count:
            yield name
    elif isinstance(value, list | tuple):
        if value and depth:
            yield from counters(f"{name}[0]", value[0], count, depth - 1)
    elif depth and not isinstance(value, type | torch.nn.Module) and hasattr(value, "__dict__"):
        for attribute, held in vars(value).items():
            yield from counters(f"{name}.{attribute}", held, count, depth - 1)
