"""Culprits: what speaks against a site, and its JSON."""

from __future__ import annotations

from tracekit.auditing.evidence import (
    ColumnTooLarge,
    ErrorTooLarge,
    GainOff,
    OutlierBySize,
    OutlierColumns,
    Statistic,
    StatisticOff,
)
from tracekit.mistakes.culprits import ExplainedCulprit
from tracekit.report.words import fields_of, sentence, template, words
from tracekit.report.words.explanations import explanation_json
from tracekit.report.words.numbers import times
from tracekit.trace import Json

NAMES = {
    Statistic.SIZE: "error",
    Statistic.ROW: "error of a position",
    Statistic.COLUMN: "error of a column",
    Statistic.GAIN: "gain",
    Statistic.ROW_GAIN: "gain of a position",
    Statistic.COLUMN_OFFSET: "offset of a column",
    Statistic.COLUMN_GAIN: "gain of a column",
}
"""Statistics of a site's local error."""


@words(ErrorTooLarge)
def _too_large(found: ErrorTooLarge) -> str:
    return f"local error is {times(found.ratio)} the rounding bound{_at(found.wrong, found.rows)}"


@words(ColumnTooLarge)
def _column(found: ColumnTooLarge) -> str:
    return f"local error of column {found.column} is {times(found.ratio)} the rounding bound"


template(GainOff, "fitted gain {gain:.8g}, {deviations:.0f} standard deviations from 1")


@words(StatisticOff)
def _off(found: StatisticOff) -> str:
    what = NAMES[found.statistic]
    return f"{what} is {found.deviations:.0f} standard deviations off{_at(found.wrong, found.rows)}"


@words(OutlierBySize)
def _outlier(found: OutlierBySize) -> str:
    return f"local error is {times(found.ratio, 2)} the rounding bound; the same site of other layers is exact"


@words(OutlierColumns)
def _columns(found: OutlierColumns) -> str:
    more = f" and {len(found.columns) - 1} more" if len(found.columns) > 1 else ""
    return f"column {found.columns[0]}{more} is off at {found.share:.0%} of the positions; all other columns are exact"


def _at(wrong: int, rows: int) -> str:
    return "" if wrong == rows else f", at {wrong} of {rows} positions"


def culprit_json(culprit: ExplainedCulprit, side: str = "candidate") -> Json:
    """Place, size of the local error over its rounding bound (`own`), the statistic that is furthest beyond its limit,
    the fitted gain, the evidence with its numbers, the explanation; `all_tried`, whether all edits of the reference's
    source were, where that is what is tried."""
    own = culprit.own
    return {
        "side": side,
        "sequence": culprit.sequence,
        "step": culprit.step,
        "position": culprit.position,
        "site": culprit.site,
        "own": own.statistics.size,
        "statistic": own.statistic,
        "gain": 1.0 + own.statistics.gain,
        "evidence": fields_of(culprit.evidence) | {"text": sentence(culprit.evidence)},
        "explanation": explanation_json(culprit.explanation),
        "all_tried": not culprit.untried,
    }
