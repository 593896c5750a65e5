"""Culprits: their JSON."""

from __future__ import annotations

from tracekit.mistakes.culprits import ExplainedCulprit
from tracekit.report.words.explanations import explanation_json
from tracekit.trace import Json


def culprit_json(culprit: ExplainedCulprit, side: str = "candidate") -> Json:
    """Place, size of the local error over its rounding bound (`own`), the statistic that is furthest beyond its limit,
    the fitted gain, the explanation."""
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
        "explanation": explanation_json(culprit.explanation),
    }
