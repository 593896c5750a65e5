"""Culprits and victims: of the sites that differ, which made an error of their own, and which only inherited one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tracekit.align import SequencePair, align_sequences
from tracekit.audit import Audit, Culprit, audit, changed_weights
from tracekit.divergence import Finding, Search, Stage, compared_positions
from tracekit.explain import explain
from tracekit.recipe import recipes
from tracekit.recompute import Parameters, Recomputation
from tracekit.trace import Trace, TraceError
from tracekit.weights import Checkpoint, find_checkpoint

EXPLAINED = 8
"""Culprits that are explained; a mistake made in every layer is the same mistake."""


@dataclass(frozen=True)
class Examination:
    """What the audit of both sides says of a pair of traces."""

    checkpoint: Checkpoint
    culprits: tuple[Culprit, ...]  # the candidate's, explained; sites are named as the candidate stores them
    reference_culprits: tuple[Culprit, ...]  # looked for only where the candidate has none
    clean: frozenset[str]  # the candidate's sites that are within their bounds
    unknown: Mapping[str, str]  # the candidate's sites that were not audited, and why
    shared: tuple[str, ...]  # sites at which both sides depart from the recipe alike
    values: int

    @property
    def conclusive(self) -> bool:
        """Every site was recomputed, and none is off on either side: what differs is rounding that adds up."""
        return not (self.unknown or self.culprits or self.reference_culprits or self.shared) and bool(self.clean)


def checkpoint_of(reference: Trace, candidate: Trace, weights: str | None) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint to audit against, and why there is none. One that was not asked for must be, by its digests, what
    the reference ran with. Raises TraceError where `weights` holds none."""
    if weights is not None:
        return Checkpoint(weights), None
    path = find_checkpoint(candidate) or find_checkpoint(reference)
    if path is None:
        return None, None
    try:
        checkpoint = Checkpoint(path)
    except TraceError:
        return None, None
    if changed_weights(reference, checkpoint):
        return None, f"{path} is not what the reference ran with: not audited (--weights says where the checkpoint is)"
    return checkpoint, None


def examine(reference: Trace, candidate: Trace, checkpoint: Checkpoint) -> Examination:
    """Audit the candidate over what was compared; where it fails, or where nothing explains a difference, the reference
    as well. A recipe that the reference does not follow either is not this model's."""
    pairs, _ = align_sequences(reference, candidate)
    stops = {pair.candidate.index: compared_positions(pair) for pair in pairs}
    ours = {pair.reference.index: compared_positions(pair) for pair in pairs}
    found = audit(candidate, checkpoint, stops=_all(candidate, stops), wiring=reference)
    suspects = {culprit.site for culprit in found.culprits}
    check = audit(reference, checkpoint, stops=_all(reference, ours), only=suspects or None)
    also = {culprit.site for culprit in check.culprits}
    culprits = [culprit for culprit in found.culprits if culprit.site not in also]
    return Examination(
        checkpoint,
        tuple(_explained(candidate, checkpoint, found, culprits, reference)),
        check.culprits if not suspects else (),
        found.clean,
        found.unknown,
        tuple(sorted(suspects & also)),
        found.values,
    )


def _all(trace: Trace, stops: Mapping[int, int]) -> dict[int, int]:
    """Sequences without a partner are not audited."""
    return {sequence.index: stops.get(sequence.index, 0) for sequence in trace.sequences}


def _explained(
    trace: Trace, checkpoint: Checkpoint, found: Audit, culprits: list[Culprit], wiring: Trace | None
) -> list[Culprit]:
    book, parameters = recipes(trace, checkpoint.config, wiring), Parameters(trace, checkpoint)
    out = []
    for index, culprit in enumerate(culprits):
        if index < EXPLAINED:
            culprit = explain(culprit, Recomputation(trace.sequences[culprit.sequence], parameters), book)
        out.append(culprit)
    return out


def explained_audit(trace: Trace, checkpoint: Checkpoint, found: Audit) -> Audit:
    """The audit of one trace with its culprits explained."""
    return replace(found, culprits=tuple(_explained(trace, checkpoint, found, list(found.culprits), None)))


def settle(found: Search, examination: Examination, pairs: list[SequencePair]) -> tuple[list[Finding], list[str]]:
    """Findings with the victims taken out and the culprits put in, and what there is to say about it."""
    names = {pair.candidate: pair.name for pair in found.alignment.pairs}
    guilty = [_finding(culprit, names, pairs, "candidate") for culprit in examination.culprits]
    guilty += [_finding(culprit, names, pairs, "reference") for culprit in examination.reference_culprits]
    kept: list[Finding] = []
    victims: list[Finding] = []
    for finding in found.findings:
        (victims if _is_victim(finding, examination) else kept).append(finding)
    if not guilty and not examination.conclusive:
        return found.findings, []  # nobody else can have done it, or nobody can say
    notes = [
        f"{finding.site} is {finding.ratio:.3g}x its yardstick, but every module up to there is within its own "
        "rounding bound: the difference is rounding that adds up"
        for finding in victims[:1]
        if not guilty
    ]
    return guilty + kept, notes


def _is_victim(finding: Finding, examination: Examination) -> bool:
    """A site that differs and is audited: it is guilty in its own right or not at all."""
    if finding.stage is Stage.LOGITS:
        return "logits" not in examination.unknown
    site = finding.facts.get("candidate_site", finding.site)
    return finding.stage is Stage.SITE and site not in examination.unknown and site not in examination.shared


def _finding(culprit: Culprit, names: Mapping[str, str], pairs: list[SequencePair], side: str) -> Finding:
    """A culprit as something the search might have found."""
    by_candidate = {pair.candidate.index: pair.index for pair in pairs}
    sequence = by_candidate.get(culprit.sequence, culprit.sequence) if side == "candidate" else culprit.sequence
    stage = Stage.LOGITS if culprit.site == "logits" else Stage.SITE
    site = names.get(culprit.site, culprit.site) if side == "candidate" else culprit.site
    ratio = culprit.own.statistics.size
    facts = {"culprit": culprit, "side": side}
    return Finding(sequence, stage, culprit.step, culprit.position, site, culprit.order, ratio, None, facts)
