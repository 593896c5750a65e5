"""The reference is the recipe: its own forward pass in float64 over the candidate's tokens, site by site.

At every site that the candidate recorded, what the reference computes there is compared with what was recorded, and
then the recorded value is put in its place. So nothing is inherited: each comparison shows what was added since the
last recorded sites, whatever the model does in between, without a line for its family.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tracekit.dtypes import to_float
from tracekit.trace import INPUT_SUFFIX, Sequence
from tracekit_torch.eager import plain_name
from tracekit_torch.rows import Axis, arranged
from tracekit_torch.taps import first_tensor, repeated

Floats = NDArray[np.float64]
LOGITS = "logits"


@dataclass
class Replayed:
    """One site of one sequence: what was recorded, and what the reference computes from what was recorded before it,
    [rows, width] each. `rows`: positions, or steps of the logits."""

    site: str
    rows: NDArray[np.int64]
    recorded: Floats
    values: Floats
    draws: list[NDArray[np.float32]] = field(default_factory=list)
    """Errors of runs with drawn roundings, [rows, width] each."""


class Replay:
    """A model in float64 that runs a recorded sequence, with the recorded values put in.

    Args:
        model: the reference, in float64 (`precision.run_in`), attention and experts in eager form.
        sequence: what was recorded.
        forward: calls the model on the sequence's tokens, as one prefill without a cache.
    """

    def __init__(self, model: nn.Module, sequence: Sequence, forward: Callable[[], Any]) -> None:
        self.sites: dict[str, Replayed] = {}
        """By name; `logits` among them."""
        self.missed: dict[str, str] = {}
        """Sites that are recorded and were not met with the same shape, and why."""
        self._model, self._sequence, self._forward = model, sequence, forward
        self._meet: Callable[[str, NDArray[np.int64], Floats, torch.Tensor], None] = self._first
        self._fired: dict[str, int] = {}
        self._wanted: Collection[str] | None = None

    def run(self) -> None:
        """Run the model exactly: fills `sites` and `missed`."""
        self._meet, self._wanted = self._first, None
        self._pass()
        for name in self._sequence.sites:
            if name not in self.sites:
                self.missed.setdefault(name, "the reference has no module of that name that runs")

    def draw(self, rounding: AbstractContextManager[Any], only: Collection[str] | None = None) -> None:
        """Run it once more under `rounding`, and keep the errors of all sites, or of `only` these."""
        self._meet, self._wanted = self._drawn, only
        with rounding:
            self._pass()

    def _pass(self) -> None:
        self._fired = {}
        with torch.no_grad(), self._hooks():
            self._logits(self._forward())

    def _first(self, name: str, rows: NDArray[np.int64], recorded: Floats, values: torch.Tensor) -> None:
        computed = values.to(torch.float64, copy=True).numpy()
        known = self.sites.get(name)
        if known is None:
            self.sites[name] = Replayed(name, rows, recorded, computed)
            return
        known.rows = np.concatenate([known.rows, rows])
        known.recorded = np.concatenate([known.recorded, recorded])
        known.values = np.concatenate([known.values, computed])

    def _drawn(self, name: str, rows: NDArray[np.int64], recorded: Floats, values: torch.Tensor) -> None:
        known = self.sites.get(name)
        if known is None or (self._wanted is not None and name not in self._wanted):
            return
        place = np.searchsorted(known.rows, rows)
        if rows[0] == known.rows[0]:
            known.draws.append(np.zeros(known.values.shape, np.float32))
        known.draws[-1][place] = values.numpy() - known.values[place]

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = []
        for path, module in self._model.named_modules():
            if path and not isinstance(module, torch.jit.ScriptModule):
                name = plain_name(path)
                handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
                handles.append(module.register_forward_hook(self._after(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, path: str) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._at(
                repeated(path, self._fired.get(path, 0)) + INPUT_SUFFIX,
                first_tensor(args) if args else first_tensor(kwargs),
            )

        return before

    def _after(self, path: str) -> Callable[..., None]:
        def after(_: nn.Module, args: Any, output: Any) -> None:
            name = repeated(path, self._fired.get(path, 0))
            self._fired[path] = self._fired.get(path, 0) + 1
            self._at(name, output if type(output) is torch.Tensor else first_tensor(output))

        return after

    def _at(self, name: str, value: torch.Tensor | None) -> None:
        """The reference is at a site: compare, and put the recorded rows in, in place: whoever reads the same tensor
        later reads them, too."""
        data = self._sequence.sites.get(name)
        if data is None or value is None or not value.is_floating_point():
            return
        length = self._sequence.positions if data.axis is None else max(stop for _, stop in data.ranges)
        rows = arranged(Axis(1, length, length), value, data.width)
        if rows is None or rows.numel() != data.width * length:
            self.missed[name] = f"the reference gives {list(value.shape)} there"
            return
        rows = rows[0] if rows.shape[0] == 1 and rows.shape[0] != length else rows
        for first, stop in data.ranges:
            recorded = to_float(self._sequence.read(name, first, stop), data.dtype).astype(np.float64)
            part = rows[first:stop]
            self._meet(name, np.arange(first, stop), recorded, part.reshape(stop - first, -1))
            # Those that are not finite, too: what the candidate computed from them is not judged.
            part.copy_(torch.from_numpy(recorded).reshape(part.shape))

    def _logits(self, output: Any) -> None:
        """The logits of the steps, as the model gives them."""
        sequence, value = self._sequence, getattr(output, "logits", None)
        if not sequence.step_count or not isinstance(value, torch.Tensor) or value.dim() != 3:
            return
        logits = sequence.logits(0, sequence.step_count)
        positions = [sequence.step(index).position for index in range(sequence.step_count)]
        if logits is None or logits.shape[1] != value.shape[2] or positions[-1] >= value.shape[1]:
            return
        recorded = to_float(logits, sequence.logits_dtype or "float32").astype(np.float64)
        self._meet(LOGITS, np.arange(len(positions)), recorded, value[0, positions])
