"""What the search finds: one frozen dataclass for each kind of difference, with its place in the computation.

Two values in a tuple are the reference's and the candidate's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import ClassVar

from tracekit.align.fed_rows import RowsWithoutEqual
from tracekit.align.pair import Side


class Stage(IntEnum):
    """Where in a step something is found, in the order of the computation."""

    INPUT = 0
    SITE = 1
    LOGITS = 2
    SURVIVORS = 3
    DRAW = 4
    TOKEN = 5
    STOP = 6


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that differs beyond rounding."""

    sequence: int  # the reference's
    step: int
    position: int | None
    site: str
    order: int = 0  # execution order of the site in the reference

    stage: ClassVar[Stage]
    """Where in the step."""

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """Earlier findings have smaller ranks."""
        return (self.step, int(self.stage), self.order, self.position or 0)


# -------------------------------------------------------------------- what was fed


@dataclass(frozen=True)
class PartDiffers:
    """A part that the prompt was put together from: its entries or, of a text, the text itself."""

    name: str
    lengths: tuple[int, int] | None = None
    texts: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class InputDiffers(Finding):
    """A tensor of the prompt; `position` is the first entry that differs."""

    stage: ClassVar[Stage] = Stage.INPUT
    name: str
    lengths: tuple[int, int]
    values: tuple[int | None, int | None] | None = None  # of that entry; None where a side has none
    texts: tuple[str | None, str | None] = (None, None)
    parts: tuple[PartDiffers, ...] = ()
    relative: float | None = None
    """Of numbers in one shape: the norm of what they are off by, over that of the reference's."""


@dataclass(frozen=True, kw_only=True)
class RowsDiffer(Finding):
    """More rows were fed on one side for the same prompt entries; `position` is the first such row, where known."""

    stage: ClassVar[Stage] = Stage.INPUT
    fed: tuple[int, int]
    entries: tuple[int, int]
    unmatched: RowsWithoutEqual | None


# -------------------------------------------------------------------- what was computed


@dataclass(frozen=True, kw_only=True)
class SiteWrong(Finding):
    """A site's error is beyond the tolerance."""

    stage: ClassVar[Stage] = Stage.SITE
    candidate_site: str
    ratio: float  # error over tolerance
    error: float  # relative L2
    wrong: int  # positions beyond the tolerance
    positions: int  # positions compared


@dataclass(frozen=True, kw_only=True)
class PassedOn(Finding):
    """The candidate holds an earlier site's tensor here, where the reference computed another value."""

    stage: ClassVar[Stage] = Stage.SITE
    candidate_site: str  # whose tensor it is
    units: float  # roundoff units that the two are apart in the reference
    error: float  # relative L2 of that distance


@dataclass(frozen=True, kw_only=True)
class LogitsWrong(Finding):
    """The logits' error at a step is beyond the tolerance."""

    stage: ClassVar[Stage] = Stage.LOGITS
    ratio: float
    error: float


@dataclass(frozen=True, kw_only=True)
class VocabulariesDiffer(Finding):
    """The logits of the two sides are of different numbers of tokens."""

    stage: ClassVar[Stage] = Stage.LOGITS
    tokens: tuple[int, int]
    order: int = 1  # after values that are wrong


# -------------------------------------------------------------------- what was sampled


@dataclass(frozen=True, kw_only=True)
class SurvivorsDiffer(Finding):
    """Other survivors, or other probabilities of the same ones, than the logits explain."""

    stage: ClassVar[Stage] = Stage.SURVIVORS
    lost: tuple[int, ...]  # tokens that survive in the reference alone
    gained: tuple[int, ...]  # tokens that survive in the candidate alone
    counts: tuple[int, int]
    departs: Side | None = None  # the one side whose survivors do not follow the reference's settings
    cut_distance: float | None = None  # largest distance to the cut of a token that differs
    logit_error: float | None = None
    log_ratio: float | None = None  # nats: largest difference of a probability, of the same survivors
    allowed: float | None = None  # what the logits' error may make of the ratio, or of the distance


class DrawField(StrEnum):
    """What differs of a draw."""

    COUNT = "count"
    GENERATOR = "generator"
    SEED = "seed"
    OFFSET = "offset"
    OP = "op"
    WORDS = "words"


DRAWS = "draws"
"""Site of every `DrawDiffers`."""


@dataclass(frozen=True, kw_only=True)
class DrawDiffers(Finding):
    """Another use of the random generator."""

    stage: ClassVar[Stage] = Stage.DRAW
    field: DrawField
    values: tuple[int | str, int | str]
    draw: int | None = None  # which of the step's draws; None where their number differs


@dataclass(frozen=True)
class Chosen:
    """A token that a side chose, and its text where that is recorded."""

    id: int
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class TokenDiffers(Finding):
    """Another token."""

    stage: ClassVar[Stage] = Stage.TOKEN
    reference: Chosen
    candidate: Chosen


@dataclass(frozen=True, kw_only=True)
class StopDiffers(Finding):
    """The same tokens, of which one side has more."""

    stage: ClassVar[Stage] = Stage.STOP
    steps: tuple[int, int]
    reasons: tuple[str | None, str | None]
