"""From a group's example to a folder: which fault it is, the input cut, the files written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tracekit.align.sites import SequencePair, align_sites
from tracekit.auditing.recipe import recipes
from tracekit.checkpoints.stated import open_checkpoint
from tracekit.compare.yardstick import LOGITS_ORDER
from tracekit.formats.opening import open_trace
from tracekit.repro.cut import cut
from tracekit.repro.failing_run import CAUSES, Case, Input, Repro, pair_of, whole_input
from tracekit.repro.fault import Fault, NoRepro
from tracekit.repro.files import write_folder
from tracekit.repro.layer_fault import AuditedFault, ComparedFault
from tracekit.repro.rerun import Rerun
from tracekit.repro.step_fault import FilterFault, InputFault, RandomFault, SamplerFault, StopFault
from tracekit.trace import Trace
from tracekit.verdict.cause import Cause
from tracekit.verdict.outcome import State

MOST_RUNS = 12
TIME_LIMIT = 120.0
WHY_NONE: dict[str | None, str] = {
    None: "the traces agree",
    Cause.CONFIG: "the two sides were run with other settings; run them with the same ones",
    Cause.WEIGHTS: "the two sides hold other parameters; `tracekit weights` compares them",
    Cause.NEAR_TIE: "rounding decided between two tokens; nothing is to be mended",
    Cause.CAPTURE: "the recording went wrong; record again",
    State.CRASH: "the program ended with an error; its last line is in the report",
    State.TIMEOUT: "the program ran into its time limit",
    State.TROUBLE: "nothing was recorded that could be compared",
}
"""Causes without a repro, and why."""


def write_repro(folder: Path, case: Case, *, most_runs: int = MOST_RUNS, time_limit: float = TIME_LIMIT) -> Repro:
    """Cut the smallest input that still shows a group's fault, and write `folder/GROUP` with tensors and tests.

    The candidate is run at most `most_runs` times, each run for `time_limit` seconds at most. Where there can be no
    repro, `path` is None and `why` a sentence. Raises TraceError where a trace or the checkpoint cannot be read, the
    folder cannot be written, or jinja2 is missing.
    """
    runs = 0
    with (
        tempfile.TemporaryDirectory(prefix="tracekit-repro-") as scratch,
        open_trace(case.reference) as reference,
        open_trace(case.candidate) as candidate,
    ):
        rerun = Rerun(case.command, Path(scratch), most_runs, time_limit)
        try:
            fault, whole, before = _prepared(case, reference, candidate)
            found = cut(fault, rerun, whole)
            path = write_folder(folder / case.group, case, fault, found, before)
        except NoRepro as why:
            return Repro(None, str(why), runs=rerun.runs)
        runs = rerun.runs
    prompt, steps = found.fed.lengths(before)
    return Repro(path, None, (before[0], prompt), (before[1], steps), runs, found.note)


def _prepared(case: Case, reference: Trace, candidate: Trace) -> tuple[Fault, Input, tuple[int, int]]:
    """The fault, the whole input, and its prompt's and the reference's lengths."""
    cause = case.verdict.get("cause")
    if cause not in CAUSES:
        raise NoRepro(WHY_NONE.get(cause, f"none is made for the cause {cause}"))
    pairs, pair = pair_of(reference, candidate, int(case.verdict.get("sequence") or 0))
    if pair is None:
        raise NoRepro("the two sides have no sequence in common")
    fault = _layer_fault(case, reference, candidate, pair) if cause == Cause.LAYER else _step_fault(case, pair)
    whole = whole_input(pairs, pair, fault.steps, str(cause), case.command.native)
    return fault, whole, (whole.fed.length, pair.reference.step_count)


def _step_fault(case: Case, pair: SequencePair) -> Fault:
    verdict = case.verdict
    step = int(verdict.get("step") or 0)
    token = verdict.get("token") or {}
    if verdict["cause"] == Cause.INPUT:
        return InputFault(pair)
    if verdict["cause"] == Cause.STOP:
        return StopFault(pair, min(pair.reference.step_count, pair.candidate.step_count))
    if verdict["cause"] == Cause.FILTER:
        return FilterFault(pair, step)
    if verdict["cause"] == Cause.RNG:
        return RandomFault(pair, step)
    # The way of drawing may be another from the first step on; a token tells from where it matters.
    return SamplerFault(pair, int(token.get("step") or step)) if token else RandomFault(pair, step)


def _layer_fault(case: Case, reference: Trace, candidate: Trace, pair: SequencePair) -> Fault:
    verdict = case.verdict
    culprits = [row for row in verdict.get("culprits") or () if "own" in row]
    ours = [row for row in culprits if row.get("side") == "candidate"]
    if culprits and not ours:
        raise NoRepro("it is the reference that departs from its checkpoint, not the candidate")
    said = case.weights or (verdict.get("audit") or {}).get("checkpoint")
    if not ours or said is None:
        return _compared(case, reference, candidate, pair)
    first, checkpoint = ours[0], open_checkpoint(said)
    site, mechanism = str(first["site"]), (first.get("explanation") or {}).get("kind")
    found = [each for each in recipes(candidate, checkpoint, reference).known if each.site == site]
    if not all(each.plain for each in found):
        raise NoRepro(f"what {site} computes in this family is not among the operations of a repro")
    inputs = tuple(name for each in found for name in (each.stored, *each.inputs))
    return AuditedFault(site, int(first["position"]), mechanism, checkpoint, pair, reference, inputs)


def _compared(case: Case, reference: Trace, candidate: Trace, pair: SequencePair) -> Fault:
    site, position = str(case.verdict.get("site")), int(case.verdict.get("position") or 0)
    if site == "logits":
        return ComparedFault(site, site, site, LOGITS_ORDER, position, pair, reference)
    found = next((each for each in align_sites(reference, candidate).pairs if each.name == site), None)
    if found is None:
        raise NoRepro(f"{site} has no counterpart in the candidate")
    # Where it only passed another site's tensor on, it has a row of its own, which says so.
    called = site if site in candidate.sites else found.candidate
    return ComparedFault(site, called, found.candidate, found.order, position, pair, reference)
