"""From a group's example to a folder: which fault it is, the input cut, the files written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tracekit.align.pair import Pair
from tracekit.align.sites import SequencePair
from tracekit.auditing.recipe import recipes
from tracekit.checkpoints.stated import open_checkpoint
from tracekit.compare.yardstick import LOGITS_ORDER
from tracekit.formats.opening import open_trace
from tracekit.repro.cut import cut
from tracekit.repro.failing_run import Case, Input, Repro, whole_input
from tracekit.repro.fault import Fault, NoRepro
from tracekit.repro.files import write_folder
from tracekit.repro.layer_fault import AuditedFault, ComparedFault
from tracekit.repro.rerun import Rerun
from tracekit.repro.step_fault import FilterFault, InputFault, RandomFault, SamplerFault, StopFault
from tracekit.trace import Trace
from tracekit.verdict.causes import rule_of
from tracekit.verdict.outcome import State
from tracekit.verdict.rule import Shows

MOST_RUNS = 12
TIME_LIMIT = 120.0
WHY_NONE: dict[str | None, str] = {
    None: "the traces agree",
    State.CRASH: "the program ended with an error; its last line is in the report",
    State.TIMEOUT: "the program ran into its time limit",
    State.TROUBLE: "nothing was recorded that could be compared",
}
"""Why there is no repro where there is no cause."""


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
    rule = rule_of(cause)
    if rule is None or rule.repro.shows is None:
        why = WHY_NONE.get(cause) if rule is None else rule.repro.why_none
        raise NoRepro(why or f"none is made for the cause {cause}")
    pair = Pair.of(reference, candidate)
    compared = pair.sequence(int(case.verdict.get("sequence") or 0))
    if compared is None:
        raise NoRepro("the two sides have no sequence in common")
    shows = rule.repro.shows
    fault = _layer_fault(case, pair, compared) if shows is Shows.SITE else _step_fault(case, compared, shows)
    whole = whole_input(pair.sequences, compared, fault.steps, rule.repro, case.command.native)
    return fault, whole, (whole.fed.length, compared.reference.step_count)


def _step_fault(case: Case, pair: SequencePair, shows: Shows) -> Fault:
    verdict = case.verdict
    step = int(verdict.get("step") or 0)
    token = verdict.get("token") or {}
    if shows is Shows.PROMPT:
        return InputFault(pair)
    if shows is Shows.END:
        return StopFault(pair, min(pair.reference.step_count, pair.candidate.step_count))
    if shows is Shows.SURVIVORS:
        return FilterFault(pair, step)
    # The way of drawing may be another from the first step on; a token tells from where it matters.
    at_token = shows is Shows.TOKEN and token
    return SamplerFault(pair, int(token.get("step") or step)) if at_token else RandomFault(pair, step)


def _layer_fault(case: Case, traces: Pair, pair: SequencePair) -> Fault:
    verdict = case.verdict
    culprits = [row for row in verdict.get("culprits") or () if "own" in row]
    ours = [row for row in culprits if row.get("side") == "candidate"]
    if culprits and not ours:
        raise NoRepro("it is the reference that departs from its checkpoint, not the candidate")
    said = case.weights or (verdict.get("audit") or {}).get("checkpoint")
    if not ours or said is None:
        return _compared(case, traces, pair)
    first, checkpoint = ours[0], open_checkpoint(said, traces.reference, traces.candidate)
    site, mechanism = str(first["site"]), (first.get("explanation") or {}).get("kind")
    found = [each for each in recipes(traces.candidate, checkpoint, traces.reference).known if each.site == site]
    if not all(each.plain for each in found):
        raise NoRepro(f"what {site} computes in this family is not among the operations of a repro")
    inputs = tuple(name for each in found for name in (each.stored, *each.inputs))
    return AuditedFault(site, int(first["position"]), mechanism, checkpoint, pair, traces.reference, inputs)


def _compared(case: Case, traces: Pair, pair: SequencePair) -> Fault:
    site, position = str(case.verdict.get("site")), int(case.verdict.get("position") or 0)
    if site == "logits":
        return ComparedFault(site, site, site, LOGITS_ORDER, position, pair, traces.reference)
    found = next((each for each in traces.sites.pairs if each.name == site), None)
    if found is None:
        raise NoRepro(f"{site} has no counterpart in the candidate")
    # Where it only passed another site's tensor on, it has a row of its own, which says so.
    called = site if site in traces.candidate.sites else found.candidate
    return ComparedFault(site, called, found.candidate, found.order, position, pair, traces.reference)
