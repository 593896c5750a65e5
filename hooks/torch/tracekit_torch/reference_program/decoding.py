"""The reference as it decodes: call by call, with its own cache, the recorded values put in at each.

The replay is one prefill, so what a program keeps from one call to the next (keys and values, the state of a recurrent
layer, the last inputs of a convolution) is no value of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from tracekit.dtypes import to_float
from tracekit.inspection.masked import MASK
from tracekit.inspection.positions import prompt_length
from tracekit.trace import LOGITS, Sequence, SiteData, Trace
from tracekit_torch.adapters.causal_calls import CACHE_NAMES, cache_length, cache_of
from tracekit_torch.adapters.plain_prefill import IDS, fed, masks_of
from tracekit_torch.named_arguments import parameters_of
from tracekit_torch.reference_program.lockstep import Lockstep
from tracekit_torch.reference_program.replay import Replay, Replayed, rows_of
from tracekit_torch.rows import Axis, arranged

DEEPEST = 4
"""Objects within objects of a cache that are looked through."""
Kept = Mapping[str, list[torch.Tensor]]
"""Tensors of a cache by the name of the attribute that holds them."""


def kept_in(cache: object) -> Kept:
    """The floating-point tensors that a cache holds."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, tensor in _held("", cache, DEEPEST):
        found.setdefault(name, []).append(tensor)
    return found


def _held(name: str, value: object, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.numel():
            yield name, value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _held(name, item, depth)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _held(name, item, depth)
    elif depth and hasattr(value, "__dict__"):
        for attribute, item in vars(value).items():
            yield from _held(attribute, item, depth - 1)


class Decoding(Replay):
    """A model in float64 that decodes a recorded sequence: its prompt in one call, then a position a call."""

    def __init__(self, model: nn.Module, trace: Trace, sequence: Sequence, factors: Mapping[str, float]) -> None:
        super().__init__(model, sequence, lambda: None, factors)
        parameters = parameters_of(model)
        cached = IDS in parameters  # a port's own cache is not known
        self._placed = "position_ids" in parameters
        self._takes = next((name for name in CACHE_NAMES if cached and name in parameters), "")
        self._fed = fed(model, trace, sequence)
        self._masks = masks_of(model, sequence)
        self._first, self._stop = 0, prompt_length(sequence)
        self._parts_met: dict[str, list[Replayed]] = {}
        self._of_the_call: dict[str, Replayed] = {}
        self._begun: Any = None

    @property
    def possible(self) -> bool:
        """Whether the model takes a cache, and something was decoded."""
        return bool(self._takes) and self._stop < self._sequence.positions

    def decode(
        self,
        only: set[str],
        change: Callable[[Kept], None] | None,
        stop: int,
        drawn: Lockstep | None = None,
        met: Callable[[Replayed], None] | None = None,
    ) -> dict[str, Replayed]:
        """The sites `only`, at the positions up to `stop`, where `change` is made to what is kept after each call. The
        prompt's call is made once, unless roundings are drawn. `met`: is told what each call gives, where it does."""
        self._drawn, self._only, self._parts_met = drawn, {*only, *filter(None, map(self._stored, only))}, {}

        def keep(site: Replayed) -> None:
            self._of_the_call[site.site] = site
            if site.site in only:
                self._parts_met.setdefault(site.site, []).append(site)
                if met is not None:
                    met(site)

        self._met = keep
        prompt = prompt_length(self._sequence)
        with torch.no_grad(), self._hooks(), drawn or nullcontext():
            if drawn is not None or self._begun is None:
                cache = self._called(0, prompt, None)
                if drawn is None:
                    self._begun = copy.deepcopy(cache), {name: list(parts) for name, parts in self._parts_met.items()}
            else:
                cache, begun = copy.deepcopy(self._begun[0]), self._begun[1]
                self._parts_met = {name: list(parts) for name, parts in begun.items()}
            for position in range(prompt, stop):
                if change is not None:
                    change(kept_in(cache))
                cache = self._called(position, position + 1, cache)
        return {name: _joined(parts) for name, parts in self._parts_met.items()}

    def _called(self, first: int, stop: int, cache: Any) -> Any:
        self._first, self._stop = first, stop
        self._fired, self._seen, self._held, self._running = {}, set(), {}, [""]
        self._of_the_call = {}
        given = {} if cache is None else {self._takes: cache}
        if self._placed and cache_length(given) not in (None, first):
            # A cache that counts by a layer that keeps no keys: the model would begin at 0, and `generate` says where.
            given["position_ids"] = torch.arange(first, stop)[None]
        for name, told in self._masks.items():
            each = told[:, :, first:stop, :stop] if told.dim() == 4 else told[:, 0 if name == MASK else first : stop]
            given[name] = each
        output = self._model(**self._fed(first, stop), use_cache=True, **given)
        self._logits(output)
        return cache_of(output)

    def _parts(self, name: str, stored: str, value: torch.Tensor) -> list[torch.Tensor] | None:
        data = self._sequence.sites[stored]
        return called_parts(data, self._windows(data), self._first, self._stop, value)

    def _windows(self, data: SiteData) -> list[tuple[int, int]]:
        """Recorded rows of this call."""
        if data.axis is not None:
            return []
        cut = [(max(first, self._first), min(stop, self._stop)) for first, stop in data.ranges]
        return [(first, stop) for first, stop in cut if first < stop]

    def _found(self, name: str, stored: str, parts: list[torch.Tensor]) -> None:
        data = self._sequence.sites[stored]
        self._put_in(name, stored, parts, self._windows(data))

    def _read_there(self, name: str, stored: str) -> None:
        """A program that was changed may read what the candidate read there, and did not before."""
        if stored in self._of_the_call and self._only is not None and name in self._only:
            self._met(replace(self._of_the_call[stored], site=name))

    def _logits(self, output: Any) -> None:
        steps = [
            step
            for step in range(self._sequence.step_count)
            if self._first <= self._sequence.step(step).position < self._stop
        ]
        dtype = self._sequence.logits_dtype
        if not steps or dtype is None or self._only is None or LOGITS not in self._only:
            return
        recorded = self._sequence.logits(steps[0], steps[-1] + 1)
        if recorded is not None:
            rows = [self._sequence.step(step).position - self._first for step in steps]
            exact = to_float(recorded, dtype).astype(np.float64)
            self._compare(LOGITS, LOGITS, np.array(steps), exact, rows_of(output.logits[0], rows))


def called_parts(
    data: SiteData, windows: list[tuple[int, int]], first: int, stop: int, value: torch.Tensor
) -> list[torch.Tensor] | None:
    """Views of the rows `windows` of a site's `value`, of the call of the positions from `first` to `stop`; None where
    it has none, or another shape."""
    length = stop - first
    rows = arranged(Axis(1, length, stop), value, data.width) if windows else None
    if rows is None or rows.numel() != data.width * length:
        return None
    rows = rows[0] if rows.shape[0] == 1 and rows.shape[0] != length else rows
    return [rows[begin - first : end - first] for begin, end in windows]


def _joined(parts: list[Replayed]) -> Replayed:
    first = parts[0]
    return Replayed(
        first.site,
        first.stored,
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.recorded for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.draws for part in parts], axis=1),
    )
