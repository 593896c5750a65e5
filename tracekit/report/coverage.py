"""What a verdict covers, as a person reads it."""

from __future__ import annotations

from tracekit.verdict.coverage import Coverage

SHOWN = 2


def shares(coverage: Coverage) -> str:
    """How much of the steps, sites and parameters was looked at."""
    return f"{coverage.steps} steps, {coverage.sites} sites, {coverage.parameters} parameters"


def left_out(coverage: Coverage) -> list[str]:
    """What has no value in the files, and what a recorder left out; a line each, none where there is nothing."""
    out = []
    if coverage.skipped:
        name, why = next(iter(coverage.skipped.items()))
        more = f" and {len(coverage.skipped) - 1} more" if len(coverage.skipped) > 1 else ""
        out.append(f"not stored: {name}{more}: {why}")
    if coverage.not_recorded:
        more = f" and {len(coverage.not_recorded) - SHOWN} more" if len(coverage.not_recorded) > SHOWN else ""
        out.append(f"not recorded: {'; '.join(coverage.not_recorded[:SHOWN])}{more}")
    return out
