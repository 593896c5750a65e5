"""What feeds a site at the first positions alone: there an edit is refuted at a fraction of the cost."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tracekit.trace import LOGITS, Sequence, Trace
from tracekit_torch.reference_program.capturing import Capturing, captured
from tracekit_torch.reference_program.first_positions import FirstPositions
from tracekit_torch.reference_program.loading import forward_of
from tracekit_torch.reference_program.replay import Replayed
from tracekit_torch.reference_program.routing import Forced
from tracekit_torch.reference_program.segment import Segment

ENOUGH = 8
"""Wrong rows that the first positions have to hold."""
FEWEST = 16
"""Positions below which nothing is saved: an operation costs what it costs to ask for it."""


class FirstSegments:
    """Segments over as many of a sequence's first positions as show what is wrong at a site."""

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        sequence: Sequence,
        names: list[str],
        factors: Mapping[str, float],
        forced: Forced = MappingProxyType({}),
    ) -> None:
        self._model, self._trace, self._sequence, self._names = model, trace, sequence, names
        self._factors, self._forced = factors, forced
        self._captured: dict[int, dict[str, tuple[Replayed, Segment]]] = {}

    def of(self, site: Replayed, wrong: NDArray[np.int64]) -> tuple[Replayed, Segment] | None:
        """A site that is wrong at the positions `wrong`, with what feeds it; None where that is no smaller than the
        whole, or where later positions change what is computed there."""
        count, last = FEWEST, int(wrong[:ENOUGH].max(initial=0))
        while count <= last:
            count *= 2
        if site.site == LOGITS or not wrong.size or 2 * count > self._sequence.positions:
            return None
        if count not in self._captured:
            self._captured[count] = self._capture(count)
        found = self._captured[count].get(site.site)
        if found is None or len(found[0].rows) == len(site.rows):
            return None
        first = found[0]
        same = np.allclose(first.values, site.values[: len(first.rows)], rtol=1e-9, atol=1e-12, equal_nan=True)
        return found if same and np.array_equal(first.rows, site.rows[: len(first.rows)]) else None

    def _capture(self, count: int) -> dict[str, tuple[Replayed, Segment]]:
        sequence = cast(Sequence, FirstPositions(self._sequence, count))

        def begun() -> Capturing:
            forward = forward_of(self._model, self._trace, sequence)
            return Capturing(self._model, sequence, forward, self._factors, self._forced)

        return captured(self._trace, sequence, self._names, begun)
