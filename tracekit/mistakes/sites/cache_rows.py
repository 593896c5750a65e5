"""A row of the key-value cache that is stale, lost or empty from the first wrong position on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tracekit.mistakes.core import ATTENTION, attended, changed, core_of, exactly
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, Made


def _since(case: Case) -> int:
    return int(case.window.rows[int(case.wrong.argmax())])


def _rows(case: Case) -> list[int]:
    """Rows that may be at fault: that of the first wrong position, and the one before it."""
    return [row for row in (_since(case), _since(case) - 1) if row >= 0]


def _stale(case: Case) -> Iterator[Hypothesis]:
    for row in _rows(case):
        yield Hypothesis(lambda row=row: _stale_row(case, row), {"row": row})  # type: ignore[misc]


def _stale_row(case: Case, row: int) -> Made | None:
    """The row whose key and value stand in `row`'s place, found at the first wrong position."""
    if row == 0:
        return None
    core, since = core_of(case), _since(case)
    first = np.array([int(case.wrong.argmax())])
    options = [replace(core, stale_row=row, source=source, since=since) for source in range(-1, row)]
    best = min(options, key=lambda option: case.distance(exactly(case, option, first), first))
    return attended(case, best), {"holds": "nothing" if best.source < 0 else f"row {best.source}"}


def _lost(case: Case) -> Iterator[Hypothesis]:
    for row in _rows(case):
        yield changed(case, {"row": row}, lost_row=row, since=_since(case))


def _empty(case: Case) -> Iterator[Hypothesis]:
    yield changed(case, {"first": _since(case)}, sink_from=_since(case))


STALE = SiteMistake(
    "stale_cache_row",
    "cache row {row} holds {holds}",
    main="holds",
    at=ATTENTION,
    complexity=Complexity.NUMBER,
    hypotheses=_stale,
)
LOST = SiteMistake("cache_row_lost", "cache row {row} is missing", main="row", at=ATTENTION, hypotheses=_lost)
EMPTY = SiteMistake(
    "empty_cache_row",
    "an empty cache row is attended to from position {first} on",
    main="first",
    at=ATTENTION,
    hypotheses=_empty,
)
