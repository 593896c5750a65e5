"""The causes, one file each: every `RULE` of this package, in the order in which they are tried."""

from __future__ import annotations

from functools import cache

from tracekit.plugins import modules_in
from tracekit.verdict.cause import Cause
from tracekit.verdict.rule import Case, CauseRule
from tracekit.verdict.ruling import Ruling


@cache
def rules() -> tuple[CauseRule, ...]:
    """All of them, in their order."""
    found = [module.RULE for module in modules_in(__name__)]
    return tuple(sorted(found, key=lambda rule: rule.order))


def rule_of(cause: str | None) -> CauseRule | None:
    """The rule of a cause's id; None of no cause, and of an id that is none."""
    return next((rule for rule in rules() if rule.cause == cause), None)


def is_fault(cause: str) -> bool:
    """Whether something is to be mended; so it is where the id is of no rule, such as a postmortem's `crash`."""
    rule = rule_of(cause)
    return rule is None or rule.fault


def cause_of(case: Case) -> Ruling | None:
    """The ruling of the rules in their order; None where no rule holds."""
    ruling: Ruling | None = None
    for rule in rules():
        ruling = rule.holds(case, ruling) or ruling
    return ruling


__all__ = ["Cause", "cause_of", "is_fault", "rule_of", "rules"]
