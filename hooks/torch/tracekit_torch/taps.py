"""Taps: hooks on a model's modules that copy what they give, and see which tensor came from which site.

A module's input is **wired** to a site when it is the very tensor that site recorded: same memory, shape and strides,
not written to since. Otherwise the input is recorded as a site of its own, `<name>:in`. An output that another site has
recorded already (a block that returns its last child's output) becomes an alias, `same_as`. So nothing is stored twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tracekit.trace import INPUT_SUFFIX, Json
from tracekit_torch.memory import WORDS, CallMemory, Slot
from tracekit_torch.options import Options

ROOT_SITE = "output"
"""Name of the outermost module's own output, which has no state-dict path."""
REPEAT_LIMIT = 64
"""A module that runs more often than this within one call (a recurrent cell) is recorded no further in it."""


class Tap:
    """One module's site: its row of the site table and what is known of it so far."""

    __slots__ = ("class_name", "fired", "input_slots", "is_head", "keeps_input", "keeps_output", "module", "name", "slots")

    def __init__(self, name: str, module: nn.Module, keeps_output: bool, keeps_input: bool) -> None:
        self.name = name
        self.module = module
        self.class_name = type(module).__name__
        self.keeps_output = keeps_output
        self.keeps_input = keeps_input
        self.is_head = False
        self.fired = 0
        self.slots: list[Slot] = []
        self.input_slots: list[Slot] = []


class Call:
    """One forward call of the model: its shape, and the tensors seen in it, kept alive so that no memory is reused."""

    __slots__ = ("batch", "flat", "head_output", "known", "time")

    def __init__(self, batch: int, time: int, flat: bool) -> None:
        self.batch = batch
        self.time = time
        self.flat = flat
        """The model was given [rows, ...] without a batch dimension."""
        self.known: dict[int, tuple[torch.Tensor, int, str]] = {}
        self.head_output: torch.Tensor | None = None

    def site_of(self, tensor: torch.Tensor) -> str | None:
        """The site that recorded this very tensor."""
        seen = self.known.get(tensor.data_ptr())
        if seen is None or seen[1] != version(tensor):
            return None
        source = seen[0]
        if source is tensor or (
            source.shape == tensor.shape and source.dtype == tensor.dtype and source.stride() == tensor.stride()
        ):
            return seen[2]
        return None

    def site_of_last_rows(self, tensor: torch.Tensor) -> str | None:
        """The site whose last rows `tensor` is a view of: what a logits head is given in a prefill."""
        if tensor.dim() != 3 or tensor.shape[0] != self.batch or tensor._base is None:
            return None
        end = tensor.data_ptr() + _extent(tensor)
        for source, then, name in self.known.values():
            if (
                source.dim() == 3
                and source.shape[::2] == tensor.shape[::2]
                and source.stride() == tensor.stride()
                and source.data_ptr() + _extent(source) == end
                and version(source) == then
            ):
                return name
        return None


class Taps:
    """All taps of a model. `write` is called with nothing when a call's memory is full and at its end."""

    def __init__(self, model: nn.Module, head: nn.Module | None, options: Options, write: Callable[[], None]) -> None:
        self.call: Call | None = None
        self.memory = CallMemory(write)
        self.new_rows: dict[str, Json] = {}
        """Rows of the site table that the log does not have yet."""
        self.failed: Callable[[Exception], None] = _raise
        self._rows: dict[str, Json] = {}
        self._handles: list[RemovableHandle] = []
        self._options = options
        self._taps = [tap for tap in self._make(model, head)]
        self.head = next((tap for tap in self._taps if tap.is_head), None)
        for tap in self._taps:
            self._hook(tap)

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, batch: int, time: int, flat: bool) -> Call:
        """A forward call over [batch, time] positions begins."""
        self.memory.clear()
        for tap in self._taps:
            tap.fired = 0
        self.call = Call(batch, time, flat)
        return self.call

    def end(self) -> None:
        """The call is over and written."""
        self.call = None
        self.memory.clear()

    def head_is_logits(self) -> None:
        """The head's output is kept as the steps' logits."""
        if self.head is not None and self._row(self.head.name).get("recorded_as") != "logits":
            self._update(self.head.name, {"recorded_as": "logits", "skipped": None})

    def keep_head(self) -> None:
        """Record the head's output of this call as a site like any other."""
        call = self.call
        if call is not None and self.head is not None and call.head_output is not None:
            self._keep(call, self.head.name, self.head.slots, 0, call.head_output)

    def _make(self, model: nn.Module, head: nn.Module | None) -> Iterator[Tap]:
        for path, module in model.named_modules():
            if next(module.parameters(), None) is None:
                continue
            name = path or ROOT_SITE
            if not path and head is not None:
                continue  # a causal model's own output is the logits
            owns = bool(module._parameters) and any(p is not None for p in module._parameters.values())
            keeps_input = owns and self._options.keeps_site(name + INPUT_SUFFIX)
            tap = Tap(name, module, self._options.keeps_site(name), keeps_input)
            tap.is_head = module is head
            if tap.keeps_output or keeps_input:
                yield tap

    def _hook(self, tap: Tap) -> None:
        if tap.keeps_input or tap.keeps_output:
            if self._wants_input(tap):
                self._handles.append(tap.module.register_forward_pre_hook(self._before(tap), with_kwargs=True))
            self._handles.append(tap.module.register_forward_hook(self._after(tap)))

    def _wants_input(self, tap: Tap) -> bool:
        return self._options.level == "all" and any(p is not None for p in tap.module._parameters.values())

    def _before(self, tap: Tap) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = self.call
            if call is None:
                return
            try:
                value = first_tensor(args) if args else first_tensor(tuple(kwargs.values()))
                if value is not None and tap.fired < REPEAT_LIMIT:
                    self._see_input(call, tap, value)
            except Exception as error:
                self.failed(error)

        return before

    def _after(self, tap: Tap) -> Callable[..., None]:
        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call = self.call
            if call is None:
                return
            try:
                value = output if type(output) is torch.Tensor else first_tensor(output)
                if value is not None and tap.fired < REPEAT_LIMIT:
                    self._see_output(call, tap, value)
                tap.fired += 1
            except Exception as error:
                self.failed(error)

        return after

    def _see_input(self, call: Call, tap: Tap, value: torch.Tensor) -> None:
        name = _repeated(tap.name, tap.fired)
        source = call.site_of(value)
        row = self._rows.get(name)
        if row is not None and source is not None and row.get("input") == source:
            return
        if source is None and not call_shaped(call, value):
            source = call.site_of_last_rows(value)
        own = name + INPUT_SUFFIX
        if source is None and tap.keeps_input:
            # Parked until the module's own row is made, which ranks behind its input.
            self._keep(call, own, tap.input_slots, tap.fired, value, input_of=tap)
            source = own
        if source is not None and self._row(name).get("input") != source and own not in self._rows:
            self._update(name, {"input": source})
        elif source == own:
            self._update(name, {"input": own})

    def _see_output(self, call: Call, tap: Tap, value: torch.Tensor) -> None:
        name = _repeated(tap.name, tap.fired)
        row = self._row(name)
        if "order" not in row:
            self._update(name, {"order": self._next_order(), **_describe(tap, self._parameters(tap))})
            row = self._rows[name]
        if not tap.keeps_output:
            return
        if tap.is_head:
            call.head_output = value
            return
        source = call.site_of(value)
        if source is not None and row.get("same_as", source if "seen" not in row else None) == source:
            if "seen" not in row:
                self._update(name, {"same_as": source, "seen": True})
            return
        if "same_as" in row:
            self._update(name, {"same_as": None})
        self._keep(call, name, tap.slots, tap.fired, value)
        row = self._rows[name]
        row["seen"] = True

    def _keep(
        self, call: Call, name: str, slots: list[Slot], index: int, value: torch.Tensor, input_of: Tap | None = None
    ) -> None:
        row = self._row(name)
        if "order" not in row:
            extra: Json = {"class": "input"} if input_of else {}
            self._update(name, {"order": self._next_order(), **extra})
        why = unfit(call, value)
        if why is not None:
            if row.get("skipped") is None and not row.get("stored"):
                self._update(name, {"skipped": why})
            return
        if row.get("skipped") is not None:
            self._update(name, {"skipped": None})
        self._rows[name]["stored"] = True
        while len(slots) <= index:
            slots.append(Slot(_repeated(name, len(slots)) if not name.endswith(INPUT_SUFFIX) else name))
        slot = slots[index]
        slot.name = name
        self.memory.keep(slot, value, call.batch * call.time)
        if value.numel():
            call.known[value.data_ptr()] = (value, version(value), name)

    def _row(self, name: str) -> Json:
        return self._rows.get(name, {})
