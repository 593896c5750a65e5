"""The verdict of a diff: its fields, and what they are made of. Sentences and JSON of it are `report`'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracekit.align.pair import Side
from tracekit.auditing.consequence import Consequences
from tracekit.auditing.not_audited import NotAudited
from tracekit.compare.drift import Drift
from tracekit.compare.findings import Finding, TokenDiffers
from tracekit.compare.search import Counts
from tracekit.exit_codes import ExitCode
from tracekit.inspection.settings import Difference
from tracekit.mistakes.culprits import ExplainedCulprit
from tracekit.mistakes.explanation import Explanation
from tracekit.verdict.cause import Cause
from tracekit.verdict.coverage import Coverage
from tracekit.verdict.decision import Decision
from tracekit.verdict.ruling import Margins

EXIT_CODES = {
    Decision.PARITY: ExitCode.AGREE,
    Decision.DIVERGENCE: ExitCode.DIFFER,
    Decision.WITHHELD: ExitCode.TROUBLE,
}


@dataclass(frozen=True)
class Accused:
    """A site at fault. Without an audit: the first that is off, and whose fault that is is not known."""

    side: Side
    site: str
    step: int
    position: int | None
    culprit: ExplainedCulprit | None = None  # what the audit says of it

    @property
    def explanation(self) -> Explanation | None:
        """The mistake, where one accounts for the error."""
        return None if self.culprit is None else self.culprit.explanation


@dataclass(frozen=True)
class Unmatched:
    """Sites on one side only, and sequences without a partner, of the reference and of the candidate."""

    reference: tuple[str, ...] = ()
    candidate: tuple[str, ...] = ()
    sequences: tuple[int, ...] = ()
    candidate_sequences: tuple[int, ...] = ()


@dataclass(frozen=True)
class AuditShare:
    """What was recomputed of the candidate, and what was not."""

    checkpoint: str  # its path
    sites: int
    values: int
    not_audited: Mapping[str, NotAudited]  # site -> why
    recipe_not_followed: tuple[str, ...]  # sites at which both sides depart from the recipe alike
    tests: int  # of the candidate, at a false alarm of `FALSE_ALARMS` for all together


@dataclass(frozen=True)
class Verdict:
    """The answer of a diff. Of the fields that hold `object`, each is a typed finding with its words in `report`."""

    decision: Decision
    cause: Cause | None
    finding: Finding | None  # the divergence
    evidence: tuple[object, ...]
    calibration: str  # oracle, noise or uncalibrated
    explanation: Explanation | None = None
    culprits: tuple[Accused, ...] = ()
    token: TokenDiffers | None = None  # the first token that differs
    margins: Margins = field(default_factory=Margins)
    compared: Counts | None = None  # None: nothing was
    unexercised: tuple[object, ...] = ()
    unmatched: Unmatched = field(default_factory=Unmatched)
    differences: tuple[Difference, ...] = ()
    notes: tuple[object, ...] = ()
    audit: AuditShare | None = None
    drift: Drift | None = None  # how the logits' error changes over the steps
    uncalibrated: tuple[str, ...] = ()  # sites that differ and that the oracle or the noise does not hold
    coverage: Coverage | None = None
    consequences: Consequences | None = None  # what the culprits do to the logits; only a reference program tells

    @property
    def verdict(self) -> str:
        """`parity`, `divergence` or `withheld`."""
        return self.decision.value

    @property
    def sequence(self) -> int | None:
        """The reference's, of the divergence."""
        return None if self.finding is None else self.finding.sequence

    @property
    def step(self) -> int | None:
        """Of the divergence."""
        return None if self.finding is None else self.finding.step

    @property
    def position(self) -> int | None:
        """Of the divergence."""
        return None if self.finding is None else self.finding.position

    @property
    def site(self) -> str | None:
        """Of the divergence."""
        return None if self.finding is None else self.finding.site

    @property
    def exit_code(self) -> ExitCode:
        """What `tracekit diff` exits with."""
        return EXIT_CODES[self.decision]
