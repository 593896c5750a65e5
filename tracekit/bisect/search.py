"""The search: builds are run and compared with the good one, as `tracekit diff` does, until neighbours are told apart.

A build is good where it computes what the good one does, up to rounding, and bad where it departs by more. Where that
cannot be said (it does not build, it does not run, rounding decided a token before anything else could show), the build
is skipped, as `git bisect skip` does. A first bad build is named only if the build right before it is good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tracekit.bisect.history import CannotBuild, History
from tracekit.errors import TraceError
from tracekit.exit_codes import ExitCode
from tracekit.formats.opening import open_trace
from tracekit.programs.recorded import recorded
from tracekit.trace import Trace
from tracekit.verdict.cause import Cause
from tracekit.verdict.decide import diff
from tracekit.verdict.decision import Decision
from tracekit.verdict.verdict import Verdict


class Judgement(StrEnum):
    """What a build is."""

    GOOD = "good"
    BAD = "bad"
    NEAR_TIE = "near_tie"  # a token differs, and rounding decides it: what comes after is not comparable
    WITHHELD = "withheld"  # something was not recorded
    NO_BUILD = "no_build"
    NO_RUN = "no_run"


@dataclass(frozen=True)
class BisectStep:
    """A build that was tried. `why`: what failed."""

    index: int
    build: str
    judgement: Judgement
    verdict: Verdict | None = None
    why: str | None = None


@dataclass(frozen=True)
class Bisected:
    """What a search found. `good`: the last build known to be good, `bad`: the first known to be bad."""

    builds: tuple[str, ...]
    good: int
    bad: int
    steps: tuple[BisectStep, ...]

    @property
    def first_bad(self) -> BisectStep | None:
        """The build that brought the divergence; None where that cannot be told."""
        return next((step for step in self.steps if step.index == self.bad), None) if self.certain else None

    @property
    def certain(self) -> bool:
        """Whether the last good build and the first bad one are neighbours."""
        return self.bad == self.good + 1

    @property
    def between(self) -> tuple[str, ...]:
        """Builds of which one is the first that is bad."""
        return self.builds[self.good + 1 : self.bad + 1]

    @property
    def several(self) -> bool:
        """Whether the bad build departs elsewhere than the first one that does: more was changed later on."""
        ends = [step.verdict for step in self.steps if step.index in (self.bad, len(self.builds) - 1)]
        return len({(verdict.cause, verdict.site) for verdict in ends if verdict is not None}) > 1

    @property
    def exit_code(self) -> ExitCode:
        """`AGREE` where a build is named, `DIFFER` where none can be."""
        return ExitCode.AGREE if self.certain else ExitCode.DIFFER


Told = Callable[[BisectStep], None]


def bisect(
    history: History,
    folder: Path,
    *,
    weights: str | None = None,
    timeout: float | None = None,
    told: Told = lambda step: None,
) -> Bisected:
    """Find the first bad build. Builds and traces are made in `folder`; `weights`: the checkpoint, if it is not where
    the traces say; `timeout`: of one run, in seconds; `told` hears each build as it is judged.

    Raises TraceError where the good build cannot be run, or the bad one is not known to be bad.
    """
    builds = tuple(history.builds)
    if len(builds) < 2:
        raise TraceError("there is no build from the good one to the bad one; give two builds, the older one as --good")
    ready = history.ready(0, folder / "0")
    good = recorded(list(ready.words), folder / "0-run", cwd=ready.cwd, variables=ready.variables, timeout=timeout)
    with open_trace(good) as reference:
        search = _Search(history, folder, reference, weights, timeout)
        steps = []
        for step in search.steps(len(builds)):
            told(step)
            steps.append(step)
        return Bisected(builds, search.good, search.bad, tuple(steps))


class _Search:
    """One search: `good` and `bad` close in on each other."""

    def __init__(
        self, history: History, folder: Path, reference: Trace, weights: str | None, timeout: float | None
    ) -> None:
        self._history, self._folder, self._reference = history, folder, reference
        self._weights, self._timeout = weights, timeout
        self.good, self.bad = 0, len(history.builds) - 1

    def steps(self, count: int) -> Iterator[BisectStep]:
        last = self._judged(count - 1)
        yield last
        if last.judgement is not Judgement.BAD:
            raise TraceError(
                f"{last.build}: the bad build {_SAID[last.judgement]}{f': {last.why}' if last.why else ''}"
            )
        skipped: set[int] = set()
        while left := [index for index in range(self.good + 1, self.bad) if index not in skipped]:
            middle = (self.good + self.bad) / 2
            step = self._judged(min(left, key=lambda index: (abs(index - middle), index)))
            yield step
            if step.judgement is Judgement.GOOD:
                self.good = step.index
            elif step.judgement is Judgement.BAD:
                self.bad = step.index
            else:
                skipped.add(step.index)

    def _judged(self, index: int) -> BisectStep:
        """Make a build, run it, compare it with the good one."""
        build = self._history.builds[index]
        try:
            ready = self._history.ready(index, self._folder / str(index))
        except CannotBuild as error:
            return BisectStep(index, build, Judgement.NO_BUILD, why=str(error))
        try:
            path = recorded(
                list(ready.words),
                self._folder / f"{index}-run",
                cwd=ready.cwd,
                variables=ready.variables,
                timeout=self._timeout,
            )
            with open_trace(path) as trace:
                verdict = diff(self._reference, trace, weights=self._weights)
        except TraceError as error:
            return BisectStep(index, build, Judgement.NO_RUN, why=str(error))
        return BisectStep(index, build, _judgement(verdict), verdict)


_SAID = {
    Judgement.GOOD: "computes what the good one does; there is nothing to look for",
    Judgement.NEAR_TIE: "differs from the good one by rounding alone (near-tie); there is nothing to look for",
    Judgement.WITHHELD: "cannot be compared with the good one; record it whole",
    Judgement.NO_BUILD: "cannot be built",
    Judgement.NO_RUN: "does not run",
}


def _judgement(verdict: Verdict) -> Judgement:
    if verdict.decision is Decision.WITHHELD:
        return Judgement.WITHHELD
    if verdict.cause is Cause.NEAR_TIE:
        return Judgement.NEAR_TIE
    return Judgement.BAD if verdict.decision is Decision.DIVERGENCE else Judgement.GOOD
