"""A mistake that ports make, and the explanation that one of them is what went wrong here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from typing import TypeAlias

from tracekit.mistakes.edited_line import EditedLine

Value: TypeAlias = "int | float | str | bool | tuple[Value, ...] | None"


@dataclass(frozen=True)
class Mistake:
    """One mistake. It is declared once, in the file that tests for it; its identity decides, never its words."""

    id: str
    """Stable, snake_case: `rotary_theta`."""
    words: str
    """A format string over an explanation's values and `parts`: `rotary theta {found:.9g} instead of {stated:.9g}`."""
    main: str | None = None
    """The value that stands for the explanation where one number does: `found`."""
    precision: bool = False
    """Whether it is a choice of precision: the declared formula, with steps rounded to the model's own format that
    another program keeps wider. Nothing is computed by another formula."""


class Extent(StrEnum):
    """Which of the recorded positions a mistake acts on."""

    ALL = "all"
    PROMPT = "prompt"
    DECODING = "decoding"
    ONWARDS = "onwards"  # from one position on


@dataclass(frozen=True)
class Where:
    """The positions that a mistake acts on."""

    extent: Extent = Extent.ALL
    first: int | None = None  # position, of `ONWARDS`


EVERYWHERE = Where()
MANY_ALSO = 2
"""Other explanations that are shown."""
DIGITS = 5e-6
"""Relative distance below which two fitted numbers are one."""


@dataclass(frozen=True)
class Explanation:
    """A mistake that accounts for what was recorded, with its numbers."""

    mistake: Mistake
    values: Mapping[str, Value] = field(default_factory=dict)  # what the mistake's words name, and more
    residual: float = 0.0  # what is left: over the rounding bound at a site, nats of probability at a filter
    steps: int | None = None  # decoding steps that it was tried on
    also: tuple[Explanation, ...] = ()  # others that fit as well
    parts: tuple[Explanation, ...] = ()  # two mistakes at once
    where: Where = EVERYWHERE
    edit: EditedLine | None = None  # of the reference's source

    @property
    def lines(self) -> tuple[EditedLine, ...]:
        """Lines of the reference's source that were got wrong: its own edit, those of its parts, and those that cannot
        be told from it."""
        own = () if self.edit is None else (self.edit,)
        return own + tuple(line for other in (*self.parts, *self.also) for line in other.lines)

    @property
    def value(self) -> Value:
        """The one number of the mistake; None where it has none."""
        return None if self.mistake.main is None else self.values.get(self.mistake.main)

    @property
    def precision(self) -> bool:
        """Whether it is a choice of precision and no wrong formula."""
        if self.parts:
            return all(part.precision for part in self.parts)
        return self.mistake.precision

    def same(self, other: Explanation) -> bool:
        """Whether both name the same mistake with the same values at the same positions, whatever they leave."""
        return (
            self.mistake is other.mistake
            and self.values.keys() == other.values.keys()
            and all(_alike(value, other.values[name]) for name, value in self.values.items())
            and self.where == other.where
            and _same_edit(self.edit, other.edit)
            and len(self.parts) == len(other.parts)
            and all(one.same(part) for one, part in zip(self.parts, other.parts, strict=True))
        )


def _same_edit(one: EditedLine | None, other: EditedLine | None) -> bool:
    if one is None or other is None:
        return one is other
    return replace(one, number=None) == replace(other, number=None) and _alike(one.number, other.number)


def _alike(one: Value, other: Value) -> bool:
    """Equal; of fitted numbers, to six digits."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=DIGITS)
    return one == other


EDITED_LINE = Mistake("edited_line", "{edit}")
"""The reference's program with one operation changed."""


@dataclass(frozen=True)
class Explained:
    """As evidence: what went wrong, and what that leaves."""

    explanation: Explanation


@dataclass(frozen=True)
class FitsAsWell:
    """As evidence: another explanation that cannot be told from the first."""

    explanation: Explanation


@dataclass(frozen=True)
class InTheSource:
    """As evidence: the line of the reference's source that a named mistake is in."""

    edit: EditedLine


@dataclass(frozen=True)
class NotToldApart:
    """As evidence: other lines of the reference's source whose edits leave as little."""

    edits: tuple[EditedLine, ...]


class Untried(Enum):
    """What was not all tried of the changes to a reference's source, as it is too much work."""

    EDITS = "edits"
    """Too much is computed since the last sites."""
    CONDITIONS = "conditions"
    """The reference decodes again for each."""


@dataclass(frozen=True)
class TriedInPart:
    """As evidence: not all changes to the reference's source were tried."""

    untried: Untried
    found: bool
    """Whether one was found before."""


def in_the_source(explanation: Explanation) -> tuple[InTheSource | NotToldApart, ...]:
    """What is to be said of an explanation's lines, after the explanation itself."""
    named, others = explanation.lines[:1], explanation.lines[1:]
    if explanation.parts:
        return ()
    first = tuple(InTheSource(line) for line in named if explanation.edit is None)
    return (*first, NotToldApart(others)) if others else first
