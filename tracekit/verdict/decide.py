"""The way of a diff: align, search, examine, ask the rules of causes in their order, and say what they found."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np

from tracekit.align.pair import Pair, Side
from tracekit.align.printed import as_printed
from tracekit.align.renamed import in_one_language
from tracekit.align.rotary_order import in_one_order, in_order_of
from tracekit.align.sites import check_yardstick
from tracekit.auditing.audit import Auditor
from tracekit.auditing.estimated import OwnDifferences
from tracekit.auditing.stated_arithmetic import Stated
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.compare.counted import counted_differences, is_counted
from tracekit.compare.findings import Finding, Stage, TokenDiffers
from tracekit.compare.search import Search, go_on, search
from tracekit.compare.settings import config_differences, weight_differences
from tracekit.compare.yardstick import Noise, Oracle, Uncalibrated, Yardstick, used_calibration
from tracekit.formats.name_map import NameMap, gguf_names
from tracekit.generations import generation_of
from tracekit.inspection.following import shortfalls
from tracekit.inspection.losses import CutOff
from tracekit.inspection.non_finite import first_non_finite
from tracekit.inspection.sanity import capture_problems, ended_in_error, uncached
from tracekit.mistakes.culprits import is_precise
from tracekit.trace import Trace, TraceError
from tracekit.verdict import evidence
from tracekit.verdict.attribution import ComputesAsStated, Examination, SiteAtFault, checkpoint_of, examine, settle
from tracekit.verdict.cause import Cause
from tracekit.verdict.causes import cause_of, is_fault, rule_of
from tracekit.verdict.counterfactual import run_margins
from tracekit.verdict.coverage import Share, compared_coverage
from tracekit.verdict.decision import Decision
from tracekit.verdict.rule import Case
from tracekit.verdict.ruling import Margins, Ruling
from tracekit.verdict.unexercised import unexercised
from tracekit.verdict.verdict import Accused, AuditShare, Unmatched, Verdict

__all__ = ["Verdict", "diff", "paired", "verdict_of", "yardstick_of"]

MOST_TIES = 3
"""Steps at which rounding moved a token over a cut that are noted."""


def diff(
    reference: Trace,
    candidate: Trace,
    oracle: Trace | None = None,
    noise: list[Trace] | None = None,
    *,
    weights: str | None = None,
    audited: bool = True,
    names: NameMap | None = None,
    by: Auditor | None = None,
) -> Verdict:
    """Compare a candidate with a reference. `oracle`: the reference in higher precision, forced onto its tokens;
    `noise`: more references under harmless variation; `weights`: the checkpoint, if it is not where the traces say;
    `audited=False` leaves the audit out; `names`: what one side calls otherwise than the other; `by`: what judges the
    sites that no recipe covers. Raises TraceError where the traces cannot be compared.
    """
    pair = paired(reference, candidate, names, weights)
    return verdict_of(pair, oracle, noise or [], weights=weights, audited=audited, by=by)


def paired(reference: Trace, candidate: Trace, names: NameMap | None = None, weights: str | None = None) -> Pair:
    """Two traces aligned, under the names that a map gives their sites; as they are called without one. Raises
    TraceError."""
    names = names or gguf_names(reference, candidate)
    if names is not None:
        checkpoint, _ = checkpoint_of(reference, candidate, weights)
        reference, candidate = in_one_language((reference, candidate), names, checkpoint)
    return Pair.of(reference, candidate)


@np.errstate(all="ignore")
def verdict_of(
    pair: Pair,
    oracle: Trace | None = None,
    noise: Seq[Trace] = (),
    *,
    weights: str | None = None,
    audited: bool = True,
    by: Auditor | None = None,
) -> Verdict:
    """The verdict on two traces that are aligned; the arguments are `diff`'s. Raises TraceError."""
    yardstick = yardstick_of(pair.reference, oracle, noise)
    problems: list[object] = [problem for trace in pair.traces for problem in capture_problems(trace)]
    if any(is_counted(trace) for trace in pair.traces):
        problems += counted_differences(*pair.traces)
    if problems:
        return Verdict(Decision.WITHHELD, Cause.CAPTURE, None, tuple(problems), yardstick.calibration)
    pair, known = in_one_order(pair)
    printed = as_printed(pair)
    if printed is not None:
        # A recipe needs whole rows: what is printed of them is compared, and not recomputed.
        pair, known, audited = printed.pair, [*known, printed.note], False
        oracle = None if oracle is None else printed.beside(oracle)
        yardstick = yardstick_of(pair.reference, oracle, [printed.beside(each) for each in noise], recipes=False)
    found = search(pair, yardstick)
    examination, no_audit = None, None
    if audited and found.differs:
        checkpoint, no_audit = checkpoint_of(pair.reference, pair.candidate, weights, by)
        if checkpoint is None and by is not None:
            raise TraceError(f"{pair.candidate.path}: no checkpoint to judge it against is known; give it: --weights")
        if checkpoint is not None:
            pair, more = _in_order_of_checkpoint(pair, checkpoint)
            found.pair = found.pair.seen_as(*pair.traces)
            examination = examine(found.pair, checkpoint, found, by)
            known += more
            if examination.harmless:
                yardstick = yardstick_of(pair.reference, oracle, noise)  # it remembers what it has judged
                found = search(pair, yardstick, examination.harmless.keys())
                known += examination.harmless.values()
    if examination is None and found.findings and oracle is None and not noise and _stated_unit(pair):
        # No layer can be recomputed in the arithmetic that both sides state: its unit says what they may differ by.
        known.append(evidence.InStatedUnits(_stated_unit(pair)))
        yardstick = Uncalibrated(OwnDifferences(pair.reference), _stated_unit(pair))
        found = search(pair, yardstick)
    case, ruling, rounding = _ruled(found, examination, yardstick)
    calibration, uncalibrated = used_calibration(yardstick)
    if no_audit is not None:
        known.append(no_audit)
    if uncalibrated:
        known.append(evidence.Uncalibrated(uncalibrated[0], len(uncalibrated) - 1, yardstick.calibration))
    return replace(_reached(case, ruling, calibration, [*rounding, *known]), uncalibrated=uncalibrated)


def _stated_unit(pair: Pair) -> float:
    """Unit roundoff of the arithmetic that both sides state; 0 where one states none that is coarser than float32."""
    stated = [Stated.of(trace) for trace in pair.traces]
    return max(each.unit for each in stated) if all(each.coarse for each in stated) else 0.0


def _ruled(
    found: Search, examination: Examination | None, yardstick: Yardstick
) -> tuple[Case, Ruling | None, list[object]]:
    """What is known, the cause, and what there is to say of findings that are none. Where a sequence holds no fault,
    whether nothing was found, or the audit cleared it, or rounding decided, the next ones are compared."""
    differences = tuple(config_differences(*found.pair.traces))
    weights = tuple(weight_differences(*found.pair.traces))
    notes: list[object] = []
    no_fault: tuple[list[Finding], TokenDiffers | None] = [], None  # of the first sequence where rounding decided
    precise: tuple[SiteAtFault, ...] = ()
    as_stated: ComputesAsStated | None = None
    while True:
        if examination is not None:
            settled = settle(found, examination)
            found.findings, precise = settled.findings, settled.precise
            notes += settled.notes
            as_stated = as_stated or settled.as_stated
        coverage = compared_coverage(*found.pair.traces, found, _audited_share(examination))
        case = Case(found.pair, found, coverage, differences, weights, examination, precise, as_stated)
        ruling = cause_of(case)
        if ruling is not None and (is_fault(ruling.cause) or ruling.decision is Decision.DIVERGENCE):
            return case, ruling, notes
        no_fault = no_fault if no_fault[0] else (found.findings, found.token)
        if not found.left:
            break
        found.findings, found.token = [], None
        go_on(found, yardstick)
    found.findings, found.token = no_fault
    case = replace(case)  # which has what it worked out of other findings
    return case, cause_of(case), notes


def _in_order_of_checkpoint(pair: Pair, checkpoint: Checkpoint) -> tuple[Pair, list[object]]:
    """Both sides in the order of the checkpoint's rows, where they were not compared with each other's."""
    first, ours = in_order_of(checkpoint, pair.reference)
    second, theirs = in_order_of(checkpoint, pair.candidate, pair.reference)
    return pair.seen_as(first, second), [*ours, *theirs]


def yardstick_of(reference: Trace, oracle: Trace | None, noise: Seq[Trace], *, recipes: bool = True) -> Yardstick:
    """The best there is; with `recipes`, what is beyond its limit is judged by what the site adds. Raises TraceError
    where it measures another run."""
    for trace, mend in (
        *((trace, f"record it with --follow {reference.path}") for trace in noise),
        *([(oracle, f"make it with `tracekit oracle {reference.path}`")] if oracle else []),
    ):
        check_yardstick(reference, trace, mend)
    own = OwnDifferences(reference) if recipes else None
    return Oracle(oracle, own) if oracle else Noise(list(noise), own) if noise else Uncalibrated(own)


def _reached(case: Case, ruling: Ruling | None, calibration: str, further: list[object]) -> Verdict:
    """What the rules find, with everything that is said beside it."""
    found = case.found
    rule = None if ruling is None else rule_of(ruling.cause)
    decision = Decision.PARITY if rule is None else rule.decision
    decision = decision if ruling is None or ruling.decision is None else ruling.decision
    finding = None if ruling is None else ruling.finding
    margins = Margins() if ruling is None else ruling.margins
    lost = [] if decision is Decision.WITHHELD else case.coverage.lost
    sites = found.pair.sites
    return Verdict(
        decision,
        None if ruling is None else ruling.cause,
        finding,
        (evidence.agreement(found),) if ruling is None else (*_dtypes(case, ruling, decision), *ruling.evidence),
        calibration,
        explanation=None if ruling is None else ruling.explanation,
        culprits=tuple(_culprits(None if case.as_stated is not None else finding, case.examination)),
        token=found.token,
        margins=replace(margins, run=run_margins(found.pair)),
        compared=found.compared,
        unexercised=tuple(unexercised(*found.pair.traces)),
        unmatched=Unmatched(sites.unmatched_reference, sites.unmatched_candidate, found.pair.left, found.pair.further),
        differences=case.differences,
        notes=(*_notes(case, ruling), *lost, *further),
        audit=_audit_share(case.examination),
        drift=found.drift,
        coverage=case.coverage,
        consequences=None if case.examination is None else case.examination.consequences,
    )


def _dtypes(case: Case, ruling: Ruling, decision: Decision) -> Iterator[evidence.SettingDiffers]:
    """First of all of a divergence: that the two sides compute in different formats."""
    ours, theirs = (trace.config.get("dtype") for trace in case.pair.traces)
    said = any(isinstance(one, evidence.SettingDiffers) and one.name == "dtype" for one in ruling.evidence)
    if decision is Decision.DIVERGENCE and None not in (ours, theirs) and ours != theirs and not said:
        yield evidence.SettingDiffers("dtype", ours, theirs)


def _audited_share(examination: Examination | None) -> Share | None:
    if examination is None:
        return None
    sites = examination.clean | {culprit.site for culprit in examination.culprits} | set(examination.shared)
    return Share(len(sites), len(sites | examination.unknown.keys()))


def _audit_share(examination: Examination | None) -> AuditShare | None:
    if examination is None:
        return None
    return AuditShare(
        examination.checkpoint.path,
        len(examination.clean) + len(examination.culprits),
        examination.values,
        examination.unknown,
        examination.shared,
        examination.tests,
    )


def _culprits(finding: Finding | None, examination: Examination | None) -> Iterator[Accused]:
    """All culprits, not only the first; without an audit, or where it finds choices of precision alone, the site that
    the search found."""
    culprits = () if examination is None else (*examination.culprits, *examination.reference_culprits)
    at_site = finding is not None and finding.stage in (Stage.SITE, Stage.LOGITS)
    if finding is not None and at_site and not isinstance(finding, SiteAtFault) and all(map(is_precise, culprits)):
        yield Accused(Side.CANDIDATE, finding.site, finding.step, finding.position)
    if examination is not None and (examination.culprits or examination.reference_culprits):
        for side, culprits in (
            (Side.CANDIDATE, examination.culprits),
            (Side.REFERENCE, examination.reference_culprits),
        ):
            yield from (Accused(side, each.site, each.step, each.position, each) for each in culprits)


# -------------------------------------------------------------------- notes


def _notes(case: Case, ruling: Ruling | None) -> Iterator[object]:
    traces = case.pair.traces
    for trace in traces:
        if trace.status_detail and CutOff(trace.path, trace.status_detail) not in case.coverage.lost:
            yield evidence.RecorderNote(trace.path, trace.status_detail)
    for trace in traces:
        yield from shortfalls(trace)
        yield from ended_in_error(trace)
    if case.examination is not None:
        yield from (note for trace in traces for note in uncached(trace))
    if case.found.processors is not None and not case.found.processors.greedy:
        yield case.found.processors
    yield from _afterwards(*traces)
    yield from _not_finite(*traces)
    if ruling is None or ruling.cause in (Cause.NEAR_TIE, Cause.PRECISION, Cause.CAPTURE):
        # Elsewhere the logits differ by more than rounding: what they move over a cut says nothing.
        yield from (evidence.TieMoved(*place) for place in case.found.ties[:MOST_TIES])


def _afterwards(reference: Trace, candidate: Trace) -> Iterator[object]:
    """What became of the tokens after they were made, by what their kind of program does with them."""
    for one, other in zip(reference.sequences, candidate.sequences, strict=False):
        yield from generation_of(reference, one).differences((reference, one), (candidate, other))


def _not_finite(reference: Trace, candidate: Trace) -> Iterator[object]:
    """NaN and infinities of either side; the same on both are compared as equal, which proves nothing."""
    found = [(trace, first) for trace in (reference, candidate) if (first := first_non_finite(trace)) is not None]
    yield from (evidence.NotFinite(trace.path, first) for trace, first in found)
    if len(found) == 2 and found[0][1].site == found[1][1].site and found[0][1].position == found[1][1].position:
        yield evidence.NotFiniteAlike()
