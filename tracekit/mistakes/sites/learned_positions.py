"""Learned positions: a table that is read at other rows than the positions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.auditing.operations import Floats
from tracekit.auditing.operations.learned_positions import LearnedPositions
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, Made

FURTHEST = 8
"""Rows by which a table is tried shifted. OPT's has two rows before that of position 0."""


def _shifted(case: Case) -> Iterator[Hypothesis]:
    yield Hypothesis(lambda: _best_shift(case))


def _best_shift(case: Case) -> Made | None:
    """The table shifted by the number of rows that leaves the least."""
    operation, table = case.recipe.operation, case.run.parameters.table(case.recipe)
    assert isinstance(operation, LearnedPositions)
    rows = operation.rows(case.window.rows)
    shifts = [
        by for by in range(-FURTHEST, FURTHEST + 1) if by and rows.min() + by >= 0 and rows.max() + by < len(table)
    ]
    if not shifts:
        return None
    best = min(shifts, key=lambda by: case.distance(_rows(table[rows + by])))
    return _rows(table[rows + best]), {"by": best}


def _rows(found: np.ndarray) -> Floats:
    return np.asarray(found, dtype=np.float64)


SHIFTED = SiteMistake(
    "learned_positions_shifted",
    "positions are looked up {by:+d} rows from their own",
    main="by",
    at=(LearnedPositions.kind,),
    complexity=Complexity.NUMBER,
    hypotheses=_shifted,
)
