"""Taps: hooks on a model's modules that copy what the modules give, and see which tensor came from which site.

A module's input is **wired** to a site when it is the very tensor that the site recorded (`wiring`). Otherwise it is
recorded as a site of its own, `<name>:in`. An output that another site has recorded already (a block that returns its
last child's output) becomes an alias, `same_as`. So nothing is stored twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tracekit.trace import INPUT_SUFFIX, Json
from tracekit_torch.memory import WORDS, CallMemory, Slot
from tracekit_torch.options import Options
from tracekit_torch.wiring import SeenTensors

ROOT_SITE = "output"
"""Site of the outermost module's own output: it has no state-dict path."""
REPEAT_LIMIT = 64
"""A module that runs more often than this in one call (a recurrent cell) is recorded no further in that call."""


class Place:
    """One site: its row of the site table, and where its values go."""

    __slots__ = ("row", "slot", "stored")

    def __init__(self, name: str, module_class: str, order: int) -> None:
        self.row: Json = {"name": name, "class": module_class, "order": order}
        self.slot = Slot(name)
        self.stored = False


class Tap:
    """One module that is hooked. A module that runs n times in a call has n places: `x`, `x#2`, ..."""

    __slots__ = (
        "fired",
        "inputs",
        "is_head",
        "keeps_input",
        "keeps_output",
        "last_rows",
        "module",
        "name",
        "outputs",
        "source",
        "why_not",
    )

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.keeps_output = False
        self.keeps_input = False
        self.is_head = False
        self.why_not = "not asked for"
        self.fired = 0
        self.source: str | None = None
        self.last_rows = 0
        """Rows of its input in this call, where they are the last of the call's positions and not all of them."""
        self.outputs: list[Place] = []
        self.inputs: list[Place | None] = []


class Call:
    """One forward call of the model over [batch, time] positions."""

    __slots__ = ("batch", "flat", "head_output", "rows", "seen", "time")

    def __init__(self, batch: int, time: int, flat: bool) -> None:
        self.batch = batch
        self.time = time
        self.rows = batch * time
        self.flat = flat
        """The model was given [time, ...], without a batch dimension."""
        self.seen = SeenTensors()
        self.head_output: torch.Tensor | None = None

    def fits(self, value: torch.Tensor) -> bool:
        """Whether `value` has one row a position: [batch, time, ...] or [batch * time, ...]."""
        shape = value.shape
        if self.heads_first(value):
            return True
        if len(shape) >= 2 and shape[0] == self.batch and shape[1] == self.time:
            return True
        return bool(shape) and shape[0] == self.rows and (len(shape) == 2 or self.flat)

    def heads_first(self, value: torch.Tensor) -> bool:
        """Whether `value` is [batch, heads, time, width]. With as many heads as positions the strides tell: queries are
        made as [batch, time, heads, width] and exchanged after that."""
        shape = value.shape
        if len(shape) != 4 or shape[0] != self.batch or shape[2] != self.time:
            return False
        return shape[1] != self.time or (self.time > 1 and value.stride(1) < value.stride(2))

    def tail_of(self, value: torch.Tensor, rows: int) -> torch.Tensor | None:
        """`value` as [batch, rows, width], where it has as many rows, fewer than the call."""
        shape = value.shape
        if not 0 < rows < self.time or shape[0] != self.batch:
            return None
        if len(shape) == 3 and shape[1] == rows:
            return value
        return value.unsqueeze(1) if len(shape) == 2 and rows == 1 else None


class Taps:
    """All taps of a model.

    `write` is called when the memory of a call is full, and must write `memory.slots`. `fail` is told of an error in a
    hook: recording may break, the recorded program may not.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module | None,
        options: Options,
        write: Callable[[], None],
        fail: Callable[[Exception], None],
        left_out: Mapping[nn.Module, str] | None = None,
    ) -> None:
        self.call: Call | None = None
        self.memory = CallMemory(write)
        self.changed: dict[str, Json] = {}
        """Rows of the site table that the log does not have yet."""
        self._fail = fail
        self._options = options
        self._left_out = left_out or {}
        self._order = 0
        self._handles: list[RemovableHandle] = []
        self._taps = list(self._wanted(model, head))
        self._head = next((tap for tap in self._taps if tap.is_head), None)
        self._by_module = {tap.module: tap for tap in self._taps}
        for tap in self._taps:
            self._hook(tap)

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, batch: int, time: int, flat: bool = False) -> None:
        """A forward call begins."""
        self.memory.clear()
        for tap in self._taps:
            tap.fired = 0
        self.call = Call(batch, time, flat)

    def end(self) -> None:
        """The call is over; its values are forgotten."""
        self.call = None
        self.memory.clear()

    def declare(self, module: nn.Module) -> str | None:
        """The site of a module that runs outside of the calls, put at this place of the site table; None where its
        output is not asked for."""
        tap = self._by_module.get(module)
        if tap is None or not tap.keeps_output:
            return None
        if not tap.outputs:
            self._add_place(tap)
            tap.outputs[0].stored = True
        return tap.name

    def keep(self, module: nn.Module, value: torch.Tensor) -> None:
        """Take `value` [batch, time, width] as what a declared module gave to the call that began just now."""
        tap = self._by_module.get(module)
        if self.call is not None and tap is not None and tap.outputs:
            self._keep(self.call, tap.outputs[0], value)

    def mark_logits(self) -> None:
        """The head's output is kept as the steps' logits, not as a site."""
        if self._head is not None and self._head.outputs and not self._head.outputs[0].stored:
            self._change(self._head.outputs[0], recorded_as="logits")

    def logits_are(self, logits: torch.Tensor) -> None:
        """The model gave these logits. Where they are made from the head's output, its last row is a site."""
        tap, call = self._head, self.call
        value = None if call is None else call.head_output
        if value is not None and value.data_ptr() == logits.data_ptr():
            self.mark_logits()
            return
        if tap is None or not tap.outputs or not tap.keeps_output or value is None or value.dim() != 3:
            return
        if call is not None and value.shape[0] == call.batch and value.dtype in WORDS:
            self._keep_tail(tap.outputs[0], value[:, -1:])

    @property
    def head_site(self) -> str | None:
        """The site of the logits head, where its output is asked for and was given."""
        tap = self._head
        return tap.name if tap is not None and tap.keeps_output and tap.outputs else None

    # ---------------------------------------------------------------- which modules

    def _wanted(self, model: nn.Module, head: nn.Module | None) -> Iterator[Tap]:
        for path, module in model.named_modules():
            if next(module.parameters(), None) is None or (not path and head is not None):
                continue  # a causal model's own output is its head's
            tap = Tap(path or ROOT_SITE, module)
            tap.is_head = module is head
            tap.keeps_output = self._options.keeps_site(tap.name)
            tap.keeps_input = _owns_parameters(module) and self._options.keeps_site(tap.name + INPUT_SUFFIX)
            if module in self._left_out and (tap.keeps_output or tap.keeps_input):
                tap.keeps_output = tap.keeps_input = False
                tap.why_not = self._left_out[module]
                yield tap
            if tap.keeps_output or tap.keeps_input:
                yield tap

    def _hook(self, tap: Tap) -> None:
        if _owns_parameters(tap.module) and self._options.level == "all":
            self._handles.append(tap.module.register_forward_pre_hook(self._before(tap), with_kwargs=True))
        self._handles.append(tap.module.register_forward_hook(self._after(tap)))

    def _before(self, tap: Tap) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = self.call
            if call is None:
                return
            try:
                value = first_tensor(args) if args else first_tensor(kwargs)
                if value is not None and tap.fired < REPEAT_LIMIT:
                    tap.source = self._source(call, tap, value)
            except Exception as error:
                self._fail(error)

        return before

    def _after(self, tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
        def after(_: nn.Module, args: Any, output: Any) -> None:
            call = self.call
            if call is None:
                return
            try:
                value = output if type(output) is torch.Tensor else first_tensor(output)
                if value is not None and tap.fired < REPEAT_LIMIT:
                    self._see(call, tap, value)
                tap.fired += 1
            except Exception as error:
                self._fail(error)

        return after

    # ---------------------------------------------------------------- what they gave

    def _source(self, call: Call, tap: Tap, value: torch.Tensor) -> str | None:
        """The site that the input of `tap` is; the input is recorded where no site is."""
        while len(tap.inputs) <= tap.fired:
            tap.inputs.append(None)
        place = tap.inputs[tap.fired]
        source = call.seen.source(value)
        tap.last_rows = 0
        if source is None and not call.fits(value):
            source = call.seen.source_of_last_rows(value)
            if (source is not None or tap.is_head) and value.dim() in (2, 3):
                tap.last_rows = 1 if value.dim() == 2 else value.shape[1]
        # An input that got a site of its own once keeps it, so that no position is missing there.
        if (source is not None and (place is None or not place.stored)) or not tap.keeps_input:
            return source
        if not value.is_floating_point():
            return None  # an embedding's token ids: the prompt and the steps hold them
        if place is None:
            name = _repeated(tap.name, tap.fired) + INPUT_SUFFIX
            place = tap.inputs[tap.fired] = Place(name, "input", self._next_order())
        self._keep(call, place, value, tap.last_rows)
        return place.slot.name

    def _see(self, call: Call, tap: Tap, value: torch.Tensor) -> None:
        if len(tap.outputs) <= tap.fired:
            self._add_place(tap)
        place = tap.outputs[tap.fired]
        row = place.row
        if row.get("input") != tap.source:
            self._change(place, input=tap.source)
        if tap.is_head:
            call.head_output = value
            return
        if not tap.keeps_output:
            return
        source = call.seen.source(value)
        if source is not None and not place.stored:
            if row.get("same_as") != source:
                self._change(place, same_as=source)
            return
        if row.get("same_as") is not None:
            self._change(place, same_as=None)
        self._keep(call, place, value, tap.last_rows)

    def _keep(self, call: Call, place: Place, value: torch.Tensor, last_rows: int = 0) -> None:
        """Copy a value; of one that has only the last rows of the call, those."""
        tail = call.tail_of(value, last_rows) if last_rows else None
        if tail is not None and tail.dtype in WORDS:
            self._keep_tail(place, tail)
            return
        slot = place.slot
        if value.dim() == 4 and call.heads_first(value):
            value = value.transpose(1, 2)
        if slot.rows == (call.batch, call.time) and self.memory.keep_again(slot, value):
            call.seen.add(value, slot)
            return
        why = _unfit(call, value)
        if why is not None:
            if not place.stored and place.row.get("skipped") != why:
                self._change(place, skipped=why)
            return
        if not place.stored:
            place.stored = True
            self._change(place, skipped=None)
        self.memory.keep(slot, value, call.rows)
        slot.rows = (call.batch, call.time)
        call.seen.add(value, slot)

    def _keep_tail(self, place: Place, tail: torch.Tensor) -> None:
        if not place.stored:
            place.stored = True
            self._change(place, skipped=None)
        self.memory.tails[place.slot.name] = tail.detach().to("cpu", copy=True)

    def _add_place(self, tap: Tap) -> None:
        place = Place(_repeated(tap.name, tap.fired), type(tap.module).__name__, self._next_order())
        place.row |= _description(tap)
        tap.outputs.append(place)
        self._change(place, skipped=None if tap.keeps_output else tap.why_not)

    def _next_order(self) -> int:
        self._order += 1
        return self._order - 1

    def _change(self, place: Place, **fields: Any) -> None:
        place.row |= fields
        self.changed[place.slot.name] = {key: value for key, value in place.row.items() if value is not None}


def first_tensor(value: Any) -> torch.Tensor | None:
    """The first tensor in a tensor, a tuple, a list, a mapping or a model's output object."""
    if isinstance(value, torch.Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    for item in items:
        found = first_tensor(item)
        if found is not None:
            return found
    return None


def _unfit(call: Call, value: torch.Tensor) -> str | None:
    """Why `value` cannot be stored as rows of this call, or None."""
    if not call.fits(value):
        return f"its shape {list(value.shape)} is not [batch, time, ...] = [{call.batch}, {call.time}, ...] of the call"
    if value.dtype not in WORDS:
        return f"its dtype {value.dtype} is none that a trace can hold"
    if value.layout is not torch.strided or value.is_meta:
        return "it is no plain tensor in memory"
    return None


def _owns_parameters(module: nn.Module) -> bool:
    return any(parameter is not None for parameter in module._parameters.values())


def _description(tap: Tap) -> Json:
    """What the site table says of a module: which parameters play which role, and its plain numbers."""
    prefix = "" if tap.name == ROOT_SITE else f"{tap.name}."
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


def _repeated(name: str, index: int) -> str:
    return name if index == 0 else f"{name}#{index + 1}"
