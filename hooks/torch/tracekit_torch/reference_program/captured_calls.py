"""What feeds a site where the reference decodes with its own cache, call by call, as the candidate did.

Along the positions a line may do something else in a call of one position than in a prefill of all: a mean over the
wrong axis, a softmax over the queries. And lines that read a cache run in decoding alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
from torch import nn

from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.inspection.positions import prompt_length
from tracekit.trace import LOGITS, Sequence, SiteData, Trace
from tracekit_torch.reference_program.capturing import Capturing, captured
from tracekit_torch.reference_program.decoding import Decoding, called_parts
from tracekit_torch.reference_program.replay import Replayed
from tracekit_torch.reference_program.segment import Arrange, Segment

MOST_CALLS = 16
"""Calls of decoding up to which they are captured: an edit is made in all of them, and each costs as much."""
MOST_READ = 1e10
"""Parameters times calls: each call reads all of them, whatever it computes."""

FLOAT32 = UNIT_ROUNDOFF["float32"]
"""Of a site's largest value: what its decoding may differ from its prefill by, where a program asks for float32."""


class CapturingCalls(Capturing, Decoding):
    """A model that decodes and knows, after it did, what feeds a site in every call."""

    @property
    def possible(self) -> bool:
        calls = self._sequence.positions - prompt_length(self._sequence)
        read = calls * sum(parameter.numel() for parameter in self._model.parameters())
        return super().possible and calls <= MOST_CALLS and read <= MOST_READ

    def sites_with_segments(self, names: list[str]) -> dict[str, tuple[Replayed, Segment]]:
        """Decode the sequence: these sites, as far as they are met, with what feeds each; none where it does not."""
        if not self.possible:
            return {}
        with self._capture:
            sites = self.decode(set(names), None, self._sequence.positions)
        return self._with_segments(sites)

    def _called(self, first: int, stop: int, cache: Any) -> Any:
        self._capture.begun()
        return super()._called(first, stop, cache)

    def _arrange(self, data: SiteData) -> Arrange:
        parts = partial(called_parts, data, self._windows(data), self._first, self._stop)
        return lambda tensor: parts(tensor) or []

    def _rows_of_logits(self) -> list[int]:
        """Those of this call that are steps'."""
        steps = self._sequence.step_count if self._only is not None and LOGITS in self._only else 0
        places = [self._sequence.step(step).position for step in range(steps)]
        return [place - self._first for place in places if self._first <= place < self._stop]


class CallSegments:
    """Sites of a sequence with what feeds them in every call; captured where one is asked for."""

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        sequence: Sequence,
        names: list[str],
        factors: Mapping[str, float],
    ) -> None:
        self._model, self._trace, self._sequence, self._names, self._factors = model, trace, sequence, names, factors

    def of(self, site: Replayed) -> tuple[Replayed, Segment] | None:
        """A site with what feeds it; None where the model does not decode, or computes something else than in one
        prefill: other experts, if those of the prefill were forced."""
        found = self._captured.get(site.site)
        if found is None or not np.array_equal(found[0].rows, site.rows):
            return None
        within = FLOAT32 * float(np.nanmax(np.abs(site.values), initial=0.0))
        return found if np.allclose(found[0].values, site.values, rtol=0.0, atol=within, equal_nan=True) else None

    @cached_property
    def _captured(self) -> dict[str, tuple[Replayed, Segment]]:
        begun = partial(CapturingCalls, self._model, self._trace, self._sequence, self._factors)
        return captured(self._trace, self._sequence, self._names, begun)
