"""An engine run again with the right values at some of its sites, beside the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.consequence import StepTokens
from tracekit.exit_codes import ExitCode
from tracekit.inspection.site_rows import logits_reader, logits_width
from tracekit.mistakes.culprits import ExplainedCulprit
from tracekit.trace import Sequence


@dataclass(frozen=True)
class BesideReference:
    """One run's tokens and logits beside the reference's."""

    steps: int
    """That both have."""
    same: int
    """Steps from the first on with the reference's token."""
    error: float | None
    """Relative error of the logits, each step less its mean, over the steps with the same tokens before them; None
    where one side has none."""
    margin: float | None
    """The reference's logit of its token less that of this run's, at the first step whose tokens differ."""

    @property
    def whole(self) -> bool:
        """Whether every token is the reference's."""
        return self.same == self.steps


@dataclass(frozen=True)
class LiveRepair:
    """What came out of an engine with the right values at some sites. A right value is computed from the checkpoint and
    from what the engine itself computed before that site, so it mends what this site did and nothing else."""

    engine: str
    model: str
    checkpoint: str
    reference: str
    candidate: str
    sites: tuple[str, ...]
    """Where right values were written, in execution order."""
    culprits: tuple[ExplainedCulprit, ...]
    """Sites beyond their rounding bounds, written or not; choices of precision left out."""
    audited: int
    """Sites."""
    unaudited: int
    repeated: bool
    """Whether the engine, run again as it was, gave the candidate's logits bit for bit."""
    drawn: bool
    """Whether tokens are drawn, with the generator and seed of the candidate."""
    before: BesideReference
    after: BesideReference
    tokens: tuple[StepTokens, ...]
    """Of the steps that all three runs have."""
    texts: tuple[str, str, str]
    """The tokens of the reference, of the repaired run and of the candidate, as text."""

    @property
    def left(self) -> tuple[str, ...]:
        """Culprits that were left as they were."""
        return tuple(culprit.site for culprit in self.culprits if culprit.site not in self.sites)

    @property
    def exit_code(self) -> ExitCode:
        """0 where the tokens that come out are the reference's."""
        return ExitCode.AGREE if self.after.whole else ExitCode.DIFFER


def beside(reference: Sequence, run: Sequence) -> BesideReference:
    """A run's tokens and logits beside the reference's."""
    steps = min(reference.step_count, run.step_count)
    ours, theirs = np.asarray(reference.tokens[:steps]), np.asarray(run.tokens[:steps])
    other = np.flatnonzero(ours != theirs)
    same = int(other[0]) if other.size else steps
    comparable = min(steps, same + 1)
    error, margin = None, None
    if comparable and reference.logits(0, comparable) is not None and run.logits(0, comparable) is not None:
        right, made = (_centred(sequence, comparable, reference, run) for sequence in (reference, run))
        error = float(np.linalg.norm(made - right) / max(float(np.linalg.norm(right)), np.finfo(np.float64).tiny))
        if same < steps and max(ours[same], theirs[same]) < right.shape[1]:
            margin = float(right[same, ours[same]] - right[same, theirs[same]])
    return BesideReference(steps, same, error, margin)


def _centred(sequence: Sequence, steps: int, *both: Sequence) -> NDArray[np.float64]:
    """Logits of the first steps, [steps, tokens that both have], each step less its mean."""
    width = min(logits_width(each) or 0 for each in both)
    values = logits_reader(sequence, width)(0, steps).astype(np.float64)
    return np.asarray(values - values.mean(axis=1, keepdims=True))
