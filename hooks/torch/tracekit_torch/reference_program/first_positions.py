"""The first positions of a sequence, as if no more had been computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tracekit.trace import Array, Sequence, SiteData
from tracekit.trace_view import SequenceView


class FirstPositions(SequenceView):
    """What was computed at the first `count` positions of a sequence, and the steps that were decoded from them."""

    def __init__(self, inner: Sequence, count: int) -> None:
        super().__init__(inner)
        self.positions = count
        self.step_count = sum(inner.step(index).position < count for index in range(inner.step_count))
        cut = {name: self._first(data) for name, data in inner.sites.items()}
        self.sites = {name: data for name, data in cut.items() if data.ranges}

    @property
    def tokens(self) -> Array:
        """i64 [steps]"""
        return self.inner.tokens[: self.step_count]

    def logits(self, first: int, stop: int) -> Array | None:
        """As `tracekit.trace.Sequence`."""
        return self.inner.logits(first, min(stop, self.step_count))

    def _first(self, data: SiteData) -> SiteData:
        if data.axis is not None:  # an encoder's, which is called once
            return data
        windows = np.minimum(data.ranges, self.positions)
        return replace(data, ranges=tuple((int(a), int(b)) for a, b in windows if a < b))
