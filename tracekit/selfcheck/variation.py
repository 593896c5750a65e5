"""What is varied, what came of it, and what a program must be able to do for it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from tracekit.checkpoints.stated import NoCheckpoint
from tracekit.exit_codes import ExitCode
from tracekit.mistakes.culprits import ExplainedAudit
from tracekit.verdict.verdict import Verdict


class Way(StrEnum):
    """How a run differs from the base run."""

    SETTING = "setting"  # one setting has another value
    CHUNKS = "chunks"  # prompt and generated tokens as one prompt, read so many at a time
    AT_ONCE = "at_once"  # prompt and generated tokens as one prompt, read in one call
    SECOND_REQUEST = "second_request"  # the same request again, in the same process
    PREFIX_REUSED = "prefix_reused"  # the same again, on the first positions of the cache
    IN_A_BATCH = "in_a_batch"  # beside other requests, in one call
    WIDER_DTYPE = "wider_dtype"  # computed in a wider format, which is then the reference
    LONG_PROMPT = "long_prompt"  # a prompt beyond a limit of the configuration, read at once and in chunks
    CHECKPOINT = "checkpoint"  # the base run against its checkpoint, recomputed in float64


class Limit(StrEnum):
    """A length from which a model computes something else."""

    SLIDING_WINDOW = "sliding_window"
    ORIGINAL_POSITIONS = "original_max_position_embeddings"
    POSITIONS = "max_position_embeddings"


@dataclass(frozen=True)
class Variation:
    """One other way to compute what the base run computed. `name` and `value` say which setting is what, where one is;
    `limit`, which length is exceeded."""

    way: Way
    name: str | None = None
    value: str | None = None
    limit: Limit | None = None


class Outcome(StrEnum):
    """What came of a variation."""

    EQUAL = "equal"  # every compared value, bit for bit
    WITHIN_ROUNDING = "within_rounding"
    NEAR_TIE = "near_tie"  # a token differs, and rounding decides it: proved by the margin
    FAULT = "fault"
    WITHHELD = "withheld"  # no verdict: something was not recorded
    FAILED = "failed"  # the program did not run so
    NOT_TRIED = "not_tried"


@dataclass(frozen=True)
class Failed:
    """The program, or what reads its files, gave an error."""

    said: str


@dataclass(frozen=True)
class NoLayers:
    """Neither layers nor steps are recorded that could be compared."""


@dataclass(frozen=True)
class PromptTooLong:
    """It needs a prompt of more than so many positions."""

    positions: int


@dataclass(frozen=True)
class NoSiteAudited:
    """The trace holds no site that this checkpoint tells of."""

    checkpoint: str


@dataclass(frozen=True)
class CheckFinding:
    """A variation and what came of it. `verdict`: of the diff; `audit`: against the checkpoint; `why`: what failed, or
    why it was not tried."""

    variation: Variation
    outcome: Outcome
    verdict: Verdict | None = None
    audit: ExplainedAudit | None = None
    why: Failed | NoLayers | PromptTooLong | NoSiteAudited | NoCheckpoint | None = None


@dataclass(frozen=True)
class Checked:
    """All variations of a run. `base`: what was run, `steps` and `positions` of it."""

    base: str
    steps: int
    positions: int
    findings: tuple[CheckFinding, ...]

    def of(self, outcome: Outcome) -> tuple[CheckFinding, ...]:
        """Those of one outcome."""
        return tuple(finding for finding in self.findings if finding.outcome is outcome)

    @property
    def exit_code(self) -> ExitCode:
        """`DIFFER` where a variation computes something else, `TROUBLE` where one failed or none could be judged."""
        if self.of(Outcome.FAULT):
            return ExitCode.DIFFER
        judged = (Outcome.EQUAL, Outcome.WITHIN_ROUNDING, Outcome.NEAR_TIE)
        done = any(self.of(outcome) for outcome in judged)
        trouble = self.of(Outcome.FAILED) or self.of(Outcome.WITHHELD) or not done
        return ExitCode.TROUBLE if trouble else ExitCode.AGREE


Settings = Mapping[str, str]
"""Settings of a run by name, those of the base left out."""

PROMPT_IDS, CHUNK = "prompt_ids", "chunk"
THREADS, DTYPE = "threads", "dtype"
REQUESTS, KEEP_PREFIX, BATCH = "requests", "keep_prefix", "batch"
"""Settings that a way is made of; a program may have others, which are varied one by one."""


class Varied(Protocol):
    """A program that computes one request in several ways."""

    @property
    def base(self) -> str:
        """What is run, for a report."""

    @property
    def settings(self) -> frozenset[str]:
        """Names of the settings that it takes."""

    @property
    def values(self) -> Mapping[str, Seq[str]]:
        """Values of settings to try, one by one, besides the base's."""

    def record(self, settings: Settings, folder: Path) -> Path:
        """Run it, and return its trace, a file in `folder`. Raises TraceError, in one line."""
