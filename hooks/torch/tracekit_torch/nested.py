"""Tensors in what a module is given, and in what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


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
