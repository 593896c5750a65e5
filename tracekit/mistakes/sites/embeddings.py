"""Embeddings: their factor, and the tokens that they are looked up for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.auditing.operations.embedding_table import Embedding
from tracekit.auditing.operations.passed_on import PassedOn
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, Made, plainly, unchanged

EMBEDDING = (Embedding.kind,)


def _factor(case: Case) -> float:
    """What the embeddings are to be multiplied by; 1 where they are only passed on."""
    return case.recipe.operation.factor if isinstance(case.recipe.operation, Embedding) else 1.0


def _scaled(case: Case) -> Iterator[Hypothesis]:
    if _factor(case) == 1.0:
        width = case.right.values.shape[1]
        yield plainly(unchanged, case.right.values * float(np.sqrt(width)), width=width)


def _unscaled(case: Case) -> Iterator[Hypothesis]:
    factor = _factor(case)
    if factor != 1.0:
        ids = case.run.ids[case.window.first : case.window.stop]
        rows = case.run.parameters.table(case.recipe)[ids].astype(np.float64)
        yield plainly(unchanged, rows, factor=factor)


def _twice(case: Case) -> Iterator[Hypothesis]:
    factor = _factor(case)
    if factor != 1.0:
        yield plainly(unchanged, case.right.values * factor, factor=factor)


def _looked_up(case: Case) -> Made | None:
    """Rows of the table that are what was recorded, though not of the recorded token ids."""
    table = case.run.parameters.table(case.recipe)
    first = int(case.wrong.argmax())
    found = np.flatnonzero(np.abs(table[:, 0] - case.recorded[first, 0]) <= 1e-6 * np.abs(case.recorded[first, 0]))
    ids = [int(row) for row in found if np.array_equal(table[row].astype(np.float64), case.recorded[first])]
    if not ids:
        return None
    values = case.right.values.copy()
    values[first] = case.recorded[first]
    position = int(case.window.rows[first])
    return values, {"found": ids[0], "stated": int(case.run.ids[position]), "position": position}


SCALED = SiteMistake(
    "embedding_scale", "scaled by sqrt({width})", main="width", at=(Embedding.kind, PassedOn.kind), hypotheses=_scaled
)
SCALE_LEFT_OUT = SiteMistake(
    "embedding_scale_left_out",
    "the embeddings are not multiplied by {factor:.6g}",
    main="factor",
    at=EMBEDDING,
    hypotheses=_unscaled,
)
SCALE_TWICE = SiteMistake(
    "embedding_scale_twice",
    "the embeddings are multiplied by {factor:.6g} twice",
    main="factor",
    at=EMBEDDING,
    hypotheses=_twice,
)
OTHER_TOKENS = SiteMistake(
    "other_tokens",
    "token {found} at position {position} instead of {stated}",
    main="found",
    at=EMBEDDING,
    complexity=Complexity.ENTRY,
    hypotheses=lambda case: [Hypothesis(lambda: _looked_up(case))],
)
