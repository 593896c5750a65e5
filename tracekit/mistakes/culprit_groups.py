"""Culprits in the order of what they do to the logits, those with one mistake together."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tracekit.auditing.audit import Culprit
from tracekit.auditing.consequence import Consequences, Weigher
from tracekit.mistakes.culprits import ExplainedCulprit, is_precise, same_mistake

MOST_GROUPS = 8
"""Groups that are weighed: each is one run of the reference. What is left over is the last of them."""


def grouped(culprits: Sequence[ExplainedCulprit]) -> list[list[ExplainedCulprit]]:
    """Culprits with the same mistake together; those without an explanation with the same site of other layers."""
    groups: list[list[ExplainedCulprit]] = []
    for culprit in culprits:
        mine = next((group for group in groups if _together(group[0], culprit)), None)
        if mine is None:
            groups.append([culprit])
        else:
            mine.append(culprit)
    return groups


def _together(one: ExplainedCulprit, other: ExplainedCulprit) -> bool:
    if one.explanation is None and other.explanation is None:
        return _role(one) == _role(other)
    return same_mistake(one, other)


def _role(culprit: Culprit) -> str:
    return re.sub(r"\d+", "*", culprit.site)


def by_consequence(
    culprits: Sequence[ExplainedCulprit], weigh: Weigher
) -> tuple[list[ExplainedCulprit], Consequences | None]:
    """Culprits in the order of what they do to the logits, and what that is: the larger their share of the error the
    earlier, choices of precision after all others. As they were where it cannot be told."""
    told = weigh([[one.site for one in group] for group in _groups(culprits)]) if culprits else None
    if told is None:
        return list(culprits), None
    return sorted(culprits, key=lambda culprit: (is_precise(culprit), -told.share(culprit.site))), told


def _groups(culprits: Sequence[ExplainedCulprit]) -> list[list[ExplainedCulprit]]:
    """`MOST_GROUPS` at most: of more, the choices of precision and those least beyond their bounds are one."""
    groups = sorted(grouped(culprits), key=lambda group: (is_precise(group[0]), -max(map(_over, group))))
    first, rest = groups[: MOST_GROUPS - 1], groups[MOST_GROUPS - 1 :]
    return [*first, *([[one for group in rest for one in group]] if rest else [])]


def _over(culprit: Culprit) -> float:
    return max(culprit.own.over.values())
