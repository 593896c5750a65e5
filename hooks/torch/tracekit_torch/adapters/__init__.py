"""Adapters: where the sequences of a kind of model begin, what their positions are, which tokens they choose.

A module of this folder brings a kind of model as `KIND`, another package by the entry points `tracekit.adapters`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

from torch import nn

from tracekit.errors import TraceError
from tracekit.plugins import loaded
from tracekit.trace import Json, Sequence, Trace
from tracekit_torch.adapters.plain_prefill import plain_prefill
from tracekit_torch.recorder import Recorder

GROUP = "tracekit.adapters"
LAST = 0
"""The priority of the kind that takes any module. No program is waited for because of it."""


class Watching(Protocol):
    """One recording, as a kind of model sees it that watches more than the model's own calls."""

    @property
    def recorder(self) -> Recorder:
        """The recorder; it may have a model already."""

    @property
    def by_name(self) -> bool:
        """Whether `--module` says what is recorded."""

    def allows(self, model: nn.Module) -> bool:
        """Whether `--module` names `model`, or is not given."""

    def found(self, model: nn.Module, sampling: Json | None = None) -> None:
        """Record `model` from now on, if nothing is recorded yet."""

    def wait_for(self, method: str) -> None:
        """The program has a class whose `method` (`Class.method`) runs the model: record no other module that is
        called before."""

    def replace(self, owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put `make(original)` in the place of a method until the recording ends."""

    def until_end(self, undo: Callable[[], None]) -> None:
        """Call `undo` when the recording ends."""

    def after_import(self, module: str, action: Callable[[ModuleType], None]) -> None:
        """Call `action` with a module as soon as the program has imported it, at once where it has."""


class ModelKind(ABC):
    """A kind of model. What it does for one recording is done by the `Adapter` that it attaches.

    An exception from any of these methods is one line on stderr: the recording or the kind is given up, the recorded
    program goes on.
    """

    priority: int = 100
    """Of two kinds that know a model, the one with the higher priority records it. tracekit's own are below 100."""

    @abstractmethod
    def knows(self, module: nn.Module) -> bool:
        """Whether `module` is a model of this kind. Asked at each call of a module until one is recorded."""

    @abstractmethod
    def attach(self, recorder: Recorder, model: nn.Module, sampling: Json | None) -> None:
        """Make an adapter and give it to `recorder.attach`. `sampling`: the declared settings, where they are known.

        Raises TraceError where the model cannot be recorded.
        """

    def computing(self, model: nn.Module) -> nn.Module:
        """The module whose forward is called where `model` runs."""
        return model

    def prefill(self, model: nn.Module, trace: Trace, sequence: Sequence) -> Callable[[], Any]:
        """What runs `model` once, without a cache, over all positions of a recorded sequence of this kind, and returns
        its output, with `logits` [batch, time, vocabulary] where it has them.

        Raises TraceError where the sequence does not hold what the model was given.
        """
        return plain_prefill(model, trace, sequence)

    def watch(self, watching: Watching) -> None:
        """A recording begins: watch what is not a call of the model, such as its `generate`."""
        return

    def owner(self, module: nn.Module) -> nn.Module | None:
        """The model of this kind that `module`, called before the model itself, is a part of. May be slow."""
        return None

    def living(self) -> nn.Module | None:
        """A model of this kind that the program has made and not called yet: it is waited for. May be slow."""
        return None


def kinds(say: Callable[[str], None]) -> list[ModelKind]:
    """All kinds of models, in the order in which they are asked. What cannot be used is said and left out."""
    objects, errors = loaded(GROUP, __name__, "KIND")
    for error in errors:
        say(str(error))
    for item in objects:
        if not isinstance(item, ModelKind):
            say(f"{GROUP}: {item!r:.80} is not a ModelKind; the entry point must name an instance")
    usable = [item for item in objects if isinstance(item, ModelKind)]
    return sorted(usable, key=lambda kind: -kind.priority)


def failed(kind: ModelKind, error: Exception) -> TraceError:
    """What to say of a kind that raised an error of its own."""
    name = f"{type(kind).__module__}.{type(kind).__qualname__}"
    return TraceError(f"the adapter {name} failed: {type(error).__name__}: {error}")
