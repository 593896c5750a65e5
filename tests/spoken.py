"""What a verdict says to a person, for tests of the words; tests of what is found compare types and ids."""

from __future__ import annotations

from collections.abc import Iterable

from tracekit.report.words import sentence
from tracekit.verdict.verdict import Verdict


def spoken(findings: Iterable[object]) -> list[str]:
    """Each finding's sentence."""
    return [sentence(each) for each in findings]


def evidence(verdict: Verdict) -> list[str]:
    """What it is founded on."""
    return spoken(verdict.evidence)


def notes(verdict: Verdict) -> list[str]:
    """What is said beside it."""
    return spoken(verdict.notes)
