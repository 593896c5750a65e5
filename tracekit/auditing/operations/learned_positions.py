"""Learned positions: the row of a table that belongs to each position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.operations.embedding_table import embedding
from tracekit.auditing.operations.operation import Given, Operation, Shape
from tracekit.auditing.rounding import Result
from tracekit.inspection.masked import places
from tracekit.trace import Sequence


@dataclass(frozen=True)
class LearnedPositions(Operation):
    """Row p + `offset` of the table [positions, width] at position p."""

    kind = "learned_positions"

    offset: int = 0
    places: tuple[int, ...] = ()
    """Where each position stands, where the sequence says it."""

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of the table at each position."""
        return (np.array(self.places)[positions] if self.places else positions) + self.offset

    def within(self, sequence: Sequence) -> LearnedPositions:
        stands = places(sequence)
        return self if stands is None else replace(self, places=tuple(stands.tolist()))

    def result(self, given: Given) -> Result:
        return embedding(given.weights.table(), self.rows(given.rows), given.dtype)

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        shape = shapes.get("weight", ())
        return len(shape) == 2 and shape[1] == width
