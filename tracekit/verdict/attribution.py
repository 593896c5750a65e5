"""Culprits and victims: of the sites that differ, which made an error of their own, and which only inherited one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tracekit.align.pair import Pair, Side
from tracekit.align.sites import names
from tracekit.auditing.audit import Audit, Auditor, Culprit, HoldsParameters, audit, changed_weights, other_model
from tracekit.auditing.consequence import Consequences, Weighing
from tracekit.auditing.not_audited import NotAudited
from tracekit.auditing.operations.embedding_table import Embedding
from tracekit.auditing.own_error import FALSE_ALARMS
from tracekit.auditing.recipe import recipes
from tracekit.auditing.recompute import Parameters, Recomputation
from tracekit.auditing.routing import RoutedOtherwise, routed
from tracekit.auditing.stated_arithmetic import Stated
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.stated import NoCheckpoint, find_checkpoint, no_checkpoint, open_checkpoint, stated_checkpoint
from tracekit.compare.findings import Finding, LogitsWrong, PassedOn, SiteWrong, Stage
from tracekit.compare.search import Search, compared_positions
from tracekit.dtypes import is_float
from tracekit.mistakes.culprit_groups import by_consequence
from tracekit.mistakes.culprits import ExplainedCulprit, alike, explained, is_precise
from tracekit.trace import LOGITS, Trace, TraceError
from tracekit.verdict.handed_on import added


@dataclass(frozen=True, kw_only=True)
class SiteAtFault(Finding):
    """A site whose own error is beyond its rounding bound."""

    side: Side
    culprit: ExplainedCulprit

    @property
    def precise(self) -> bool:
        """Whether it is a choice of precision alone."""
        return is_precise(self.culprit)

    @property
    def stage(self) -> Stage:  # type: ignore[override]
        return Stage.LOGITS if self.site == LOGITS else Stage.SITE


@dataclass(frozen=True)
class EmbeddingScaled:
    """Embeddings that one side multiplies in the module that looks them up, and the other after it: not compared."""

    site: str
    factor: float
    inside: Side  # which side does it in the module
    seen: bool  # that the other side does it at all shows at this very site's reader


@dataclass(frozen=True)
class AddsUp:
    """A site beyond its tolerance, whose difference is the rounding of all sites up to it, handed on."""

    site: str
    ratio: float  # error over tolerance
    share: float  # the most that one of them adds, over the most that rounding adds


@dataclass(frozen=True)
class BeyondAddingUp:
    """A site within its own rounding bound that differs by more than rounding adds up to."""

    site: str
    share: float


@dataclass(frozen=True)
class ComputesAsStated:
    """Sites differ because one side computes in an arithmetic that its trace states, or both do: recomputed in it, from
    the same parameters as the other side's, every site is within its bound."""

    path: str
    both: bool  # whether both sides do, each in its own
    site: str  # the first that differs
    ratio: float
    products: Mapping[str, str]  # format of the weight -> format that the inputs are rounded to
    cache: str | None
    finding: Finding


@dataclass(frozen=True)
class Examination:
    """What the audit of both sides says of a pair of traces."""

    checkpoint: Checkpoint
    culprits: tuple[ExplainedCulprit, ...]  # the candidate's, explained; sites are named as the candidate stores them
    reference_culprits: tuple[ExplainedCulprit, ...]  # looked for only where the candidate has none
    clean: frozenset[str]  # the candidate's sites that are within their bounds
    unknown: Mapping[str, NotAudited]  # the candidate's sites that were not audited, and why
    shared: tuple[str, ...]  # sites at which both sides depart from the recipe alike
    values: int
    harmless: Mapping[tuple[str, str], EmbeddingScaled] = field(default_factory=dict)
    """Sites of the reference and of the candidate that hold one thing at two stages, both right; and what differs."""
    tests: int = 0
    """How many the audit of the candidate made, at a false alarm of `FALSE_ALARMS` for all together."""
    consequences: Consequences | None = None
    """What the candidate's culprits do to its logits; they are in that order. Only a reference program tells."""
    reference_unknown: Mapping[str, NotAudited] = field(default_factory=dict)
    """The reference's sites that were not audited, and why; known where it was audited for itself."""
    routed: tuple[RoutedOtherwise, ...] = ()
    """Where the candidate's routers chose other experts than the reference's scores say, which that tells as well."""

    @property
    def named(self) -> frozenset[str]:
        """Every site that the audit of the candidate speaks of."""
        return self.clean | self.unknown.keys() | {culprit.site for culprit in self.culprits} | set(self.shared)


@dataclass(frozen=True)
class Unreadable:
    """A checkpoint that cannot be read; `said`: by what reads it."""

    said: str


@dataclass(frozen=True)
class OtherModel:
    """A checkpoint of another model than the reference's."""


@dataclass(frozen=True)
class NoAudit:
    """There was no audit, though a trace states a checkpoint. `path`: the trace's where that is not found, else the
    checkpoint's."""

    path: str
    why: NoCheckpoint | Unreadable | OtherModel


def checkpoint_of(
    reference: Trace, candidate: Trace, weights: str | None, by: Auditor | None = None
) -> tuple[Checkpoint | None, NoAudit | None]:
    """The checkpoint to audit against, and why there is none. One that was not asked for must be, by its digests, what
    the reference ran with. Without any, it is what the reference program that judges (`by`) holds. Raises TraceError
    where `weights` holds none."""
    if weights is not None:
        return open_checkpoint(weights, reference, candidate), None
    path = find_checkpoint(candidate) or find_checkpoint(reference)
    if path is None and isinstance(by, HoldsParameters):
        return open_checkpoint(by.parameters(reference), reference, candidate), None
    if path is None:
        stating = next((trace for trace in (candidate, reference) if stated_checkpoint(trace) is not None), None)
        if stating is None:
            return None, None
        return None, NoAudit(stating.path, no_checkpoint(stating))
    try:
        checkpoint = open_checkpoint(path, reference, candidate)
    except TraceError as error:
        return None, NoAudit(path, Unreadable(str(error)))
    if other_model(reference, checkpoint) is not None or changed_weights(reference, checkpoint):
        return None, NoAudit(path, OtherModel())
    return checkpoint, None


def examine(traces: Pair, checkpoint: Checkpoint, found: Search, by: Auditor | None = None) -> Examination:
    """Audit the candidate over what was compared; where it fails, or where nothing explains a difference, the reference
    as well. A recipe that the reference does not follow either is not this model's. `by`: what judges the sites that no
    recipe covers."""
    reference, candidate = traces.traces
    stops = {pair.candidate.index: compared_positions(pair) for pair in traces.sequences}
    ours = {pair.reference.index: compared_positions(pair) for pair in traces.sequences}
    # A float64 program computes parts in float32; against a float32 run that is no fault.
    finest = "float64" if _computed_in_float64(reference) else "float32"
    audited = audit(candidate, checkpoint, stops=_all(candidate, stops), wiring=reference, finest=finest)
    uncovered = audited.unknown.keys()
    if by is not None and uncovered:
        audited = _completed(audited, by(candidate, checkpoint), _all(candidate, stops))
    suspects = {culprit.site for culprit in audited.culprits}
    others: tuple[Culprit, ...] = ()
    unaudited: Mapping[str, NotAudited] = {}
    if suspects or found.findings:
        other = audit(reference, checkpoint, stops=_all(reference, ours), only=suspects or None)
        others, unaudited = other.culprits, other.unknown
        if by is not None and uncovered:
            more = _within(by(reference, checkpoint), _all(reference, ours), uncovered)
            others += tuple(culprit for culprit in more if not suspects or culprit.site in suspects)
    also = {culprit.site for culprit in others}
    wrong = [culprit for culprit in audited.culprits if culprit.site not in also]
    culprits = explained(candidate, checkpoint, wrong, reference, finest)
    # A choice of precision hides no mistake that is within its bounds in every layer.
    same = alike(candidate, checkpoint, audited, reference) if all(map(is_precise, culprits)) else []
    culprits += same
    told = None
    if isinstance(by, Weighing):
        culprits, told = by_consequence(culprits, by.weigher(candidate, audited))
    return Examination(
        checkpoint,
        tuple(culprits),
        tuple(explained(reference, checkpoint, others, None)) if not suspects else (),
        audited.clean - {culprit.site for culprit in same},
        audited.unknown,
        tuple(sorted(suspects & also)),
        audited.values,
        _harmless(reference, candidate, checkpoint, audited.clean),
        audited.tests,
        told,
        unaudited,
        routed(audited.routed),
    )


def _completed(audited: Audit, judged: Audit, stops: Mapping[int, int]) -> Audit:
    """The audit by recipes, and for the sites that none covers that by the reference program. The tests of both
    together are held to one rate of false alarms."""
    more = _within(judged, stops, audited.unknown.keys())
    tests = audited.tests + judged.tests
    suspects = sorted((*audited.culprits, *more), key=lambda one: (one.sequence, one.step, one.order))
    culprits = [one for one in suspects if one.own.held_to(FALSE_ALARMS / max(tests, 1)).wrong]
    seen = audited.clean | (judged.clean & audited.unknown.keys()) | {one.site for one in suspects}
    clean = seen - {one.site for one in culprits}
    return replace(
        audited,
        tests=tests,
        culprits=tuple(culprits),
        clean=clean,
        unknown={site: judged.unknown.get(site, why) for site, why in audited.unknown.items() if site not in seen},
        values=audited.values or judged.values,
        elsewhere=judged.elsewhere,
        routed=judged.routed,
    )


def _within(judged: Audit, stops: Mapping[int, int], sites: Collection[str]) -> list[Culprit]:
    """The culprits among `sites` at positions that were compared."""
    return [one for one in judged.culprits if one.site in sites and one.position < stops.get(one.sequence, 0)]


def _computed_in_float64(trace: Trace) -> bool:
    return {data.dtype for data in trace.sequences[0].sites.values() if is_float(data.dtype)} == {"float64"}


def _harmless(
    reference: Trace, candidate: Trace, checkpoint: Checkpoint, clean: Collection[str]
) -> dict[tuple[str, str], EmbeddingScaled]:
    """Embeddings that one side multiplies in the module that looks them up and the other after it."""
    sides = [
        {
            recipe.site: (recipe, recipe.operation)
            for recipe in recipes(trace, checkpoint, wiring).known
            if isinstance(recipe.operation, Embedding) and recipe.operation.factor != 1.0
        }
        for trace, wiring in ((reference, None), (candidate, reference))
    ]
    runs = [Recomputation(trace.sequences[0], Parameters(trace, checkpoint)) for trace in (reference, candidate)]
    out = {}
    for site in sides[0].keys() & sides[1].keys():
        (ours, table), (theirs, other_table) = pair = sides[0][site], sides[1][site]
        if theirs.stored not in clean:
            continue
        scaled = [run.is_multiplied(*each) for run, each in zip(runs, pair, strict=True)]
        if None not in scaled and scaled[0] != scaled[1]:
            # Of a run that does not hold what enters the first layer, only later sites tell.
            seen = not (table if scaled[1] else other_table).either
            inside = Side.REFERENCE if scaled[0] else Side.CANDIDATE
            out[ours.stored, theirs.stored] = EmbeddingScaled(site, table.factor, inside, seen)
    return out


def _all(trace: Trace, stops: Mapping[int, int]) -> dict[int, int]:
    """Sequences without a partner are not audited."""
    return {sequence.index: stops.get(sequence.index, 0) for sequence in trace.sequences}


@dataclass(frozen=True)
class Settled:
    """Findings with the victims taken out and the culprits put in."""

    findings: list[Finding]
    precise: tuple[SiteAtFault, ...]
    """Culprits that are choices of precision; they are not among the findings."""
    notes: list[object]
    """What there is to say about it."""
    as_stated: ComputesAsStated | None = None
    """Why sites differ of which none is at fault."""


def settle(found: Search, examination: Examination) -> Settled:
    """What the search found, as the audit sees it."""
    known = names(found.pair.reference)
    called = {site.candidate: site.name for site in found.pair.sites.pairs} | {name: name for name in known}
    guilty = [_at_fault(culprit, called, found.pair, Side.CANDIDATE) for culprit in examination.culprits]
    guilty += [_at_fault(culprit, called, found.pair, Side.REFERENCE) for culprit in examination.reference_culprits]
    accused = {finding.site for finding in guilty}
    victims = [finding for finding in found.findings if finding.site in accused or _cleared(finding, examination)]
    notes: list[object] = []
    as_stated = None if guilty else _as_stated(victims, examination, found.pair)
    if not guilty and as_stated is None:
        victims, notes = _inherited(victims, examination, found.pair)
    notes += examination.routed
    inherited = {id(finding) for finding in victims}
    left = [finding for finding in found.findings if id(finding) not in inherited]
    faults = [finding for finding in guilty if not finding.precise]
    if examination.consequences is not None:
        # The one with the largest share is the first: none that comes before it in the computation stands before it.
        faults = [fault for fault in faults if fault is faults[0] or _when(fault) > _when(faults[0])]
    return Settled([*faults, *left], tuple(finding for finding in guilty if finding.precise), notes, as_stated)


def _as_stated(cleared: list[Finding], examination: Examination, traces: Pair) -> ComputesAsStated | None:
    """The arithmetic that accounts for sites that differ and are within their bounds: a side states it, and no site was
    left unaudited, where a fault could hide; on neither side, where both state one."""
    coarse = [(trace, stated) for trace in traces.traces if (stated := Stated.of(trace)).coarse]
    both = len(coarse) == 2
    if not coarse or examination.unknown or (both and examination.reference_unknown):
        return None
    trace, stated = coarse[-1]
    for finding in cleared:
        if isinstance(finding, SiteWrong | LogitsWrong):
            how = stated.products, stated.cache
            return ComputesAsStated(trace.path, both, finding.site, finding.ratio, *how, finding)
    return None


def _when(finding: Finding) -> tuple[int, ...]:
    return finding.sequence, *finding.rank


def _cleared(finding: Finding, examination: Examination) -> bool:
    """A site that differs and is audited: it is guilty in its own right or not at all."""
    return isinstance(finding, SiteWrong | LogitsWrong) and _named(finding, examination) in examination.clean


def _named(finding: Finding, examination: Examination) -> str:
    """The site as the audit of the candidate calls it."""
    if finding.site in examination.named or not isinstance(finding, SiteWrong | PassedOn):
        return finding.site
    return finding.candidate_site


def _inherited(cleared: list[Finding], examination: Examination, traces: Pair) -> tuple[list[Finding], list[object]]:
    """Those that rounding accounts for, with nobody else to blame: no site up to them adds more than rounding to what
    its inputs hand on. What is more was done where no audit looks."""
    pair = traces.sequence(cleared[0].sequence) if cleared else None
    if pair is None:
        return [], []
    shares = added(traces, pair, examination.checkpoint)
    victims: list[Finding] = []
    notes: list[object] = []
    for finding in cleared:
        share = shares.get(finding.site, np.inf)
        if share <= 1.0:
            victims.append(finding)
        if share <= 1.0 and not notes and isinstance(finding, SiteWrong | LogitsWrong):
            notes.append(AddsUp(finding.site, finding.ratio, share))
        elif share > 1.0 and finding is cleared[0]:
            notes.append(BeyondAddingUp(finding.site, share))
    return victims, notes


def _at_fault(culprit: ExplainedCulprit, called: Mapping[str, str], traces: Pair, side: Side) -> SiteAtFault:
    """A culprit as something the search might have found."""
    by_candidate = {pair.candidate.index: pair.index for pair in traces.sequences}
    sequence = culprit.sequence
    site = called.get(culprit.site, culprit.site)
    row = traces.reference.sites.get(site)
    return SiteAtFault(
        sequence=by_candidate.get(sequence, sequence) if side is Side.CANDIDATE else sequence,
        step=culprit.step,
        position=culprit.position,
        site=site,
        # As other findings count: a dump of files has its sites in the order of their names.
        order=culprit.order if row is None else row.order,
        side=side,
        culprit=culprit,
    )
