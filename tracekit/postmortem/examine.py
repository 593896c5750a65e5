"""One seed: record both programs, sparsely; where that is not enough to know why, both again, in full.

What is recorded is in the store before anything is made of it: nothing that is there is run again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from tracekit.align.pair import Side
from tracekit.align.sites import SequencePair
from tracekit.compare.findings import DRAWS
from tracekit.compare.search import first_token_difference
from tracekit.compare.survivors import log_ratio
from tracekit.formats.opening import open_trace
from tracekit.inspection.losses import ProbabilitiesNotJudged, ProcessorsNotJudged
from tracekit.postmortem.failure import Facts, rule
from tracekit.postmortem.margins import DIGITS, chance, margins
from tracekit.postmortem.plan import SPARSE, Plan
from tracekit.postmortem.program import record, scratch_folder
from tracekit.postmortem.store import Store, open_store, read_as, write_json
from tracekit.report.json import record_of
from tracekit.report.text import headline, verdict_text
from tracekit.trace import Trace, TraceError
from tracekit.verdict.cause import Cause
from tracekit.verdict.causes import is_fault, rule_of
from tracekit.verdict.decide import Verdict, paired, verdict_of
from tracekit.verdict.decision import Decision
from tracekit.verdict.outcome import BROKEN, Run, Seed, SeenFault, State
from tracekit.verdict.record import VerdictRecord

SEEDS = "seeds"
FULL = "full"
"""Name of a level's recordings, whichever of the full levels it is."""


@dataclass(frozen=True)
class Task:
    """What a worker needs to examine a seed."""

    plan: Plan
    place: str  # of the store
    seed: int


def sparse(task: Task) -> Seed:
    """Record both sides at the level of tokens and compare them. Raises Stopped."""
    store = open_store(task.place)
    runs = [_recorded(store, task.plan, side, task.seed, SPARSE) for side in Side]
    return _compared(store, task, runs[0], runs[1], SPARSE)


def full(task: Task, found: Seed) -> Seed:
    """Record both sides again at the plan's level, and say why they part. Raises Stopped."""
    store = open_store(task.place)
    runs = [_recorded(store, task.plan, side, task.seed, task.plan.level) for side in Side]
    again = _compared(store, task, runs[0], runs[1], task.plan.level)
    return _joined(found, again)


def trace_name(seed: int, run: Run) -> str | None:
    """A run's trace in the store."""
    return None if run.trace is None else f"{SEEDS}/{seed}/{run.trace}"


# -------------------------------------------------------------------- recording


def _recorded(store: Store, plan: Plan, side: Side, seed: int, level: str) -> Run:
    """A run from the store, or else from the program; then it is in the store."""
    stem = f"{SEEDS}/{seed}/{side}" + ("" if level == SPARSE else f".{FULL}")
    known = read_as(store, f"{stem}.json", Run.from_json)
    if known is not None:
        return known
    with scratch_folder() as scratch:
        run, trace = record(plan, side, seed, level, Path(scratch))
        if trace is not None:
            name = stem + trace.suffix
            store.deliver(trace, name)
            run = replace(run, trace=name.rpartition("/")[2])
    write_json(store, f"{stem}.json", asdict(run))
    return run


@contextlib.contextmanager
def traces(store: Store, seed: int, *runs: Run) -> Iterator[list[Trace]]:
    """The traces of a seed's runs, open. Raises TraceError where one is not there."""
    with contextlib.ExitStack() as stack:
        out = []
        for run in runs:
            name = trace_name(seed, run)
            if name is None or not store.exists(name):
                raise TraceError(f"seed {seed}: {run.trouble or 'its trace was not kept'}")
            out.append(stack.enter_context(open_trace(stack.enter_context(store.local(name)))))
        yield out


# -------------------------------------------------------------------- comparing


def _compared(store: Store, task: Task, reference: Run, candidate: Run, level: str) -> Seed:
    """Both runs of a seed side by side."""
    plain = Seed(task.seed, State.PASS, reference, candidate)
    if None in (reference.exit_code, candidate.exit_code):
        return replace(plain, state=State.TIMEOUT, note=_side_said(reference, candidate))
    if reference.trace is None or candidate.trace is None:
        crashed = bool(reference.exit_code or candidate.exit_code)
        note = _side_said(reference, candidate)
        return replace(plain, state=State.CRASH if crashed else State.TROUBLE, note=note)
    try:
        with traces(store, task.seed, reference, candidate) as (one, other):
            return compare(plain, one, other, task.plan.fail, in_full=level != SPARSE)
    except TraceError as error:
        return replace(plain, state=State.TROUBLE, note=str(error))


def _side_said(reference: Run, candidate: Run) -> str | None:
    for side, run in ((Side.REFERENCE, reference), (Side.CANDIDATE, candidate)):
        if run.trouble is not None:
            return f"{side}: {run.trouble}"
    return None


def compare(seed: Seed, one: Trace, other: Trace, fail: str, *, in_full: bool) -> Seed:
    """What two traces of a seed say. Raises TraceError where they cannot be compared."""
    pair = paired(one, other)
    parted = [(each.index, step) for each in pair.sequences if (step := _parted(each)) is not None]
    sequence, step = parted[0] if parted else ((pair.left[0], 0) if pair.left else (None, None))
    apart = _apart(pair.sequences)
    verdict = verdict_of(pair, audited=in_full)
    facts = Facts(seed.seed, seed.reference, seed.candidate, step, verdict.decision is Decision.DIVERGENCE)
    failing = rule(fail)(facts)
    near = verdict.cause is not None and not is_fault(verdict.cause)
    agreed = verdict.decision is Decision.PARITY or (not in_full and _agrees_so_far(verdict))
    crashed = seed.reference.exit_code != seed.candidate.exit_code or bool(seed.candidate.exit_code)
    state = State.PASS
    if crashed:
        state = State.CRASH
    elif near:
        state = State.NEAR_TIE
    elif failing:
        state = State.FAIL
    elif verdict.decision is Decision.DIVERGENCE:
        state = State.LATENT
    elif not agreed:
        state = State.TROUBLE
    return replace(
        seed,
        state=state,
        sequence=sequence,
        step=step,
        verdict=None if agreed else record_of(verdict),
        also=tuple(_ends_unstated(other, verdict)),
        margins=tuple(margin for each in one.sequences for margin in margins(each)),
        chance=sum(chance(each) for each in one.sequences),
        apart=apart,
        note=_side_said(seed.reference, seed.candidate),
        text=_text(verdict, one, other, seed),
        headline=headline(verdict),
    )


def _agrees_so_far(verdict: Verdict) -> bool:
    """Whether PARITY is withheld for nothing but what a sparse recording leaves out by design, logits and what
    processors left: how far the probabilities of a seed are apart is compared with that of the other seeds instead."""
    lost = () if verdict.coverage is None else verdict.coverage.lost
    sparse = all(isinstance(each, (ProbabilitiesNotJudged, ProcessorsNotJudged)) for each in lost)
    return verdict.decision is Decision.WITHHELD and bool(lost) and sparse


def _text(verdict: Verdict, one: Trace, other: Trace, seed: Seed) -> str:
    """The verdict in words, with the names that the traces have in the store."""
    text = verdict_text(verdict, one, other)
    for trace, run in ((one, seed.reference), (other, seed.candidate)):
        text = text.replace(trace.path, trace_name(seed.seed, run) or Path(trace.path).name)
    return text


def _parted(pair: SequencePair) -> int | None:
    """The step from which the tokens of a pair differ; a missing one differs."""
    step = first_token_difference(pair.reference, pair.candidate)
    counts = pair.reference.step_count, pair.candidate.step_count
    return step if step is not None or counts[0] == counts[1] else min(counts)


def _apart(pairs: Iterable[SequencePair]) -> float | None:
    """Nats: median over the common steps of the largest difference of a survivor's log-probability."""
    found = []
    for pair in pairs:
        parted = _parted(pair)
        common = min(pair.reference.step_count, pair.candidate.step_count)
        for index in range(common if parted is None else min(parted + 1, common)):
            one, other = pair.reference.step(index), pair.candidate.step(index)
            gap = log_ratio(one.survivors_id, one.survivors_prob, other.survivors_id, other.survivors_prob)
            found += [] if gap is None else [gap]
    return float(f"{np.median(found):.{DIGITS}g}") if found else None


def _ends_unstated(candidate: Trace, verdict: Verdict) -> Iterator[SeenFault]:
    """A sequence of the candidate that ends as by a stop token, on a token that is none by its own word."""
    if verdict.cause == Cause.STOP:
        return
    for sequence in candidate.sequences:
        stops = sequence.sampling.get("stop_token_ids", sequence.sampling.get("eos_token_id"))
        stops = stops if isinstance(stops, list) else [stops]
        if sequence.end_reason == "stop" and stops != [None] and sequence.step_count:
            last = int(sequence.tokens[-1])
            if last not in stops:
                text = f"sequence {sequence.index} stops on {last}, which is none of its stop tokens"
                at = sequence.step_count - 1
                yield SeenFault(Cause.STOP, "stop", None, at, text)
                return


def _joined(found: Seed, again: Seed) -> Seed:
    """The full recording's verdict, and what the sparse one shows besides."""
    if again.state in BROKEN:
        return replace(found, note=f"recorded in full: {again.note}")
    same = (found.reference.tokens, found.candidate.tokens, found.sequence, found.step) == (
        again.reference.tokens,
        again.candidate.tokens,
        again.sequence,
        again.step,
    )
    note = again.note if same else "other tokens when run again with the same seed: a program is not seeded"
    also = [*again.also]
    verdict = found.verdict
    if verdict is not None and again.verdict is not None and verdict.cause != again.verdict.cause:
        also = ([fault_of(verdict)] if _stands_alone(verdict) else []) + also
    return replace(again, also=tuple(also), note=note)


def _stands_alone(verdict: VerdictRecord) -> bool:
    """Whether a verdict on tokens and draws names a fault that no layer can have brought about: survivors, counts of
    draws and tokens follow the layers; how is drawn, and where it stops on the same tokens, does not."""
    drawn = verdict.cause == Cause.SAMPLER and verdict.site == DRAWS
    found = rule_of(verdict.cause)
    return verdict.explanation is not None or drawn or (found is not None and found.grouping.stands_alone)


def fault_of(verdict: VerdictRecord) -> SeenFault:
    """What a verdict names."""
    assert verdict.cause is not None  # only PARITY has none
    explanation, said = verdict.explanation, verdict.evidence[0].text if verdict.evidence else ""
    return SeenFault(
        cause=verdict.cause,
        site=verdict.site,
        mechanism=None if explanation is None else explanation.mistake,
        step=verdict.step,
        text=said if explanation is None else explanation.text,
    )
