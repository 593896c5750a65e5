"""What a cause rule says: the cause, the finding that it is about, the evidence, the mistake, the margins."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tracekit.align.pair import Side
from tracekit.compare.findings import Finding
from tracekit.mistakes.explanation import Explanation
from tracekit.verdict.cause import Cause
from tracekit.verdict.decision import Decision


class Flip(StrEnum):
    """The ingredient of a step that changes its token when it is taken from the other side."""

    LOGITS = "logits"
    FILTER = "filter"
    DRAWS = "draws"
    LOGITS_AND_DRAWS = "logits and draws"
    SAMPLER = "sampler"  # a side does not give its own token under the stated way of drawing


@dataclass(frozen=True)
class Combination:
    """A step's token from one side's logits with one side's draws."""

    logits: Side
    draws: Side
    token: int


class Scale(StrEnum):
    """What a token's margin is measured on, in nats either way."""

    LOGITS = "logits"  # greedy: the gap of two scores
    RACE = "race"  # sampled: the gap of two in the exponential race


@dataclass(frozen=True)
class TokenMargin:
    """How narrowly the reference chose its token over the candidate's, and how far the sides are apart, in nats."""

    kind: Scale
    margin: float
    error: float  # how far the sides' values of the two tokens are apart, added up


@dataclass(frozen=True)
class Narrowest:
    """The narrowest margin of a run, and where."""

    value: float
    sequence: int
    step: int
    error: float | None = None  # largest difference of a logit there, where both sides recorded logits


@dataclass(frozen=True)
class NarrowestCut:
    """The smallest distance of a token from a cut of the filter."""

    value: float
    sequence: int
    step: int
    processor: str
    unit: str
    token: int
    error: float | None = None


@dataclass(frozen=True)
class RunMargins:
    """How narrowly the compared steps went: what a parity rests on, and what a divergence has to be measured by."""

    steps: int  # measured on
    error: float | None = None  # largest difference of a logit
    logit_gap: Narrowest | None = None  # smallest gap between the two largest logits of the reference
    cut: NarrowestCut | None = None
    race: Narrowest | None = None  # smallest margin, nats, by which the exponential race was won


@dataclass(frozen=True)
class Margins:
    """What narrowly was, or was not, crossed: over the run, and at the step at which the sides diverge."""

    run: RunMargins | None = None
    token: TokenMargin | None = None
    combinations: tuple[Combination, ...] = ()
    flips: Flip | None = None  # None where no token flips, or nothing can be drawn again
    cut_distance: float | None = None  # of a token that survives on one side alone
    logit_error: float | None = None


@dataclass(frozen=True)
class Ruling:
    """What a rule concludes. `evidence` holds typed findings, in the order in which a person reads them."""

    cause: Cause
    finding: Finding | None
    evidence: tuple[object, ...]
    explanation: Explanation | None = None
    margins: Margins = field(default_factory=Margins)
    decision: Decision | None = None  # None: what the cause's rule decides
