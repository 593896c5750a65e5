"""One pass of the replay in which the operations before each site are written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tracekit.trace import LOGITS, Sequence, SiteData, Trace, TraceError
from tracekit_torch.reference_program.loading import on_its_tokens
from tracekit_torch.reference_program.replay import Replay, Replayed, recorded_parts, rows_of
from tracekit_torch.reference_program.segment import Arrange, Capture, Segment


class Capturing(Replay):
    """A replay that knows, after it was run, what feeds a site."""

    @cached_property
    def _capture(self) -> Capture:
        return Capture()

    def sites_with_segments(self, names: list[str]) -> dict[str, tuple[Replayed, Segment]]:
        """Run it: these sites, as far as they are met, with what feeds each."""
        with _keeping(self._model), self._capture:
            self.run(only=names)
        return self._with_segments(self.sites)

    def _with_segments(self, sites: dict[str, Replayed]) -> dict[str, tuple[Replayed, Segment]]:
        found = {name: self._capture.segment(name) for name in sites}
        return {name: (sites[name], segment) for name, segment in found.items() if segment is not None}

    def _at(self, name: str, value: torch.Tensor | None) -> None:
        stored = self._stored(name)
        if value is None or name in self._seen or stored is None:
            return
        before, data = self._capture.of(value), self._sequence.sites[stored]
        super()._at(name, value)
        if name in self._seen:
            self._capture.met(name, before, self._arrange(data))
            self._capture.put(value, before)

    def _arrange(self, data: SiteData) -> Arrange:
        """Takes the recorded rows of what the model holds at a site now."""
        return lambda tensor: recorded_parts(self._sequence, data, tensor) or []

    def _logits(self, output: Any) -> None:
        super()._logits(output)
        if rows := self._rows_of_logits():
            self._capture.met(LOGITS, self._capture.of(output.logits), lambda tensor: rows_of(tensor[0], rows))

    def _rows_of_logits(self) -> list[int]:
        """Those of the steps, where the logits are asked for."""
        steps = self._sequence.step_count if LOGITS in self.sites else 0
        return [self._sequence.step(step).position for step in range(steps)]


def captured(
    trace: Trace, sequence: Sequence, names: list[str], begun: Callable[[], Capturing]
) -> dict[str, tuple[Replayed, Segment]]:
    """These sites of a replay of the sequence's tokens, with what feeds each; none where it cannot be run."""
    with suppress(TraceError), on_its_tokens(trace, sequence):
        return begun().sites_with_segments(names)
    return {}


@contextmanager
def _keeping(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model is asked to fill a cache of its own: the lines that do are part of what is captured."""

    def asked(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | ({"use_cache": True} if "use_cache" in kwargs else {})

    handle = model.register_forward_pre_hook(asked, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
