"""What is found of a sampler's step, and of the end of a generation. Two values in a tuple are the reference's and the
candidate's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tracekit.align.pair import Side
from tracekit.compare.findings import DrawField

# -------------------------------------------------------------------- survivors


@dataclass(frozen=True)
class SurvivorCounts:
    """How many tokens survive."""

    counts: tuple[int, int]


@dataclass(frozen=True)
class SurvivesAlone:
    """Tokens that survive on one side alone."""

    side: Side
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class ProbabilitiesDiffer:
    """The same survivors with other probabilities."""

    count: int
    log_ratio: float  # nats, the largest
    allowed: float | None  # nats that the logits' difference accounts for; None where it is not known


@dataclass(frozen=True)
class CutMissed:
    """How far the tokens that survive on one side alone are from the cut."""

    distance: float  # nats or probability mass
    error: float  # largest difference of a logit
    within: bool  # the error may have moved all of them


@dataclass(frozen=True)
class NotFromLogits:
    """A side's survivors are not what its logits give under the declared settings."""

    side: Side
    reference_settings: bool  # the candidate declares others


@dataclass(frozen=True)
class ReferenceNotAsStated:
    """The reference departs from its settings, and the candidate follows its own."""


@dataclass(frozen=True)
class ProcessorRun:
    """A processor as it was recorded; `settings` are its numbers, as text."""

    name: str
    settings: tuple[tuple[str, str], ...]
    survivors: int | None


@dataclass(frozen=True)
class OtherProcessor:
    """At one place of the chain the sides run different processors."""

    processors: tuple[ProcessorRun, ProcessorRun]


@dataclass(frozen=True)
class ProcessorLeaves:
    """The first processor that leaves another number of tokens."""

    processors: tuple[ProcessorRun, ProcessorRun]


@dataclass(frozen=True)
class ProcessorOnOneSide:
    """A processor at the end of one side's chain that the other does not run."""

    side: Side
    processor: ProcessorRun


@dataclass(frozen=True)
class NotRecomputed:
    """Settings and processors of a side that tracekit does not know."""

    side: Side
    names: tuple[str, ...]


# -------------------------------------------------------------------- draws


@dataclass(frozen=True)
class DrawCounts:
    """The first step at which the sides draw another number of times."""

    step: int
    counts: tuple[int, int]


@dataclass(frozen=True)
class Redraws:
    """The same number of draws up to a step, and how many stop tokens each side draws again in the whole segment."""

    step: int
    draws: int
    redraws: tuple[int, int]


@dataclass(frozen=True)
class OtherDraw:
    """Another use of the generator."""

    field: DrawField
    values: tuple[int | str, int | str]
    same_survivors: bool
    same: tuple[DrawField, ...]  # what both sides recorded of the draw and is equal
    algorithm: bool  # another sampling algorithm gives every token of the candidate


@dataclass(frozen=True)
class DrawsMoveOn:
    """A draw takes two words for each survivor: from a step at which other tokens survive, the sides draw elsewhere."""

    words: tuple[int | str, int | str]


@dataclass(frozen=True)
class OffsetInRaces:
    """A shift of the generator that is a whole number of races over the vocabulary."""

    races: int
    vocabulary: int


@dataclass(frozen=True)
class ShiftChanges:
    """The distance between the generators is another one at later steps."""


# -------------------------------------------------------------------- tokens


class Known(StrEnum):
    """What is known of something that both sides should have recorded."""

    SAME = "same"
    WITHIN_ROUNDING = "within rounding"  # it differs, by no more than the logits' error
    REFERENCE = "reference"  # recorded there alone
    CANDIDATE = "candidate"
    NEITHER = "neither"


@dataclass(frozen=True)
class OtherToken:
    """Another token, and what is known of what it was drawn from."""

    survivors: Known
    draws: Known


@dataclass(frozen=True)
class TokenRanks:
    """Where each side's token stands among its own logits: all that is known of how it was chosen."""

    reference: int  # 1: the largest
    candidate: int
    largest: int  # of the reference's steps up to this one, those with the largest
    steps: int


@dataclass(frozen=True)
class BothUnseeded:
    """Both sides draw from generators that nobody seeded."""

    generators: tuple[str, ...]


class Judgement(StrEnum):
    """What a margin says."""

    ROUNDING = "rounding"  # the error covers it, and the logits flip the token
    NOT_THE_LOGITS = "not the logits"  # the error covers it, but they do not
    FAULT = "fault"  # the error does not cover it


@dataclass(frozen=True)
class TokenMarginMeasured:
    """The margin between the two tokens, and the sides' difference."""

    margin: float  # nats
    error: float
    judgement: Judgement


@dataclass(frozen=True)
class OwnDistribution:
    """Each side's distribution gives its own token, whichever side's draws are used."""


@dataclass(frozen=True)
class CutCrossed:
    """Tokens that rounding moved across a cut."""

    tokens: int
    follows: bool  # each side's logits give its survivors under the declared settings
    distance: float | None  # of the nearest of them from the cut
    unit: str | None


@dataclass(frozen=True)
class DrawsUnknown:
    """The draws cannot be regenerated, so a near-tie is neither shown nor excluded."""


# -------------------------------------------------------------------- the end


@dataclass(frozen=True)
class Ends:
    """The common tokens agree, and where each side ends."""

    tokens: tuple[int, int]
    reasons: tuple[str | None, str | None]
