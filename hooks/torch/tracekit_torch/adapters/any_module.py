"""Any module: each outermost call is a sequence for every row of the batch, without steps; calls with token ids go on
with one another (`own_loop`)."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from tracekit.trace import Json
from tracekit_torch.adapter import Row
from tracekit_torch.adapters import LAST, ModelKind
from tracekit_torch.adapters.own_loop import INPUT_BYTES, OwnLoop
from tracekit_torch.contained_tensors import first_tensor
from tracekit_torch.draws import Drawn
from tracekit_torch.recorder import Recorder, generator_state


class AnyModule:
    """Records calls of a module that no other adapter knows."""

    def __init__(self, recorder: Recorder, model: nn.Module) -> None:
        self._recorder = recorder
        self._rows: list[Row] = []
        self._loop = OwnLoop(recorder, model)
        self._in_loop = False
        """Whether the current call feeds token ids."""
        self._thread = 0

    def begin(self, arguments: Json) -> None:
        """A call: [batch, time, ...] inputs are a sequence for each row, [n, width] inputs one sequence of n rows."""
        taps = self._recorder.taps
        self._in_loop = self._loop.takes(arguments)
        self._thread = threading.get_ident()
        if self._in_loop:
            self._end_rows("error", "the call before it did not return")
            self._loop.begin_call(arguments)
            return
        self._loop.finish(None, None)
        value = first_tensor(arguments)
        if taps is None or value is None or value.dim() == 0:
            return
        flat = value.dim() == 1 or (value.dim() == 2 and value.is_floating_point())
        batch, time = (1, value.shape[0]) if flat else (value.shape[0], value.shape[1])
        self._end_rows("error", "the call before it did not return")
        state = generator_state()
        self._rows = [self._recorder.new_row(0, time) for _ in range(batch)]
        for index, row in enumerate(self._rows):
            inputs = _inputs(arguments, batch, index, flat)
            self._recorder.begin_sequence(row, None, inputs, state, row=index)
        taps.begin(batch, time, flat)

    def end(self, output: Any) -> None:
        """The call is over: write it, and end its sequences."""
        if self._in_loop:
            self._loop.end_call(output)
            return
        taps = self._recorder.taps
        if taps is None or taps.call is None:
            return
        self.write()
        taps.end()
        self._end_rows("done", None)

    def write(self) -> None:
        """Write what the taps hold."""
        if self._in_loop:
            self._loop.write()
            return
        taps = self._recorder.taps
        if taps is None or taps.call is None:
            return
        self._recorder.write_sites()
        for index, row in enumerate(self._rows):
            self._recorder.write_call(row, 0, 0, index)
        taps.memory.clear()

    def listening(self) -> bool:
        """Whether a token may be chosen now: not by another thread, and not without ids."""
        return self._loop.waits_for_token and self._thread == threading.get_ident()

    def drew(self, drawn: Drawn) -> torch.Tensor | None:
        """A torch operator drew."""
        return self._loop.drew(drawn)

    def chose(self, scores: torch.Tensor, result: torch.Tensor) -> torch.Tensor | None:
        """An argmax was taken."""
        return self._loop.chose(scores, result)

    def finish(self, reason: str | None, detail: str | None) -> None:
        """End what goes on, and what a failed call left open."""
        self._loop.finish_all(reason, detail)
        self._end_rows(reason or "error", detail)

    def _end_rows(self, reason: str, detail: str | None) -> None:
        for row in self._rows:
            self._recorder.end_row(row, reason, detail)
        self._rows = []


def _inputs(arguments: Json, batch: int, index: int, flat: bool) -> dict[str, torch.Tensor]:
    """One row of every tensor argument that has one for each row of the batch."""
    found = {}
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor) or value.numel() * value.element_size() > INPUT_BYTES:
            continue
        key = "token_ids" if name == "input_ids" else name
        if flat:
            found[key] = value
        elif value.dim() and value.shape[0] == batch:
            found[key] = value[index]
    return found


class AnyModules(ModelKind):
    """What no other kind knows."""

    priority = LAST

    def knows(self, module: nn.Module) -> bool:
        return True

    def attach(self, recorder: Recorder, model: nn.Module, sampling: Json | None) -> None:
        recorder.attach(model, AnyModule(recorder, model), None, sampling)


KIND = AnyModules()
