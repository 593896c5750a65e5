"""Tensors in what a module is given, and in what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a tensor, a tuple, a list, a mapping or a model's output object, in their order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def first_tensor(value: Any) -> torch.Tensor | None:
    """The first of them."""
    return next(tensors_in(value), None)


def numbers_of(value: torch.Tensor | None) -> torch.Tensor | None:
    """The numbers that a tensor stands for which is made of others (a quantised activation: codes and scales); any
    other as it is."""
    if value is None or not is_traceable_wrapper_subclass(value):
        return value
    try:
        numbers = value.dequantize()
    except Exception:  # whatever a foreign class raises
        return value
    return numbers if type(numbers) is torch.Tensor else value
