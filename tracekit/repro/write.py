"""From a group's example to a folder: which fault it is, the input cut, the files written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tracekit.align.pair import Pair, Side
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
from tracekit.trace import LOGITS, Trace
from tracekit.verdict.causes import rule_of
from tracekit.verdict.rule import Shows

MOST_RUNS = 12
TIME_LIMIT = 120.0


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
    return Repro(path, None, (before[0], prompt), (before[1], steps), runs, found.uncut)


def _prepared(case: Case, reference: Trace, candidate: Trace) -> tuple[Fault, Input, tuple[int, int]]:
    """The fault, the whole input, and its prompt's and the reference's lengths."""
    rule = rule_of(case.verdict.cause)
    if rule is None:
        agree, cause = "the traces agree", case.verdict.cause
        raise NoRepro(agree if cause is None else f"none is made for the cause {cause}")
    if rule.repro.shows is None:
        raise NoRepro(rule.repro.why_none)
    pair = Pair.of(reference, candidate)
    compared = pair.sequence(case.verdict.sequence or 0)
    if compared is None:
        raise NoRepro("the two sides have no sequence in common")
    shows = rule.repro.shows
    fault = _layer_fault(case, pair, compared) if shows is Shows.SITE else _step_fault(case, compared, shows)
    whole = whole_input(pair.sequences, compared, fault.steps, rule.repro, case.command.native)
    return fault, whole, (whole.fed.length, compared.reference.step_count)


def _step_fault(case: Case, pair: SequencePair, shows: Shows) -> Fault:
    step, token = case.verdict.step or 0, case.verdict.token
    if shows is Shows.PROMPT:
        return InputFault(pair)
    if shows is Shows.END:
        return StopFault(pair, min(pair.reference.step_count, pair.candidate.step_count))
    if shows is Shows.SURVIVORS:
        return FilterFault(pair, step)
    # The way of drawing may be another from the first step on; a token tells from where it matters.
    return SamplerFault(pair, token.step) if shows is Shows.TOKEN and token is not None else RandomFault(pair, step)


def _layer_fault(case: Case, traces: Pair, pair: SequencePair) -> Fault:
    culprits = [each for each in case.verdict.culprits if each.own is not None]
    ours = [each for each in culprits if each.side is Side.CANDIDATE]
    if culprits and not ours:
        raise NoRepro("it is the reference that departs from its checkpoint, not the candidate")
    said = case.verdict.checkpoint
    if not ours or said is None:
        return _compared(case, traces, pair)
    first, checkpoint = ours[0], open_checkpoint(said, traces.reference, traces.candidate)
    site, mistake = first.site, None if first.explanation is None else first.explanation.mistake
    found = [each for each in recipes(traces.candidate, checkpoint, traces.reference).known if each.site == site]
    if not all(each.plain for each in found):
        raise NoRepro(f"what {site} computes in this family is not among the operations of a repro")
    inputs = tuple(name for each in found for name in (each.stored, *each.inputs))
    return AuditedFault(site, first.position or 0, mistake, checkpoint, pair, traces.reference, inputs)


def _compared(case: Case, traces: Pair, pair: SequencePair) -> Fault:
    site, position = case.verdict.site or "", case.verdict.position or 0
    if site == LOGITS:
        return ComparedFault(site, site, site, LOGITS_ORDER, position, pair, traces.reference)
    found = next((each for each in traces.sites.pairs if each.name == site), None)
    if found is None:
        raise NoRepro(f"{site} has no counterpart in the candidate")
    # Where it only passed another site's tensor on, it has a row of its own, which says so.
    called = site if site in traces.candidate.sites else found.candidate
    return ComparedFault(site, called, found.candidate, found.order, position, pair, traces.reference)
