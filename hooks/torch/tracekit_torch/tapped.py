"""What is tapped: the modules of a model, their sites, and one call of the model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tracekit.trace import NOT_ASKED_FOR, Json
from tracekit_torch.memory import Slot
from tracekit_torch.rows import Axis
from tracekit_torch.wiring import SeenTensors

ROOT_SITE = "output"
"""Site of the outermost module's own output, which has no state-dict path; `model_output` where a part of the model is
called so."""


class Place:
    """One site: its row of the site table, and where its values go."""

    __slots__ = ("as_it_is", "axis", "columns_are_positions", "form", "over", "row", "slot", "stored")

    def __init__(self, name: str, module_class: str, order: int) -> None:
        self.row: Json = {"name": name, "class": module_class, "order": order}
        self.slot = Slot(name)
        self.stored = False
        self.form: tuple[torch.dtype, int] | None = None
        """dtype and width of its values in the sequences that go on."""
        self.columns_are_positions = False
        """The first value of that form has as many columns as there were positions: what is chosen of them, a bias for
        each."""
        self.axis: str | None = None
        self.over = False
        """Its values changed their form: nothing more is stored of it in these sequences."""
        self.as_it_is = True
        """Its last value was [batch, time, ...] already."""


class Tap:
    """One module that is hooked. A module that runs n times in a call has n places: `x`, `x#2`, ..."""

    __slots__ = (
        "_module",
        "axis",
        "fired",
        "given",
        "in_encoder",
        "inputs",
        "is_container",
        "is_head",
        "is_root",
        "keeps_input",
        "keeps_output",
        "last_rows",
        "name",
        "outputs",
        "source",
        "turns",
        "why_not",
    )

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self._module = weakref.ref(module)
        self.keeps_output = False
        self.keeps_input = False
        self.is_head = False
        self.is_root = False
        self.is_container = not owns_state(module)
        self.turns = isinstance(module, nn.Conv1d)
        """Its values have their rows last."""
        self.axis: Axis | None = None
        """The rows of its input in this call."""
        self.in_encoder: bool | None = None
        """Of a module that encoder and decoder share: whether this tap is for its runs in the encoder."""
        self.why_not = NOT_ASKED_FOR
        self.fired = 0
        self.given = 1
        """Tensors of the shape of its input that it is called with."""
        self.source: str | None = None
        self.last_rows = 0
        """Rows of its input in this call, where they are the last of the call's positions and not all of them."""
        self.outputs: list[Place] = []
        self.inputs: list[Place | None] = []

    @property
    def module(self) -> nn.Module:
        """The module, which the program may delete: asked for only where it is hooked or runs."""
        module = self._module()
        if module is None:
            raise ReferenceError(f"{self.name} was deleted")
        return module


class Call:
    """One forward call of the model. `axis`: its positions; `encoder`: rows of the encoder's input, if it has one."""

    __slots__ = ("axis", "encoder", "head_output", "ids", "inside_encoder", "narrows", "new", "seen", "thread")

    def __init__(self, axis: Axis, encoder: Axis | None = None, *, inside_encoder: bool = False) -> None:
        self.axis = axis
        self.encoder = encoder
        self.inside_encoder = inside_encoder
        self.seen = SeenTensors()
        self.head_output: torch.Tensor | None = None
        self.ids: torch.Tensor | None = None
        """Token ids [batch, time] of a model that may look up the last of them alone."""
        self.new = 0
        """Of a call that is given all ids again: how many are new. 0 where it may not compute these alone."""
        self.narrows = False
        """From some module on it computes the new ones alone."""
        self.thread = threading.get_ident()

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return self.axis.batch

    @property
    def time(self) -> int:
        """Positions of this call."""
        return self.axis.time or 0

    def tail_of(self, value: torch.Tensor, rows: int) -> torch.Tensor | None:
        """`value` as [batch, rows, width], where it has as many rows, fewer than the call."""
        shape = value.shape
        if not 0 < rows < self.time or shape[0] != self.batch:
            return None
        if len(shape) == 3 and shape[1] == rows:
            return value
        return value.unsqueeze(1) if len(shape) == 2 and rows == 1 else None


def named_modules(model: nn.Module, encoder: nn.Module | None) -> Iterator[tuple[str, nn.Module, bool | None]]:
    """Path and module; one that encoder and decoder share has a path in each."""
    if encoder is None:
        yield from ((path, module, None) for path, module in model.named_modules())
        return
    prefix = next((path for path, module in model.named_modules() if module is encoder), "")
    paths: dict[nn.Module, dict[bool, str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, {}).setdefault(f"{path}.".startswith(f"{prefix}."), path)
    for module, found in paths.items():
        for inside, path in found.items():
            yield path, module, inside if len(found) > 1 else None


def root_site(model: nn.Module) -> str:
    """The site of the outermost module's own output."""
    name = ROOT_SITE
    while name in model._modules:
        name = f"model_{name}"
    return name


def owns_state(module: nn.Module) -> bool:
    """Whether a module has parameters, or what stands for them (packed, or in buffers of a checkpoint), of its own."""
    if any(parameter is not None for parameter in module._parameters.values()):
        return True
    passing: set[str] = getattr(module, "_non_persistent_buffers_set", set())
    saved = any(value is not None for name, value in module._buffers.items() if name not in passing)
    return saved or hasattr(module, "_packed_params")


def tensors_given(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Tensors of numbers, of one shape with the first, that a module with state of its own is called with: a norm that
    multiplies by a gate takes two. The further ones of torch's own modules are states, keys and values."""
    if not owns_state(module) or type(module).__module__.startswith("torch."):
        return 1
    tensors = [value for value in (*args, *kwargs.values()) if type(value) is torch.Tensor]
    return max(sum(one.shape == tensors[0].shape and one.is_floating_point() for one in tensors), 1) if tensors else 1


def holds_state(module: nn.Module) -> bool:
    """Whether a module or one inside it owns state."""
    return any(owns_state(item) for item in module.modules())


def scripted_modules(model: nn.Module) -> set[nn.Module]:
    """TorchScript modules and what is in them, where no hook is called."""
    found: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule) and module not in found:
            found |= set(module.modules())
    return found


def description(tap: Tap) -> Json:
    """What the site table says of a module: which parameters play which role, and its plain numbers."""
    prefix = "" if tap.is_root else f"{tap.name}."
    own = {role: f"{prefix}{role}" for role, value in tap.module._parameters.items() if value is not None}
    numbers = {
        name: value
        for name, value in vars(tap.module).items()
        if type(value) in (int, float, bool) and not name.startswith("_") and name != "training"
    }
    if "variance_epsilon" in numbers:
        numbers["eps"] = numbers["variance_epsilon"]
    if not type(tap.module).__module__.startswith("torch."):
        numbers["defined_in"] = type(tap.module).__module__
    return {key: value for key, value in (("parameters", own), ("attributes", numbers)) if value}


def repeated(name: str, index: int) -> str:
    """The site of a run of a module, the first being run 0, that runs several times in a call."""
    return name if index == 0 else f"{name}#{index + 1}"
