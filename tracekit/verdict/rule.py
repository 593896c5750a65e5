"""What a cause is: a rule that says when it holds, in which order it is tried, and what reports make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import ClassVar

from tracekit.align.pair import Pair
from tracekit.compare.findings import DrawDiffers, Finding, TokenDiffers
from tracekit.compare.search import Search
from tracekit.inspection.settings import Difference
from tracekit.verdict.attribution import ComputesAsStated, Examination, SiteAtFault
from tracekit.verdict.cause import Cause
from tracekit.verdict.counterfactual import rule_draw, rule_token
from tracekit.verdict.coverage import Coverage
from tracekit.verdict.decision import Decision
from tracekit.verdict.outcome import Agreement
from tracekit.verdict.ruling import Ruling


class Evidence:
    """A finding of a rule of its own: a frozen dataclass whose sentence is a format string over its fields."""

    words: ClassVar[str]


@dataclass
class Case:
    """Everything that is known of a pair of traces when its cause is looked for."""

    pair: Pair
    found: Search
    coverage: Coverage
    differences: tuple[Difference, ...] = ()  # settings
    weights: tuple[str, ...] = ()  # parameters of other bytes
    examination: Examination | None = None
    precise: tuple[SiteAtFault, ...] = ()
    """Sites that are off by a choice of precision alone. They are no divergence (`first`)."""

    as_stated: ComputesAsStated | None = None
    """Why sites differ that are no divergence: a side computes in an arithmetic that it states."""

    @property
    def first(self) -> Finding | None:
        """The divergence."""
        return self.found.first

    @cached_property
    def sampled(self) -> Ruling | None:
        """What the step's draws and tokens, worked out again, say of another draw or token: one of several causes."""
        first = self.first
        if isinstance(first, DrawDiffers):
            return rule_draw(self.pair, self.found, first)
        return rule_token(self.pair, self.found, first) if isinstance(first, TokenDiffers) else None


def sampled(cause: str) -> Callable[[Case, Ruling | None], Ruling | None]:
    """As `CauseRule.holds`: the step's draws and tokens, worked out again, say this cause."""

    def holds(case: Case, ruling: Ruling | None) -> Ruling | None:
        found = case.sampled if ruling is None else None
        return found if found is not None and found.cause == cause else None

    return holds


class Luck(StrEnum):
    """What says whether a seed whose tokens agree may have the fault all the same."""

    DRAWS = "draws"  # the probability that other draws give the same tokens
    VALUES = "values"  # the error, against the margins of the passing seeds
    LENGTH = "length"  # sequences that end before the fault shows
    AGREE = "agree"  # what the fault changes is compared, and agrees
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Grouping:
    """How a postmortem treats seeds of this cause."""

    luck: Luck = Luck.UNKNOWN
    agrees: Agreement | None = None  # of `Luck.AGREE`: in what seeds that pass agree
    proven_by_tokens: bool = False  # tokens, survivors and draws prove it once they explain it: no layer caused it
    stands_alone: bool = False  # no layer can have brought it about, explained or not


class Shows(StrEnum):
    """Where a repro looks for the fault."""

    SITE = "site"
    PROMPT = "prompt"
    SURVIVORS = "survivors"
    DRAWS = "draws"
    TOKEN = "token"
    END = "end"


@dataclass(frozen=True)
class ReproNeeds:
    """What a repro of the cause is fed, or why there is none."""

    shows: Shows | None = None
    why_none: str = ""
    forces_prompt: bool = True
    forces_draws: bool = False
    needs_sequences_before: bool = False  # where the generator stands comes from the sequences before


@dataclass(frozen=True)
class CauseRule:
    """A cause, in its own file of `verdict.causes`, as `RULE`."""

    cause: Cause
    order: int  # rules are asked in this order, lowest first
    holds: Callable[[Case, Ruling | None], Ruling | None]
    """The ruling, given that of the rules before, or None where this is not the cause. A rule that is asked after
    another one held may overrule it."""
    headline: str
    grouping: Grouping = Grouping()
    repro: ReproNeeds = ReproNeeds()
    decision: Decision = Decision.DIVERGENCE
    fault: bool = True  # False: nothing is to be mended
