"""Taps: hooks on a model's modules that copy what the modules give, and see which tensor came from which site.

A module's input is **wired** to a site when it is the very tensor that the site recorded (`wiring`). Otherwise it is
recorded as a site of its own, `<name>:in`. An output that another site has recorded already (a block that returns its
last child's output) becomes an alias, `same_as`. So nothing is stored twice.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from tracekit.trace import ENCODER, INPUT_SUFFIX, LOGITS, TENSORS_GIVEN, Json
from tracekit_torch.contained_tensors import first_tensor, numbers_of
from tracekit_torch.eager import plain_name, uncompiled
from tracekit_torch.memory import WORDS, CallMemory
from tracekit_torch.options import Options
from tracekit_torch.patching import Hook
from tracekit_torch.rows import Axis, arranged
from tracekit_torch.tapped import (
    Call,
    Place,
    Tap,
    description,
    holds_state,
    named_modules,
    owns_state,
    repeated,
    root_site,
    scripted_modules,
    tensors_given,
)

_NONE: dict[str, Any] = {}
"""torch calls a hook that was removed during the call once more, and without the keywords that it asked for."""
REPEAT_LIMIT = 64
"""A module that runs more often than this in one call (a recurrent cell) is recorded no further in that call."""


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
        encoder: nn.Module | None = None,
    ) -> None:
        self.encoded: tuple[torch.Tensor, str | None] | None = None
        """What the encoder gave to the generation that goes on, and its site."""
        self.call: Call | None = None
        self.memory = CallMemory(write)
        self.changed: dict[str, Json] = {}
        """Rows of the site table that the log does not have yet."""
        self.outside: Callable[[nn.Module], None] = lambda module: None
        """Told of a module that runs outside of all calls."""
        self._fail = fail
        self._write = write
        self._options = options
        self._order = 0
        self._handles: list[RemovableHandle] = []
        self._taps = list(self._wanted(model, head, left_out or {}, encoder))
        self._head = next((tap for tap in self._taps if tap.is_head), None)
        self._by_module = weakref.WeakKeyDictionary({tap.module: tap for tap in self._taps})
        for tap in self._taps:
            self._hook(tap)

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, batch: int, time: int, flat: bool = False, *, length: int = 0, encoder: Axis | None = None) -> None:
        """A forward call over [batch, time] begins, after which `length` positions are known. `encoder`: the rows of
        the encoder's input."""
        self._begin(Call(Axis(batch, time, max(length, time), flat), encoder))

    def begin_encoder(self, axis: Axis) -> None:
        """The encoder is called by itself."""
        self._begin(Call(axis, axis, inside_encoder=True))

    def _begin(self, call: Call) -> None:
        self.memory.clear()
        for tap in self._taps:
            tap.fired = 0
        self.call = call

    def new_sequences(self) -> None:
        """Sequences begin: sites whose values changed their form in earlier ones are stored again."""
        for tap in self._taps:
            for place in (*tap.outputs, *tap.inputs):
                if place is not None:
                    place.form, place.over = None, False

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
            self._keep(self.call, tap.outputs[0], value, self.call.axis)

    def site_of(self, value: torch.Tensor) -> str | None:
        """The site that holds this very tensor in the current call."""
        return None if self.call is None else self.call.seen.source(value)

    def mark_logits(self) -> None:
        """The head's output is kept as the steps' logits, not as a site."""
        if self._head is not None and self._head.outputs and not self._head.outputs[0].stored:
            self._change(self._head.outputs[0], recorded_as=LOGITS)

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

    def _wanted(
        self, model: nn.Module, head: nn.Module | None, left_out: Mapping[nn.Module, str], encoder: nn.Module | None
    ) -> Iterator[Tap]:
        scripted = scripted_modules(model)
        for path, module, in_encoder in named_modules(model, encoder):
            if not holds_state(module) or (not path and head is not None):
                continue  # a causal model's own output is its head's
            if uncompiled(module) is not module:
                continue  # the module inside it has its name
            tap = Tap(plain_name(path) or root_site(model), module)
            tap.is_root = not path
            tap.in_encoder = in_encoder
            tap.is_head = module is head
            tap.keeps_output = self._options.keeps_site(tap.name)
            tap.keeps_input = owns_state(module) and self._options.keeps_site(tap.name + INPUT_SUFFIX)
            if not tap.keeps_output and not tap.keeps_input:
                continue
            why = left_out.get(module) or ("it is TorchScript, which calls no hooks" if module in scripted else None)
            if why is not None:
                tap.keeps_output = tap.keeps_input = False
                tap.why_not = why
            yield tap
            if module in scripted:
                tap.keeps_output = tap.keeps_input = False
                self._add_place(tap)  # it will never say anything itself

    def _hook(self, tap: Tap) -> None:
        if isinstance(tap.module, torch.jit.ScriptModule):
            return  # it takes no hooks
        if not tap.is_container and self._options.level == "all":
            self._handles.append(tap.module.register_forward_pre_hook(Hook(self._before(tap)), with_kwargs=True))
        self._handles.append(tap.module.register_forward_hook(Hook(self._after(tap))))

    def _current(self, tap: Tap) -> Call | None:
        """The call that a run of the tap's module belongs to, if any."""
        call = self.call
        if call is None and tap.in_encoder is None:
            self.outside(tap.module)
            call = self.call
        if call is None or call.thread != threading.get_ident():
            return None
        return call if tap.in_encoder is None or tap.in_encoder == call.inside_encoder else None

    def _before(self, tap: Tap) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] = _NONE) -> None:
            call = self._current(tap)
            if call is None:
                return
            try:
                given = args or kwargs
                value = args[0] if args and type(args[0]) is torch.Tensor else numbers_of(first_tensor(given))
                if tap.turns:
                    value = _rows_first(call, value)
                if value is not None and tap.fired < REPEAT_LIMIT:
                    tap.given = tensors_given(tap.module, args, kwargs)
                    tap.axis = call.axis if call.encoder is None else self._axis(call, value)
                    tap.source = self._source(call, tap, value)
            except Exception as error:
                self._fail(error)

        return before

    def _after(self, tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
        def after(_: nn.Module, args: Any, output: Any) -> None:
            call = self._current(tap)
            if call is None:
                return
            try:
                value = output if type(output) is torch.Tensor else numbers_of(first_tensor(output))
                if tap.turns:
                    value = _rows_first(call, value)
                if value is not None and tap.fired < REPEAT_LIMIT:
                    self._see(call, tap, value)
                elif tap.fired == REPEAT_LIMIT and tap.outputs:
                    ran = f"it ran more than {REPEAT_LIMIT} times in one call; later runs are not stored"
                    self._change(tap.outputs[0], partial=ran)
                tap.fired += 1
            except Exception as error:
                self._fail(error)

        return after

    # ---------------------------------------------------------------- what they gave

    def _axis(self, call: Call, value: torch.Tensor) -> Axis:
        """What the rows of `value` are."""
        if call.encoder is None:
            return call.axis
        if call.inside_encoder:
            return call.encoder
        slot = call.seen.slot(value)
        if (slot is not None and slot.axis == ENCODER) or self._is_encoded(value):
            return call.encoder
        fits = arranged(call.axis, value, None) is not None or arranged(call.encoder, value, None) is None
        return call.axis if fits else call.encoder

    def _is_encoded(self, value: torch.Tensor) -> bool:
        encoded = self.encoded
        return encoded is not None and (
            encoded[0] is value or (encoded[0].data_ptr() == value.data_ptr() and encoded[0].shape == value.shape)
        )

    def _source(self, call: Call, tap: Tap, value: torch.Tensor) -> str | None:
        """The site that the input of `tap` is; the input is recorded where no site is."""
        while len(tap.inputs) <= tap.fired:
            tap.inputs.append(None)
        place = tap.inputs[tap.fired]
        axis = tap.axis or call.axis
        source = call.seen.source(value)
        tap.last_rows = 0
        if call.ids is not None and isinstance(tap.module, nn.Embedding):
            self._narrow(call, call.ids, value)
        if source is not None and (place is None or not place.stored):
            return source
        if source is None and place is not None and self._keep_as_before(call, place, value, axis):
            return place.slot.name
        if source is None and self.encoded is not None and self._is_encoded(value):
            source = self.encoded[1]
        if source is None and arranged(axis, value, None) is None:
            source = call.seen.source_of_last_rows(value)
            if (source is not None or tap.is_head) and value.dim() in (2, 3):
                tap.last_rows = 1 if value.dim() == 2 else value.shape[1]
        # An input that got a site of its own once keeps it, so that no position is missing there.
        if (source is not None and (place is None or not place.stored)) or not tap.keeps_input:
            return source
        if not value.is_floating_point() or isinstance(tap.module, nn.Embedding):
            return None  # an embedding's token ids (the prompt and the steps hold them), or OPT's attention mask
        if place is None:
            name = repeated(tap.name, tap.fired) + INPUT_SUFFIX
            place = tap.inputs[tap.fired] = Place(name, "input", self._next_order())
        self._keep(call, place, value, axis, tap.last_rows)
        return place.slot.name

    def _narrow(self, call: Call, ids: torch.Tensor, value: torch.Tensor) -> None:
        """A model that is given all ids and looks up the last ones alone, since it keeps a cache: they are the call's
        positions."""
        rows = value.shape[-1] if value.dim() == 2 else 0
        if 0 < rows < call.time and not self.memory.slots and torch.equal(value, ids[:, -rows:]):
            call.axis.time = rows

    def _see(self, call: Call, tap: Tap, value: torch.Tensor) -> None:
        if len(tap.outputs) <= tap.fired:
            self._add_place(tap)
        place = tap.outputs[tap.fired]
        row = place.row
        if row.get("input") != tap.source:
            self._change(place, input=tap.source)
        if tap.given > 1 and TENSORS_GIVEN not in (row.get("attributes") or {}):
            self._change(place, attributes={**(row.get("attributes") or {}), TENSORS_GIVEN: tap.given})
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
        axis = self._axis(call, value) if tap.is_container or tap.axis is None else tap.axis
        if axis is not call.axis and arranged(axis, value, None) is None:
            axis = call.axis
        self._keep(call, place, value, axis, tap.last_rows)

    def _keep(self, call: Call, place: Place, value: torch.Tensor, axis: Axis, last_rows: int = 0) -> None:
        """Copy a value; of one that has only the last rows of the call, those."""
        if place.over:
            return
        if call.new and self._has_new_rows(call, place, value):
            self._compute_new(call)
        tail = call.tail_of(value, last_rows) if last_rows else None
        if tail is not None and tail.dtype in WORDS:
            self._keep_tail(place, tail)
            return
        slot = place.slot
        if self._keep_as_before(call, place, value, axis):
            return
        why = _unfit(axis, value)
        rows = None if why is not None else arranged(axis, value, None if place.form is None else place.form[1])
        if rows is None:
            self._skip(place, why or _shapeless(axis, value))
            return
        form = (value.dtype, rows.numel() // axis.rows if axis.rows else 0)
        if place.form is None:
            place.form = form
            place.columns_are_positions = value.shape[-1] == axis.length
        elif axis.rows and (place.form != form or place.axis != axis.name):
            if place.columns_are_positions and place.form[0] is form[0]:
                place.over = True
                self._skip(place, COLUMNS_ARE_POSITIONS)
            else:
                self._end_site(place, _changed(place.form, form, axis))
            return
        if not place.stored:
            place.stored = True
            place.axis = slot.axis = axis.name
            self._change(place, skipped=None, axis=axis.name)
        place.as_it_is = rows is value
        self.memory.keep(slot, rows, axis.rows)
        slot.rows = axis.size
        call.seen.add(value, slot)

    @staticmethod
    def _has_new_rows(call: Call, place: Place, value: torch.Tensor) -> bool:
        """Whether a site that had a row for each position of earlier calls has one for each new position now."""
        if place.form is None or not 0 < call.new < call.time:
            return False
        rows = arranged(Axis(call.batch, call.new, call.new), value, place.form[1])
        return rows is not None and place.form == (value.dtype, rows.numel() // (call.batch * call.new))

    def _compute_new(self, call: Call) -> None:
        """A model that looks all ids up again, and goes on with the new positions since it keeps a cache: they are the
        call's positions. What was kept of all of them is written."""
        call.narrows = True
        self._write()
        call.axis.time = call.new

    def _keep_as_before(self, call: Call, place: Place, value: torch.Tensor, axis: Axis) -> bool:
        """Copy a value of the shape and to the place of the last one, the usual case while decoding; else False."""
        slot = place.slot
        as_before = place.as_it_is and not place.over and slot.rows == axis.size and axis.name == place.axis
        if not as_before or not self.memory.keep_again(slot, value):
            return False
        call.seen.add(value, slot)
        return True

    def _keep_tail(self, place: Place, tail: torch.Tensor) -> None:
        if not place.stored:
            place.stored = True
            self._change(place, skipped=None)
        self.memory.tails[place.slot.name] = tail.detach().to("cpu", copy=True)

    def _skip(self, place: Place, why: str) -> None:
        """A value is not stored: said as why there is none, or as why not all calls have one."""
        if not place.stored:
            if place.row.get("skipped") != why:
                self._change(place, skipped=why)
        elif place.row.get("partial") is None:
            self._change(place, partial=why)

    def _end_site(self, place: Place, why: str) -> None:
        """Nothing more is stored of a site in the sequences that go on."""
        place.over = True
        if place.row.get("ended") is None:
            self._change(place, ended=why)

    def _add_place(self, tap: Tap) -> None:
        place = Place(repeated(tap.name, tap.fired), type(tap.module).__name__, self._next_order())
        place.row |= description(tap)
        tap.outputs.append(place)
        self._change(place, skipped=None if tap.keeps_output else tap.why_not)

    def _next_order(self) -> int:
        self._order += 1
        return self._order - 1

    def _change(self, place: Place, **fields: Any) -> None:
        place.row |= fields
        self.changed[place.slot.name] = {key: value for key, value in place.row.items() if value is not None}


def _rows_first(call: Call, value: torch.Tensor | None) -> torch.Tensor | None:
    """A convolution's [batch, channels, time] as [batch, time, channels]; None while the encoder's rows are not known,
    which a convolution leads to and does not have. Where the rows are those of a batch, there is no time to turn to the
    front, and what leads to the convolution is stored as it is, too."""
    if value is None or value.dim() != 3 or call.axis.flat:
        return value
    axis = call.encoder if call.inside_encoder and call.encoder is not None else call.axis
    return None if axis.time is None else value.transpose(1, 2)


COLUMNS_ARE_POSITIONS = "its columns are the positions so far, and another call has more or fewer"
_WITHOUT_MEMORY = (torch._subclasses.fake_tensor.FakeTensor,)


def _unfit(axis: Axis, value: torch.Tensor) -> str | None:
    """Why `value` cannot be stored at all, or None."""
    if (
        isinstance(value, _WITHOUT_MEMORY)
        or torch._C._functorch.is_functorch_wrapped_tensor(value)
        or is_traceable_wrapper_subclass(value)
    ):
        return "it is no plain tensor in memory"
    if value.dtype not in WORDS:
        return f"its dtype {value.dtype} is none that a trace can hold"
    if value.layout is not torch.strided or value.is_meta:
        return "it is no plain tensor in memory"
    return "its rows hold no numbers" if axis.rows and not value.numel() else None


def _shapeless(axis: Axis, value: torch.Tensor) -> str:
    rows = f"[{axis.batch}, {axis.time}, ...]"
    if axis.turned and value.dim() == 3:
        return (
            f"its shape {list(value.shape)} is [batch, time, ...] or [time, batch, ...]: a call of {rows} does not tell"
        )
    return f"its shape {list(value.shape)} is not [batch, time, ...] = {rows} of the call"


def _changed(before: tuple[torch.dtype, int], now: tuple[torch.dtype, int], axis: Axis) -> str:
    said = [f"{WORDS[dtype]} [{width}]" for dtype, width in (before, now)]
    return f"{said[0]} becomes {said[1]} after {axis.length - (axis.time or 0)} positions"
