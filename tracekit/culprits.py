"""Culprits and victims: of the sites that differ, which made an error of their own, and which only inherited one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tracekit.align import SequencePair, align_sequences, names
from tracekit.audit import Audit, Culprit, audit, changed_weights, other_model
from tracekit.divergence import Finding, Search, Stage, compared_positions
from tracekit.explain import explain
from tracekit.recipe import recipes
from tracekit.recompute import Parameters, Recomputation
from tracekit.stated_checkpoint import find_checkpoint, open_checkpoint, stated_checkpoint, why_no_checkpoint
from tracekit.trace import Trace, TraceError
from tracekit.weights import Checkpoint

ADDED_UP = 20.0
"""Times its yardstick that a site may be off though no module on the way is wrong by itself: errors within their bounds
that add up. Harmless rewrites reach 1.5 in bfloat16 without an oracle and 4.6 in float32 with one."""
EXPLAINED = 8
"""Culprits for which every mistake is tried; a mistake made in every layer is the same mistake."""


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
    harmless: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Sites of the reference and of the candidate that hold one thing at two stages, both right; and what differs."""

    @property
    def named(self) -> frozenset[str]:
        """Every site that the audit of the candidate speaks of."""
        return self.clean | self.unknown.keys() | {culprit.site for culprit in self.culprits} | set(self.shared)

    @property
    def conclusive(self) -> bool:
        """Every site was recomputed, and none is off on either side: what differs is rounding that adds up."""
        return not (self.unknown or self.culprits or self.reference_culprits or self.shared) and bool(self.clean)


def checkpoint_of(reference: Trace, candidate: Trace, weights: str | None) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint to audit against, and why there is none. One that was not asked for must be, by its digests, what
    the reference ran with. Raises TraceError where `weights` holds none."""
    if weights is not None:
        return open_checkpoint(weights), None
    path = find_checkpoint(candidate) or find_checkpoint(reference)
    if path is None:
        stating = next((trace for trace in (candidate, reference) if stated_checkpoint(trace) is not None), None)
        return None, None if stating is None else f"not audited: {stating.path} {why_no_checkpoint(stating)}"
    try:
        checkpoint = open_checkpoint(path)
    except TraceError as error:
        return None, f"not audited: {error}"
    if other_model(reference, checkpoint) is not None or changed_weights(reference, checkpoint):
        return None, f"{path} is not what the reference ran with: not audited (--weights says where the checkpoint is)"
    return checkpoint, None


def examine(reference: Trace, candidate: Trace, checkpoint: Checkpoint, found: Search) -> Examination:
    """Audit the candidate over what was compared; where it fails, or where nothing explains a difference, the reference
    as well. A recipe that the reference does not follow either is not this model's."""
    pairs, _ = align_sequences(reference, candidate)
    stops = {pair.candidate.index: compared_positions(pair) for pair in pairs}
    ours = {pair.reference.index: compared_positions(pair) for pair in pairs}
    audited = audit(candidate, checkpoint, stops=_all(candidate, stops), wiring=reference)
    suspects = {culprit.site for culprit in audited.culprits}
    alike = [] if suspects else _alike(candidate, checkpoint, audited, reference)
    others: tuple[Culprit, ...] = ()
    if suspects or found.findings:
        others = audit(reference, checkpoint, stops=_all(reference, ours), only=suspects or None).culprits
    also = {culprit.site for culprit in others}
    culprits = [culprit for culprit in audited.culprits if culprit.site not in also]
    return Examination(
        checkpoint,
        tuple(_explained(candidate, checkpoint, culprits, reference) + alike),
        tuple(_explained(reference, checkpoint, list(others), None)) if not suspects else (),
        audited.clean - {culprit.site for culprit in alike},
        audited.unknown,
        tuple(sorted(suspects & also)),
        audited.values,
        _harmless(reference, candidate, checkpoint, audited.clean),
    )


def _harmless(
    reference: Trace, candidate: Trace, checkpoint: Checkpoint, clean: Collection[str]
) -> dict[tuple[str, str], str]:
    """Embeddings that one side multiplies in the module that looks them up and the other after it."""
    sides = [
        {recipe.site: recipe for recipe in recipes(trace, checkpoint, wiring).known if recipe.factor != 1.0}
        for trace, wiring in ((reference, None), (candidate, reference))
    ]
    runs = [Recomputation(trace.sequences[0], Parameters(trace, checkpoint)) for trace in (reference, candidate)]
    out = {}
    for site in sides[0].keys() & sides[1].keys():
        pair = sides[0][site], sides[1][site]
        if pair[0].kind != "embedding" or pair[1].stored not in clean:
            continue
        scaled = [run.is_multiplied(recipe) for run, recipe in zip(runs, pair, strict=True)]
        if None not in scaled and scaled[0] != scaled[1]:
            who = ("reference", "candidate") if scaled[0] else ("candidate", "reference")
            said = (
                f"{site}: the {who[0]} multiplies the embeddings by {pair[0].factor:.6g} in it, the {who[1]} after it"
            )
            out[pair[0].stored, pair[1].stored] = f"{said}; both are right, and it is not compared"
    return out


def _all(trace: Trace, stops: Mapping[int, int]) -> dict[int, int]:
    """Sequences without a partner are not audited."""
    return {sequence.index: stops.get(sequence.index, 0) for sequence in trace.sequences}


@np.errstate(all="ignore")
def _explained(trace: Trace, checkpoint: Checkpoint, culprits: list[Culprit], wiring: Trace | None) -> list[Culprit]:
    book, parameters = recipes(trace, checkpoint, wiring), Parameters(trace, checkpoint)
    out: list[Culprit] = []
    for index, culprit in enumerate(culprits):
        run = Recomputation(trace.sequences[culprit.sequence], parameters)
        same = [one.explanation for one in out if one.own.recipe.kind == culprit.own.recipe.kind]
        known = tuple([explanation for explanation in same if explanation is not None][-1:])
        out.append(explain(culprit, run, book, known, others=index < EXPLAINED))
    return out


@np.errstate(all="ignore")
def _alike(trace: Trace, checkpoint: Checkpoint, found: Audit, wiring: Trace | None) -> list[Culprit]:
    """Sites that make the same mistake in every layer, each within its bound: the mistake accounts for all of it."""
    book, parameters = recipes(trace, checkpoint, wiring), Parameters(trace, checkpoint)
    out: list[Culprit] = []
    for group in found.inexact:
        tried: list[Culprit] = []
        for site in group:
            run = Recomputation(trace.sequences[site.sequence], parameters)
            known = tuple(one.explanation for one in tried[-1:] if one.explanation is not None)
            tried.append(explain(site, run, book, known))
            if tried[-1].explanation is None and len(tried) <= 2:
                break  # the first two layers have nothing to say: another arithmetic
        out += [one for one in tried if one.explanation is not None]
    return out


def explained_audit(trace: Trace, checkpoint: Checkpoint, found: Audit) -> Audit:
    """The audit of one trace with its culprits explained."""
    culprits = _explained(trace, checkpoint, list(found.culprits), None)
    if not culprits:
        culprits = _alike(trace, checkpoint, found, None)
    alike = {culprit.site for culprit in culprits}
    return replace(found, culprits=tuple(culprits), clean=found.clean - alike)


def settle(
    found: Search, examination: Examination, reference: Trace, candidate: Trace
) -> tuple[list[Finding], list[str]]:
    """Findings with the victims taken out and the culprits put in, and what there is to say about it."""
    pairs, _ = align_sequences(reference, candidate)
    known = names(reference)
    called = {pair.candidate: pair.name for pair in found.alignment.pairs} | {name: name for name in known}
    guilty = [_finding(culprit, called, pairs, "candidate") for culprit in examination.culprits]
    guilty += [_finding(culprit, called, pairs, "reference") for culprit in examination.reference_culprits]
    accused = {finding.site for finding in guilty}
    if not guilty and not examination.conclusive:
        return found.findings, []  # nobody else can have done it, or nobody can say
    kept: list[Finding] = []
    victims: list[Finding] = []
    for finding in found.findings:
        victim = finding.site in accused or _is_victim(finding, examination, bool(guilty))
        (victims if victim else kept).append(finding)
    notes = [
        f"{finding.site} is {finding.ratio:.3g}x its yardstick, but every module up to there is within its own "
        "rounding bound: the difference is rounding that adds up"
        for finding in victims[:1]
        if not guilty
    ]
    return guilty + kept, notes


def _is_victim(finding: Finding, examination: Examination, others: bool) -> bool:
    """A site that differs and is audited: it is guilty in its own right or not at all. With nobody else to blame, only
    as much is let pass as rounding can add up to."""
    if finding.stage not in (Stage.SITE, Stage.LOGITS):
        return False
    site = finding.site
    if site not in examination.named:
        site = finding.facts.get("candidate_site", site)  # the candidate calls it otherwise
    if site not in examination.clean:
        return False
    return others or (finding.ratio or 0.0) <= ADDED_UP


def _finding(culprit: Culprit, called: Mapping[str, str], pairs: list[SequencePair], side: str) -> Finding:
    """A culprit as something the search might have found."""
    by_candidate = {pair.candidate.index: pair.index for pair in pairs}
    sequence = by_candidate.get(culprit.sequence, culprit.sequence) if side == "candidate" else culprit.sequence
    stage = Stage.LOGITS if culprit.site == "logits" else Stage.SITE
    site = called.get(culprit.site, culprit.site)
    ratio = culprit.own.statistics.size
    facts = {"culprit": culprit, "side": side}
    return Finding(sequence, stage, culprit.step, culprit.position, site, culprit.order, ratio, None, facts)
