"""What a postmortem found: of every seed, of every group of seeds that fail alike, and of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from tracekit.trace import Json
from tracekit.verdict.cause import Cause
from tracekit.verdict.record import VerdictRecord

FORMAT = 1


class State(StrEnum):
    """What became of a seed."""

    PASS = "pass"
    FAIL = "fail"
    LATENT = "latent"  # every token agrees, but its probability differs by more than rounding
    NEAR_TIE = "near-tie"  # tokens differ by rounding alone: no failure
    CRASH = "crash"  # a program ended with an error
    TIMEOUT = "timeout"
    TROUBLE = "trouble"  # nothing was recorded, or the traces cannot be compared


BROKEN = (State.CRASH, State.TIMEOUT, State.TROUBLE)
"""There are no two whole runs to compare."""
FAILING = (State.FAIL, *BROKEN)


@dataclass(frozen=True)
class Run:
    """One program with one seed."""

    exit_code: int | None  # None: stopped at its time limit, or never started
    tokens: int  # over all sequences
    ends: tuple[str, ...] = ()  # why each sequence ended
    fallbacks: int = 0  # draws again because of repetition
    redraws: int = 0
    trace: str | None = None  # file name in the seed's folder; None where nothing was recorded or kept
    trouble: str | None = None  # one line

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Run:
        """The inverse of `asdict`. Raises KeyError or TypeError where it is not one."""
        return cls(**{**row, "ends": tuple(row.get("ends", ()))})


@dataclass(frozen=True)
class SeenFault:
    """A fault that a seed shows."""

    cause: Cause
    site: str | None
    mechanism: str | None  # id of the mistake
    step: int | None
    text: str


@dataclass(frozen=True)
class Seed:
    """What became of a seed, and why."""

    seed: int
    state: State
    reference: Run
    candidate: Run
    sequence: int | None = None  # where the tokens differ first
    step: int | None = None
    verdict: VerdictRecord | None = None  # None where every token agrees
    also: tuple[SeenFault, ...] = ()  # further faults of the same seed
    margins: tuple[float, ...] = ()  # of the reference's steps: how far, in nats, the runner-up of each draw was
    chance: float | None = None  # nats: log-probability that another draw gives the reference's tokens
    apart: float | None = None  # nats: median difference of the survivors' log-probabilities over the steps
    note: str | None = None
    again: bool = False  # trouble of this machine's, not of its programs: tried again the next time
    text: str | None = None  # the verdict as a person reads it
    headline: str | None = None  # its line of decision, cause and place

    def to_json(self) -> Json:
        """Ready for `json.dumps`; the verdict as `tracekit diff --json` prints it."""
        row = asdict(replace(self, verdict=None))
        return row | {"verdict": None if self.verdict is None else self.verdict.json}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Seed:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError where it is not one."""
        fields = dict(row)
        fields["state"] = State(fields["state"])
        fields["reference"] = Run.from_json(fields["reference"])
        fields["candidate"] = Run.from_json(fields["candidate"])
        fields["also"] = tuple(
            SeenFault(**fault | {"cause": Cause(fault["cause"])}) for fault in fields.get("also", ())
        )
        if fields.get("verdict") is not None:
            fields["verdict"] = VerdictRecord.from_json(fields["verdict"])
        fields["margins"] = tuple(fields.get("margins", ()))
        return cls(**fields)


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % confidence interval (Wilson 1927)."""

    count: int
    of: int
    low: float
    high: float


class Agreement(StrEnum):
    """What the two sides of a seed have in common."""

    SURVIVORS = "survivors"
    PROMPTS = "prompts"
    SETTINGS = "settings"


@dataclass(frozen=True)
class AllAgree:
    """The seeds that pass agree in what the fault changes: none of them has it."""

    passing: int
    of: Agreement


@dataclass(frozen=True)
class OtherDraws:
    """How likely a seed that passes would be if its tokens had been drawn with the fault."""

    passing: int
    log10_chance_at_most: float


@dataclass(frozen=True)
class WrongProbabilities:
    """How likely a seed keeps all of its tokens with probabilities as wrong as those of the seeds that fail."""

    error_nats: float
    pass_probability: float
    margins: int  # that this is computed from
    passing: int
    largest_apart_nats: float  # of the seeds that pass
    suspicious: bool  # whether a seed that passes is apart by more than rounding


@dataclass(frozen=True)
class EndsTooSoon:
    """How many of the seeds that pass end before the fault shows first."""

    passing: int
    first_step: int
    too_short: int


Chance = AllAgree | OtherDraws | WrongProbabilities | EndsTooSoon
"""May seeds that pass have the fault, too? What that is judged by."""


@dataclass(frozen=True)
class Group:
    """Seeds that fail alike."""

    name: str  # a folder's name: `layer-rotary-table-rounded`
    cause: str  # of the verdict, or `crash`, `timeout`, `trouble`
    site: str | None
    mechanism: str | None  # id of the mistake
    failing: bool  # False: near-ties
    seeds: tuple[int, ...]
    steps: tuple[int | None, ...]  # first divergent step of each, as its verdict says
    latent: tuple[int, ...]  # of these seeds, those whose tokens agree all the same
    example: int  # the seed whose verdict is shown
    verdict: VerdictRecord | None  # the example's
    text: str  # the example's verdict as a person reads it
    rate: Rate
    luck: Chance | None = None  # may seeds that pass have the fault, too?
    overlaps: Mapping[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # other group -> seeds that show its fault too


@dataclass(frozen=True)
class Postmortem:
    """All of it. Holds no times: the same runs give the same bytes."""

    reference: str  # the command with {seed}, or a folder of traces
    candidate: str
    seeds: tuple[Seed, ...]
    groups: tuple[Group, ...]
    failing: Rate
    control: int | None = None  # a passing seed that was recorded in full, too
    control_text: str | None = None  # its verdict
    control_headline: str | None = None
    complete: bool = True  # False: seeds are missing
