"""The reference is the recipe: its own forward pass in float64 over the candidate's tokens, site by site.

At every site that the candidate recorded, what the reference computes there is compared with what was recorded, and
then the recorded value is put in its place. So nothing is inherited: each comparison shows what was added since the
last recorded sites, whatever the model does in between, without a line for its family.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.dtypes import to_float
from tracekit.inspection.losses import LogitsNotJudged
from tracekit.trace import INPUT_SUFFIX, LOGITS, TENSORS_GIVEN, Sequence, SiteData, resolve_in
from tracekit_torch.contained_tensors import first_tensor
from tracekit_torch.eager import plain_name
from tracekit_torch.reference_program.lockstep import Lockstep
from tracekit_torch.reference_program.routing import Choice, Choosing, Forced
from tracekit_torch.rows import Axis, arranged
from tracekit_torch.tapped import repeated, tensors_given

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Replayed:
    """One site of one sequence: what was recorded, and what the reference computes from what was recorded before it,
    [rows, width] each. `rows`: positions, or steps of the logits."""

    site: str
    stored: str
    """The site that it is recorded as: of an input, that of the module whose output it is."""
    rows: NDArray[np.int64]
    recorded: Floats
    values: Floats
    draws: NDArray[np.float32]
    """Errors of runs with drawn roundings, [runs, rows, width]; of no run where none were drawn."""
    since: int = 0
    """The operations whose roundings reach it, by their number in the program, as bits."""


class Replay:
    """A model in float64 that runs a recorded sequence, with the recorded values put in.

    Args:
        model: the reference, in float64 (`precision.run_in`), attention and experts in eager form.
        sequence: what was recorded.
        forward: calls the model on the sequence's tokens, as one prefill without a cache.
        factors: what recorded values are multiplied by, by site (`elsewhere`); 1 of the others.
        forced: choices of experts to make otherwise than by the scores (`routing`).
    """

    def __init__(
        self,
        model: nn.Module,
        sequence: Sequence,
        forward: Callable[[], Any],
        factors: Mapping[str, float] = MappingProxyType({}),
        forced: Forced = MappingProxyType({}),
    ) -> None:
        self.sites: dict[str, Replayed] = {}
        """By name; `logits` among them. Empty where `run` was told what to do with them."""
        self.missed: dict[str, NotAudited] = {}
        """Sites that are recorded and were not met with the same shape, and why."""
        self.logits_missed: LogitsNotJudged | None = None
        """Why recorded logits were not compared."""
        self.choices: list[Choice] = []
        """Of experts, those of the run so far."""
        self._model, self._sequence, self._forward = model, sequence, forward
        self._factors, self._forced = factors, forced
        self._running: list[str] = [""]
        """Modules that run, each in the one before it."""
        self._met: Callable[[Replayed], None] = self._keep
        self._drawn: Lockstep | None = None
        self._only: Collection[str] | None = None
        self._fired: dict[str, int] = {}
        self._seen: set[str] = set()
        self._held: dict[str, tuple[int, int]] = {}
        """The tensor that a site's values were put in."""

    def run(
        self,
        drawn: Lockstep | None = None,
        met: Callable[[Replayed], None] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        """Run the model once: fills `missed`, and `sites`, or hands each site to `met` where it is computed.

        Args:
            drawn: runs with drawn roundings that go beside it.
            met: what is to be done with a site; its values are not kept then.
            only: the sites to compare; values are put in at all of them.
        """
        self._met, self._drawn, self._only = met or self._keep, drawn, only
        self._fired, self._seen, self._held = {}, set(), {}
        self._running = [""]
        choosing = Choosing(self._sequence.positions, lambda: self._running[-1], self._forced, drawn)
        self.choices = choosing.made
        with torch.no_grad(), self._hooks(), drawn or nullcontext(), choosing:
            self._logits(self._forward())
        for name in self._sequence.sites:
            if name not in self._seen:
                self.missed.setdefault(name, NotAudited(Lacks.MODULE))

    def _keep(self, site: Replayed) -> None:
        self.sites[site.site] = site

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
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._running.append(path)
            name = repeated(path, self._fired.get(path, 0))
            given, row = tensors_given(module, args, kwargs), self._sequence.site_table.get(name)
            if row is not None and row.attributes.get(TENSORS_GIVEN, 1) != given:
                self.missed.setdefault(name + INPUT_SUFFIX, NotAudited(Lacks.OWN_INPUTS, (str(given),)))
                return
            self._at(name + INPUT_SUFFIX, first_tensor(args) if args else first_tensor(kwargs))

        return before

    def _after(self, path: str) -> Callable[..., None]:
        def after(_: nn.Module, args: Any, output: Any) -> None:
            self._running.pop()
            name = repeated(path, self._fired.get(path, 0))
            self._fired[path] = self._fired.get(path, 0) + 1
            self._at(name, output if type(output) is torch.Tensor else first_tensor(output))

        return after

    def _at(self, name: str, value: torch.Tensor | None) -> None:
        """The reference is at a site: compare, and put the recorded rows in, in place: whoever reads the same tensor
        later reads them, too."""
        stored = self._stored(name)
        if stored is None or value is None or not value.is_floating_point() or name in self._seen:
            return
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            if stored != name and self._held.get(stored) == _identity(value):
                self._read_there(name, stored)
                return  # the reference reads the very tensor, too
            parts = self._parts(name, stored, value)
            if parts is not None:
                self._seen.add(name)
                self._found(name, stored, parts)
                self._held[name] = _identity(value)

    def _stored(self, name: str) -> str | None:
        """The site that a value is recorded as; of an input, that of the module whose output the candidate gave it."""
        sites = self._sequence.sites
        if name in sites or not name.endswith(INPUT_SUFFIX):
            return name if name in sites else None
        found = resolve_in(self._sequence.site_table, name, sites.__contains__)
        return found if found in sites else None

    def _parts(self, name: str, stored: str, value: torch.Tensor) -> list[torch.Tensor] | None:
        parts = recorded_parts(self._sequence, self._sequence.sites[stored], value)
        if parts is None and name == stored:
            self.missed[name] = NotAudited(Lacks.OWN_SHAPE, (str(list(value.shape)),))
        return parts

    def _found(self, name: str, stored: str, parts: list[torch.Tensor]) -> None:
        self._put_in(name, stored, parts, self._sequence.sites[stored].ranges)

    def _read_there(self, name: str, stored: str) -> None:
        """The reference reads as `name` what `stored` was compared as."""

    def _put_in(self, name: str, stored: str, parts: list[torch.Tensor], windows: Seq[tuple[int, int]]) -> None:
        """Compare what was recorded of the rows `windows`, of which `parts` holds the reference's, and put it there."""
        data = self._sequence.sites[stored]
        read = [to_float(self._sequence.read(stored, *window), data.dtype) for window in windows]
        if name in self._factors:
            read = [values.astype(np.float64) * self._factors[name] for values in read]
        if self._only is None or name in self._only:
            places = np.concatenate([np.arange(*window) for window in windows])
            self._compare(name, stored, places, np.concatenate(read).astype(np.float64), parts)
        for part, recorded, window in zip(parts, read, windows, strict=True):
            # Those that are not finite, too: what the candidate computed from them is not judged.
            self._put(part, torch.tensor(recorded).reshape(part.shape), window[0] if data.axis is None else None)

    def _put(self, into: torch.Tensor, value: torch.Tensor, first: int | None) -> None:
        if self._drawn is None:
            into.copy_(value)
        else:
            self._drawn.put(into, value, first)

    def _compare(
        self, name: str, stored: str, places: NDArray[np.int64], recorded: Floats, parts: list[torch.Tensor]
    ) -> None:
        values = [part.reshape(len(part), -1).to(torch.float64, copy=True) for part in parts]
        off = np.zeros((0, *recorded.shape), np.float32)
        since = 0
        if self._drawn is not None:
            drawn = [self._drawn.off(part) for part in parts]
            runs = self._drawn.runs
            off = np.zeros((runs, *recorded.shape), np.float32)
            first = 0
            for part, error in zip(parts, drawn, strict=True):
                if error is not None:
                    off[:, first : first + len(part)] = error.reshape(runs, len(part), -1).numpy()
                first += len(part)
            since = self._drawn.since(parts[0])
            off = self._drawn.draws(off, self._positions(stored, places))
        exact = values[0] if len(values) == 1 else torch.cat(values)
        self._met(Replayed(name, stored, places, recorded, exact.numpy(), off, since))

    def _positions(self, stored: str, places: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The positions of a site's rows; None where they are no positions of the sequence."""
        if stored == LOGITS:
            return places + self._sequence.step(0).position
        return places if self._sequence.sites[stored].axis is None else None

    def _logits(self, output: Any) -> None:
        """The logits of the steps, as the model gives them."""
        sequence, value = self._sequence, getattr(output, "logits", None)
        if not sequence.step_count or sequence.logits_dtype is None:
            return
        if self._only is not None and LOGITS not in self._only:
            return
        logits = sequence.logits(0, sequence.step_count)
        if logits is None:
            return
        positions = [sequence.step(index).position for index in range(sequence.step_count)]
        shape = list(value.shape[1:]) if isinstance(value, torch.Tensor) and value.dim() == 3 else [None, None]
        if value is None or shape[1] != logits.shape[1] or positions[-1] >= value.shape[1]:
            self.logits_missed = LogitsNotJudged(sequence.path, sequence.index, shape[0], shape[1], logits.shape[1])
        else:
            recorded = to_float(logits, sequence.logits_dtype).astype(np.float64)
            with _disable_current_modes():
                self._compare(LOGITS, LOGITS, np.arange(len(positions)), recorded, rows_of(value[0], positions))


def _identity(value: torch.Tensor) -> tuple[int, int]:
    """Equal for views of one tensor that nobody wrote to in between."""
    return value.untyped_storage().data_ptr(), 0 if value.is_inference() else value._version


def recorded_parts(sequence: Sequence, data: SiteData, value: torch.Tensor) -> list[torch.Tensor] | None:
    """Views of the rows of a site's `value` that are recorded, [rows, ...] for each of its ranges; None where its shape
    is not that of what was recorded."""
    length = sequence.positions if data.axis is None else max(stop for _, stop in data.ranges)
    rows = arranged(Axis(1, length, length), value, data.width)
    if rows is None or rows.numel() != data.width * length:
        return None
    rows = rows[0] if rows.shape[0] == 1 and rows.shape[0] != length else rows
    return [rows[first:stop] for first, stop in data.ranges]


def rows_of(value: torch.Tensor, rows: list[int]) -> list[torch.Tensor]:
    """Views of the rows of `value`, of as many at a time as follow each other."""
    runs = np.split(np.array(rows), np.flatnonzero(np.diff(rows) != 1) + 1)
    return [value[int(run[0]) : int(run[-1]) + 1] for run in runs]
