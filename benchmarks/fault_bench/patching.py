"""Changing a live model or library for the length of a block, and putting it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Json = dict[str, Any]


@dataclass
class Run:
    """What an injection may change of a run besides the model."""

    ids: list[list[int]]
    """One prompt a row."""
    settings: Json
    seed: int
    tokens: int
    inside: list[Callable[[], Any]] = field(default_factory=list)
    """Context managers to be entered when the recorder is already watching: what a program does between two calls."""


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute (or, of a module, a method) inside the block."""
    own = vars(owner)
    had, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def forward(module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Replace a module's forward by `make(forward)`: hooks on the module still see what it is given and gives."""
    with attribute(module, "forward", make(module.forward)):
        yield


@contextmanager
def nothing() -> Iterator[None]:
    """No change."""
    yield
