"""The mistakes that a site's computation can have: one object each, in a file of `sites/`.

All files of that package are read, so that a new mistake is one new file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

from tracekit.mistakes import sites
from tracekit.mistakes.explanation import Mistake
from tracekit.mistakes.suspect import Case, Hypothesis
from tracekit.plugins import by_id, modules_in


class Complexity(IntEnum):
    """How much of the recorded values a hypothesis is free to fit. The simplest that holds is the explanation."""

    PLAIN = 1  # nothing
    NUMBER = 2  # one number, or one row
    ENTRY = 3  # one entry of a parameter and its error
    VECTOR = 4  # a vector


@dataclass(frozen=True, kw_only=True)
class SiteMistake(Mistake):
    """A mistake with its test: the recipe with one thing changed."""

    at: tuple[str, ...] = ()
    """Kinds of recipe that it applies to; all of them where empty."""
    complexity: Complexity = Complexity.PLAIN
    hypotheses: Callable[[Case], Iterable[Hypothesis]]
    """What the site would hold with this mistake, in one or several forms; none where it cannot be made here."""


@cache
def site_mistakes() -> tuple[SiteMistake, ...]:
    """All of them, file by file. Raises ValueError where two have the same id."""
    values = (value for module in modules_in(sites.__name__) for value in vars(module).values())
    return tuple(by_id((one.id, one) for one in values if isinstance(one, SiteMistake)).values())


def mistakes_at(kind: str) -> tuple[SiteMistake, ...]:
    """Those that a recipe of this kind can have."""
    return tuple(one for one in site_mistakes() if not one.at or kind in one.at)
