"""`layer`: a site is off by more than rounding; with the checkpoint, by an error of its own."""

from __future__ import annotations

from tracekit.align.pair import Side
from tracekit.align.renamed import recorded_as
from tracekit.compare.findings import Finding, LogitsWrong, PassedOn, SiteWrong
from tracekit.mistakes.explanation import MANY_ALSO, Explained, Explanation, FitsAsWell
from tracekit.mistakes.sites import residuals
from tracekit.trace import Trace, resolve
from tracekit.verdict.attribution import SiteAtFault
from tracekit.verdict.cause import Cause
from tracekit.verdict.evidence import InputAgrees, InputOff, NotCovered, RecordedAs, ReferenceDeparts
from tracekit.verdict.rule import Case, CauseRule, Grouping, Luck, ReproNeeds, Shows
from tracekit.verdict.ruling import Ruling


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    first = case.first
    if ruling is not None:
        return None
    if isinstance(first, SiteAtFault):
        return _culprit(case, first)
    if not isinstance(first, SiteWrong | PassedOn | LogitsWrong):
        return None
    evidence: list[object] = [first, *_called(case, first), *_inputs(case, first)]
    skipped = _skipped(case, first)
    if skipped is not None:
        evidence.append(Explained(skipped))
    return Ruling(Cause.LAYER, first, (*evidence, *_not_covered(case, first)), skipped)


def _culprit(case: Case, first: SiteAtFault) -> Ruling:
    evidence: list[object] = [] if first.side is Side.CANDIDATE else [ReferenceDeparts()]
    evidence += [first, *_called(case, first), *_inputs(case, first)]
    explanation = first.culprit.explanation
    if explanation is not None:
        evidence += [Explained(explanation), *map(FitsAsWell, explanation.also[:MANY_ALSO])]
    evidence += first.culprit.in_part
    return Ruling(Cause.LAYER, first, (*evidence, *_not_covered(case, first)), explanation)


def _candidate_site(first: Finding) -> str:
    return first.candidate_site if isinstance(first, SiteWrong | PassedOn) else first.site


def _skipped(case: Case, first: Finding) -> Explanation | None:
    """The candidate gave the very tensor of an earlier site where the reference computed something."""
    row = case.pair.candidate.sites.get(first.site)
    source = _candidate_site(first)
    if row is None or row.same_as is None or source == first.site:
        return None
    return Explanation(residuals.SKIPPED, {"source": source})


def _not_covered(case: Case, first: Finding) -> list[object]:
    """Why the audit has nothing to say of the very site that the comparison names."""
    if case.examination is None:
        return []
    unknown = case.examination.unknown
    reason = next((unknown[site] for site in (first.site, _candidate_site(first)) if site in unknown), None)
    return [] if reason is None else [NotCovered(reason)]


def _called(case: Case, first: Finding) -> list[object]:
    """What the candidate itself calls the site, where a map of names was given."""
    origin = recorded_as(case.pair.candidate, _candidate_site(first))
    return [] if origin is None else [RecordedAs(origin)]


def _inputs(case: Case, first: Finding) -> list[object]:
    source = _input_of(case.pair.reference, first.site)
    if source is None or source not in case.found.ratios:
        return []
    ratio = case.found.ratios[source]
    return [InputOff(source, ratio) if source in case.found.off else InputAgrees(source, ratio)]


def _input_of(trace: Trace, site: str) -> str | None:
    row = trace.sites.get(site)
    return resolve(trace, row.input) if row and row.input else None


RULE = CauseRule(
    Cause.LAYER,
    order=30,
    holds=_holds,
    headline="A layer computes something else",
    grouping=Grouping(Luck.VALUES),
    repro=ReproNeeds(Shows.SITE),
)
