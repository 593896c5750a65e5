"""Two mistakes of one attention core at once: one is taken as made, and what it leaves is explained by another.

No pair is tried where one mistake explains the core. Of the mistakes without a number to fit every pair is tried; one
with a number beside those that leave the least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tracekit.auditing.operations import Attention, Core
from tracekit.mistakes.core import ATTENTION, core_of, exactly, rounds
from tracekit.mistakes.explanation import Explanation, Mistake
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Fit, Hypothesis

TOGETHER = Mistake("two_mistakes_at_once", "{parts[0]}; and {parts[1]}")
SAMPLED = 24
"""Rows on which pairs are tried first."""
NEAR = 4.0
"""Median error of a head at a row, over its rounding bound, up to which a pair is tried on all rows."""
WITH_NUMBERS = 6
"""Pairs with a number that are tried on all rows."""
Part = tuple[SiteMistake, Hypothesis]
Pair = tuple[Explanation, Fit]


def pairs(case: Case, mistakes: Sequence[SiteMistake]) -> list[Pair]:
    """Each pair of mistakes that holds on all rows, its parts in the order of the registry."""
    if not isinstance(case.recipe.operation, Attention):
        return []
    usable = [one for one in mistakes if one.at == ATTENTION and not one.precision]
    plain = [one for one in usable if one.complexity is Complexity.PLAIN]
    numbers = [one for one in usable if one.complexity is Complexity.NUMBER]
    rows = _sampled(case)
    parts = [part for part in _cores(case, plain) if part[1].core != core_of(case)]
    held = list(_plain_pairs(case, parts, rows))
    for part, number in () if held else _likely(case, parts, numbers, rows):
        held += _beside(case, part, number)
    return held


def _cores(case: Case, mistakes: Sequence[SiteMistake]) -> list[Part]:
    return [
        (mistake, hypothesis)
        for mistake in mistakes
        for hypothesis in mistake.hypotheses(case)
        if hypothesis.core is not None
    ]


def _plain_pairs(case: Case, firsts: Sequence[Part], rows: np.ndarray) -> Iterator[Pair]:
    """`rows`: on which a pair must do well to be tried on all."""
    for index, (mistake, first) in enumerate(firsts):
        changed = _as_if(case, first.core)
        for other, second in _cores(changed, [one for one, _ in firsts[index + 1 :]]):
            if other is not mistake and _changes_both(case, first, second) and _left(case, second.core, rows) <= NEAR:
                yield from _held(changed, (mistake, first.values, first.changes), other, second)


def _likely(
    case: Case, parts: Sequence[Part], numbers: Sequence[SiteMistake], rows: np.ndarray
) -> list[tuple[Part, SiteMistake]]:
    """Mistakes beside one with a number, which is fitted as if it were the only one: those that leave the least."""
    found: list[tuple[float, int, SiteMistake]] = []
    for number in numbers:
        for hypothesis in number.hypotheses(case):
            made = None if hypothesis.core_at is None or number.main is None else hypothesis.make()
            if made is None or hypothesis.core_at is None or number.main is None:
                continue
            core = hypothesis.core_at(made[1][number.main])
            for index, (_, part) in enumerate(parts):
                changes = _changes(case, part.core)
                if not changes.keys() & _changes(case, core).keys():
                    found.append((_left(case, replace(core, **changes), rows), index, number))
    nearest = sorted(found, key=lambda one: one[0])[:WITH_NUMBERS]
    return [(parts[index], number) for _, index, number in nearest]


def _beside(case: Case, part: Part, number: SiteMistake) -> Iterator[Pair]:
    """The number fitted again with the other mistake made; not where it holds alone."""
    mistake, first = part
    changed = _as_if(case, first.core)
    held = [
        pair
        for hypothesis in number.hypotheses(changed)
        for pair in _held(changed, (mistake, first.values, first.changes), number, hypothesis)
    ]
    if held and not _holds_alone(case, number, first):
        yield from held


def _holds_alone(case: Case, number: SiteMistake, beside: Hypothesis) -> bool:
    """Whether one mistake does as well without the other, given what the other is allowed for values next to a tie."""
    if beside.core is None or not rounds(beside.core):
        return False
    alike = (replace(hypothesis, flips=True) for hypothesis in number.hypotheses(case))
    return any(fit.holds and not fit.partial for hypothesis in alike for fit in case.tried(number, hypothesis))


def _held(
    changed: Case, first: tuple[SiteMistake, object, int], other: SiteMistake, hypothesis: Hypothesis
) -> Iterator[Pair]:
    mistake, values, changes = first
    for fit in changed.tried(other, hypothesis):
        if fit.holds and not fit.partial:
            parts = Explanation(mistake, values), Explanation(other, fit.values)  # type: ignore[arg-type]
            said = Explanation(TOGETHER, residual=fit.residual, parts=parts)
            yield said, replace(fit, changes=fit.changes + changes)


def _as_if(case: Case, core: Core | None) -> Case:
    """The case of a checkpoint that declares this core."""
    assert isinstance(case.recipe.operation, Attention) and core is not None
    return replace(case, recipe=replace(case.recipe, operation=replace(case.recipe.operation, core=core)))


def _changes_both(case: Case, first: Hypothesis, second: Hypothesis) -> bool:
    """Whether the second, put on top of the first, leaves the first's change as it was, and makes one."""
    if first.core == second.core:
        return False
    return _changes(case, first.core).items() <= _changes(case, second.core).items()


def _changes(case: Case, core: Core | None) -> dict[str, Any]:
    """Fields in which a core differs from the declared one."""
    declared = core_of(case)
    return {} if core is None else {name: one for name, one in vars(core).items() if one != getattr(declared, name)}


def _sampled(case: Case) -> np.ndarray:
    wrong = np.flatnonzero(case.wrong)
    picked = np.linspace(0, len(wrong) - 1, min(SAMPLED, len(wrong))).astype(np.int64)
    return np.unique(wrong[picked]).astype(np.int64)


def _left(case: Case, core: Core | None, rows: np.ndarray) -> float:
    """The median error of a head at a row, over its rounding bound: a value next to a tie moves few of them."""
    assert core is not None
    error = np.square(case.recorded[rows] - exactly(case, core, rows)) / case.right.variance[rows]
    blocks = error.reshape(len(rows), -1, core.head_dim).mean(axis=2)
    median = float(np.sqrt(np.median(blocks)))
    return median if np.isfinite(median) else np.inf
