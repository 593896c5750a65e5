"""Rows of a table, looked up by token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.operations.operation import Given, Operation, Shape
from tracekit.auditing.rounding import Floats, Result, as_stored, times
from tracekit.dtypes import SMALLEST


def embedding(
    table: NDArray[Any], ids: NDArray[np.int64], dtype: str, factor: float = 1.0, stored: str | None = None
) -> Result:
    """Rows of the table; exact where the engine holds the table in the dtype that it records. `factor`: what they are
    multiplied by, which engines round to the dtype first or do not. `stored`: the table's format in the file, which a
    program in float64 may have been loaded in, with its factor, before it was cast."""
    values = table[ids].astype(np.float64)
    plain = Result(values, np.full_like(values, SMALLEST.get(dtype, 0.0) ** 2 + 1e-290))
    if factor == 1.0:
        return plain
    result = times(values, factor, dtype)
    if dtype != "float64" or stored not in ("float32", "bfloat16", "float16"):
        return result
    loaded = float(as_stored(np.array([factor]), stored)[0])
    return replace(result, others=(*result.others, times(values, loaded, dtype)))


@dataclass(frozen=True)
class Embedding(Operation):
    """Rows of a table times a number. `either`: they are multiplied at this site or by the program after it."""

    kind = "embedding"
    classes = frozenset({"Embedding"})
    reads_tokens = True

    factor: float = 1.0
    either: bool = False

    @property
    def in_repro(self) -> bool:
        return self.factor == 1.0

    def result(self, given: Given) -> Result:
        table = given.weights.table()
        result = embedding(table, given.tokens, given.dtype, self.factor, given.weights.stored())
        if not self.either:
            return result
        return replace(result, others=(*result.others, embedding(table, given.tokens, given.dtype)))

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        shape = shapes.get("weight", ())
        return len(shape) == 2 and shape[1] == width

    def multiplied(self, rows: Floats, recorded: Floats) -> bool:
        """Whether what was recorded is nearer to the table's rows times the factor than to those rows."""
        gaps = [float(np.square(recorded - rows * factor).sum()) for factor in (1.0, self.factor)]
        return gaps[1] < gaps[0]
