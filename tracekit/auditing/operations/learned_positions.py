"""Learned positions: the row of a table that belongs to each position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracekit.auditing.operations.embedding_table import embedding
from tracekit.auditing.operations.operation import Given, Operation, Shape
from tracekit.auditing.rounding import Result


@dataclass(frozen=True)
class LearnedPositions(Operation):
    """Row p + `offset` of the table [positions, width] at position p."""

    kind = "learned_positions"

    offset: int = 0

    def result(self, given: Given) -> Result:
        return embedding(given.weights.table(), given.rows + self.offset, given.dtype)

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        shape = shapes.get("weight", ())
        return len(shape) == 2 and shape[1] == width
