"""What a verdict covers, as a person reads it."""

from __future__ import annotations

from tracekit.inspection.losses import CallsLeftOut
from tracekit.report.words import sentence
from tracekit.trace import Json
from tracekit.verdict.coverage import Coverage
from tracekit.verdict.record import CoverageRecord


def shares(coverage: Coverage | CoverageRecord) -> str:
    """How much of the steps, sites and parameters was looked at."""
    partly = f" ({len(coverage.in_part)} of them in part)" if coverage.in_part else ""
    return f"{coverage.steps} steps, {coverage.sites} sites{partly}, {coverage.parameters} parameters"


def left_out(coverage: Coverage) -> list[str]:
    """What has no value in the files, or is held in fewer bits; a line each, none where there is nothing."""
    out = []
    if coverage.skipped:
        name, why = next(iter(coverage.skipped.items()))
        more = f" and {len(coverage.skipped) - 1} more" if len(coverage.skipped) > 1 else ""
        out.append(f"not stored: {name}{more}: {why}")
    if coverage.quantised:
        more = f" and {len(coverage.quantised) - 1} more" if len(coverage.quantised) > 1 else ""
        out.append(f"quantised: {coverage.quantised[0]}{more}: what was computed with them is judged, not they")
    return out


def coverage_json(coverage: Coverage) -> Json:
    """Ready for `json.dumps`."""
    return {
        "steps": vars(coverage.steps),
        "sites": vars(coverage.sites),
        "audited": None if coverage.audited is None else vars(coverage.audited),
        "parameters": vars(coverage.parameters),
        "unchecked": list(coverage.unchecked),
        "skipped": dict(coverage.skipped),
        "in_part": list(coverage.in_part),
        "not_recorded": list(dict.fromkeys(loss.what for loss in coverage.lost if isinstance(loss, CallsLeftOut))),
        "quantised": list(coverage.quantised),
        "lost": [sentence(loss) for loss in coverage.lost],
    }
