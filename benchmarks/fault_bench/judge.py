"""Does a verdict name what was planted?"""

from __future__ import annotations

from typing import Any

import tracekit
from benchmarks.fault_bench.fault import Fault
from benchmarks.fault_bench.truth import Change
from tracekit.report.words import sentence
from tracekit.trace import Json, Trace, resolve


def judge(fault: Fault, change: Change, verdict: tracekit.Verdict, reference: Trace) -> tuple[bool, str]:
    """Whether cause, site, step (and position, where one is due) are right; and what is not."""
    expected = fault.expected
    if verdict.verdict != "divergence":
        return False, f"called {verdict.verdict}"
    wrong = []
    if verdict.cause not in expected.causes:
        wrong.append(f"cause {verdict.cause}")
    if not same_site(reference, verdict.site, expected.sites or (change.site,)):
        wrong.append(f"site {verdict.site}")
    step = change.step if expected.step is None else expected.step
    if verdict.step != step:
        wrong.append(f"step {verdict.step}, not {step}")
    if expected.at_position and verdict.position != change.position:
        wrong.append(f"position {verdict.position}, not {change.position}")
    return not wrong, "; ".join(wrong)


def misplaced(fault: Fault, change: Change, reference: Trace) -> str:
    """What the bits say against the expectation itself: a fault of the benchmark, not of tracekit. Usually empty."""
    expected = fault.expected
    if expected.sites and not same_site(reference, change.site, expected.sites) and change.stage != "WEIGHTS":
        return f"the runs first part at {change.site}, step {change.step}"
    if expected.step is not None and change.step != expected.step:
        return f"the runs first part at step {change.step}"
    return ""


def same_site(trace: Trace, found: str | None, names: tuple[str, ...]) -> bool:
    """Whether `found` is one of `names`, by name or because the reference's wiring makes them one."""
    if found is None:
        return False
    return found in names or (resolve(trace, found) or found) in {resolve(trace, name) or name for name in names}


def mistake_of(verdict: tracekit.Verdict) -> str:
    """The id of the mistake that a verdict names; empty where it names none."""
    explained: Json | None = verdict.to_json()["explanation"]
    return str(explained["kind"]) if explained else ""


def explanation_of(verdict: tracekit.Verdict) -> str:
    """The same with its number."""
    explained: Json | None = verdict.to_json()["explanation"]
    value: Any = explained.get("value") if explained else None
    return mistake_of(verdict) + ("" if value is None else f" {value}")


def margin_of(verdict: tracekit.Verdict) -> str:
    """How clear the case is: the first evidence."""
    return sentence(verdict.evidence[0]) if verdict.evidence else ""
