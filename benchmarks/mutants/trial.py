"""One mutant: run, recorded, compared with the clean program bit by bit, and audited by it."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import tracekit_torch
from torch import nn
from tracekit_torch import precision

import tracekit
from benchmarks.mutants.edits import Point
from benchmarks.mutants.subject import Subject, forward, mutated, tokens
from benchmarks.mutants.truth import Truth, Values, truth, watched
from tracekit.trace import INPUT_SUFFIX, Trace

UNMUTATED = "unmutated"
"""The kind of an outcome that is of no mutant but of its twin."""
LONGEST_S = 120
"""Of CPU: a mutated loop may never end."""


class State(Enum):
    """What became of a mutant."""

    CRASHED = "crashes or does not load"
    EQUIVALENT = "changes nothing"
    ROUNDING = "changes less than rounding does"
    UNRECORDED = "cannot be recorded or audited"
    JUDGED = "judged"


@dataclass
class Outcome:
    """A mutant, what is true of it, and what was said."""

    family: str
    seed: int
    index: int
    kind: str
    function: str = ""
    lines: tuple[int, int] = (0, 0)
    """First and last line of the changed statement."""
    words: str = ""
    state: str = State.JUDGED.value
    said: str = ""
    """By the program that crashed, or by tracekit where it refused."""
    first: str = ""
    """The first site that changes by more than rounding."""
    deviations: float = 0.0
    """How far, in standard deviations of the rounding."""
    sites: list[str] = field(default_factory=list)
    """All sites that do."""
    touched: list[str] = field(default_factory=list)
    """All sites at which the formula changes, be it by less than rounding, in the order of the computation."""
    found: list[str] = field(default_factory=list)
    """Culprits, in the order of the computation."""
    claimed: list[tuple[str, int]] = field(default_factory=list)
    """File and line of the edits that explain the first culprit."""
    explained: str = ""
    """The id of the first culprit's explanation."""
    seconds: float = 0.0

    @property
    def judged(self) -> bool:
        return self.state == State.JUDGED.value

    @property
    def site_right(self) -> bool:
        """Whether the first culprit is the first site that changes provably, or one before it that changes, too."""
        if not self.found or self.found[0] not in self.touched:
            return False
        return self.touched.index(self.found[0]) <= self.touched.index(self.first)

    @property
    def elsewhere(self) -> list[str]:
        """Culprits at which nothing changes: false alarms."""
        return sorted(set(self.found) - set(self.touched))

    @property
    def missed(self) -> list[str]:
        """Sites that change and are no culprits."""
        return sorted(set(self.sites) - set(self.found))

    @property
    def line_right(self) -> bool | None:
        """Whether a claimed line is the changed statement's; None where none is claimed."""
        if not self.claimed:
            return None
        return any(self.lines[0] <= line <= self.lines[1] for _, line in self.claimed)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Recorded:
    """A trace of a model, and its tensors."""

    path: Path
    values: Values


def tried(subject: Subject, point: Point, seed: int, index: int, scratch: Path) -> Outcome:
    """Run one mutant and judge it."""
    began = time.process_time()
    out = Outcome(subject.name, seed, index, point.kind.value, point.function)
    out.lines, out.words = (point.lines[0], point.lines[-1]), f"line {point.line}: {point.words()}"
    ids = tokens(seed * 1000 + index // 20)
    try:
        with no_longer_than(LONGEST_S), mutated(subject, point) as build:
            changed = build()
            forward(changed, ids)
            recorded = record(build(), ids, scratch / "mutant.tklog")
            exact = build()
            precision.run_in(exact, "float64")
            with tracekit.open(recorded.path) as trace:
                _judge(out, subject, recorded, exact, trace, ids)
    except (Exception, TooLong) as error:
        out.state = State.UNRECORDED.value if isinstance(error, tracekit.TraceError) else State.CRASHED.value
        out.said = f"{type(error).__name__}: {str(error)[:200]}"
    out.seconds = time.process_time() - began
    return out


def record(model: nn.Module, ids: torch.Tensor, path: Path) -> Recorded:
    """Record a model over given tokens."""
    path.unlink(missing_ok=True)
    with warnings.catch_warnings(), tracekit_torch.record(model, path):
        warnings.simplefilter("ignore")
        values, run = watched(model, ids)
        run()
    return Recorded(path, values)


def recorded_rows(trace: Trace) -> dict[str, set[int]]:
    """Positions that are recorded, by site; `logits` among them, and inputs that are another module's output."""
    rows: dict[str, set[int]] = {}
    for sequence in trace.sequences:
        held = dict(sequence.sites)
        for row in sequence.site_table.values():
            if row.input is not None and row.input in held:
                held.setdefault(row.name + INPUT_SUFFIX, held[row.input])
        for name, data in held.items():
            for first, stop in data.ranges:
                rows.setdefault(name, set()).update(range(first, stop))
        for index in range(sequence.step_count):
            rows.setdefault("logits", set()).add(sequence.step(index).position)
    return rows


def _judge(
    out: Outcome, subject: Subject, recorded: Recorded, exact: nn.Module, trace: Trace, ids: torch.Tensor
) -> None:
    found = truth(subject.model, subject.exact, exact, ids, recorded.values, recorded_rows(trace))
    out.touched = list(dict.fromkeys(change.site for change in found.changes if change.deviations))
    if found.first is None:
        out.state = (State.ROUNDING if out.touched else State.EQUIVALENT).value
    else:
        out.first, out.deviations, out.sites = found.first.site, found.first.deviations, sorted(found.sites)
    if not out.touched:
        return
    heard(out, audited(subject, trace), found)


def audited(subject: Subject, trace: Trace) -> tracekit.Audit:
    """The audit by the reference; what culprits do to the logits, which is not scored, is not worked out."""
    return tracekit.audit(trace, subject.folder, by=tracekit_torch.by_reference(subject.reference).__call__)


def heard(out: Outcome, audit: tracekit.Audit, found: Truth | None = None) -> None:
    """Write down what an audit found."""
    culprits = sorted(audit.culprits, key=lambda one: (one.sequence, one.step, one.order))
    out.found = [culprit.site for culprit in culprits]
    if audit.non_finite is not None and audit.non_finite.site not in out.found:
        out.found.append(audit.non_finite.site)  # what is computed from it is not judged
    explanation = culprits[0].explanation if culprits else None
    if explanation is not None:
        lines = getattr(explanation, "lines", ())
        out.claimed = [(line.file, line.line) for line in lines]
        out.explained = "edit" if lines else str(getattr(getattr(explanation, "mistake", None), "id", "recipe"))


def twin(subject: Subject, seed: int, index: int, scratch: Path) -> Outcome:
    """The unmutated twin: the same source, compiled in the same way."""
    out = Outcome(subject.name, seed, index, UNMUTATED)
    with mutated(subject, None) as build:
        recorded = record(build(), tokens(seed * 1000 + index // 20), scratch / "twin.tklog")
    with tracekit.open(recorded.path) as trace:
        heard(out, audited(subject, trace))
    return out


class TooLong(BaseException):
    """A mutant runs on and on."""


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
