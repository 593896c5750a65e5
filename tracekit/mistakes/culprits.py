"""Culprits with what their mistake is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tracekit.auditing.audit import Audit, Culprit, audit
from tracekit.auditing.consequence import Consequences
from tracekit.auditing.drawn_error import Segment
from tracekit.auditing.recipe import recipes
from tracekit.auditing.recompute import Parameters, Recomputation
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.mistakes.explain import explain
from tracekit.mistakes.explanation import Explanation, TriedInPart, Untried
from tracekit.mistakes.suspect import Case
from tracekit.trace import Trace

EXPLAINED = 8
"""Culprits for which every mistake is tried; a mistake made in every layer is the same mistake."""
SILENT = 2
"""Layers without an explanation after which no other is looked at, of sites that are within their bounds."""


@dataclass(frozen=True)
class ExplainedCulprit(Culprit):
    """A culprit with what its mistake is, where one mistake accounts for all of its recorded rows."""

    explanation: Explanation | None = None
    untried: frozenset[Untried] = frozenset()
    """Of the changes to the reference's source, where those are what is tried."""
    named: ExplainedCulprit | None = None
    """The same as its recipe sees it, where one mistake in that explains it."""

    @classmethod
    def of(
        cls,
        culprit: Culprit,
        explanation: Explanation | None,
        untried: frozenset[Untried] = frozenset(),
        named: ExplainedCulprit | None = None,
    ) -> ExplainedCulprit:
        one = culprit
        return cls(one.sequence, one.step, one.position, one.site, one.order, one.own, explanation, untried, named)

    @property
    def in_part(self) -> tuple[TriedInPart, ...]:
        """What was left untried, where that bears on what is said: a recipe alone needs none."""
        explanation = self.explanation
        by_recipe = explanation is not None and not explanation.lines
        left = () if by_recipe else tuple(each for each in Untried if each in self.untried)
        return tuple(TriedInPart(each, explanation is not None) for each in left)


@dataclass(frozen=True)
class ExplainedAudit(Audit):
    """An audit with its culprits explained."""

    culprits: tuple[ExplainedCulprit, ...]
    """Choices of precision after all others."""
    consequences: Consequences | None = None
    """What the culprits do to the logits; only a reference program tells."""

    @property
    def precise(self) -> bool:
        """Whether all that is off is so by a choice of precision."""
        return bool(self.culprits) and not (self.weights or self.differences) and all(map(is_precise, self.culprits))

    @property
    def departs(self) -> bool:
        return super().departs and not self.precise


def is_precise(culprit: ExplainedCulprit) -> bool:
    """Whether a culprit is a choice of precision: the declared formula with steps rounded more often."""
    return culprit.explanation is not None and culprit.explanation.precision


def same_mistake(one: ExplainedCulprit, other: ExplainedCulprit) -> bool:
    """Whether one mistake explains both."""
    return one.explanation is not None and other.explanation is not None and one.explanation.same(other.explanation)


@np.errstate(all="ignore")
def explained(
    trace: Trace,
    checkpoint: Checkpoint,
    culprits: Sequence[Culprit],
    wiring: Trace | None,
    finest: str = "float64",
    edited: Collection[str] = (),
) -> list[ExplainedCulprit]:
    """Culprits of one trace, in order. `wiring`, `finest`: as for `audit`; `edited`: sites that one edit of the
    reference explains, where two mistakes are not tried."""
    book, parameters = recipes(trace, checkpoint, wiring), Parameters(trace, checkpoint, finest)
    out: list[ExplainedCulprit] = []
    for index, culprit in enumerate(culprits):
        run = Recomputation(trace.sequences[culprit.sequence], parameters)
        same = [one.explanation for one in out if one.own.recipe.kind == culprit.own.recipe.kind]
        known = [explanation for explanation in same if explanation is not None][-1:]
        others = index < EXPLAINED
        if isinstance(culprit, ExplainedCulprit) or isinstance(culprit.own.recipe.operation, Segment):
            out.append(culprit if isinstance(culprit, ExplainedCulprit) else ExplainedCulprit.of(culprit, None))
            continue
        together = not any(one.own.recipe.kind == culprit.own.recipe.kind and one.explanation is None for one in out)
        explanation = None
        if known or others:
            case = Case.of(culprit, run, book)
            explanation = explain(case, known, others, together, single=culprit.site in edited)
        out.append(ExplainedCulprit.of(culprit, explanation))
    return out


@np.errstate(all="ignore")
def alike(trace: Trace, checkpoint: Checkpoint, found: Audit, wiring: Trace | None) -> list[ExplainedCulprit]:
    """Sites that make the same mistake in every layer, each within its bound: the mistake accounts for all of it.
    Those that are a choice of precision are left out: they are within their bounds."""
    book, parameters = recipes(trace, checkpoint, wiring), Parameters(trace, checkpoint)
    out: list[ExplainedCulprit] = []
    for group in found.inexact:
        tried: list[ExplainedCulprit] = []
        for site in group:
            run = Recomputation(trace.sequences[site.sequence], parameters)
            known = [one.explanation for one in tried[-1:] if one.explanation is not None]
            tried.append(ExplainedCulprit.of(site, explain(Case.of(site, run, book), known, together=False)))
            if tried[-1].explanation is None and len(tried) <= SILENT:
                break  # another arithmetic
        out += [one for one in tried if one.explanation is not None and not is_precise(one)]
    return out


def explained_by_recipes(
    trace: Trace, checkpoint: Checkpoint, culprits: Sequence[Culprit]
) -> dict[str, ExplainedCulprit]:
    """By site, the culprits that one mistake in the recipe for their site explains."""
    again = _with_recipes(trace, checkpoint, culprits)
    named = explained(trace, checkpoint, again, None, edited={culprit.site for culprit in again})
    return {one.site: one for one in named if one.explanation is not None}


def explained_audit(trace: Trace, checkpoint: Checkpoint, found: Audit) -> ExplainedAudit:
    """The audit of one trace with its culprits explained."""
    edits = {one.site: one for one in found.culprits if isinstance(one, ExplainedCulprit)}
    edited = {site for site, one in edits.items() if one.explanation is not None}
    culprits = explained(trace, checkpoint, _with_recipes(trace, checkpoint, found.culprits), None, edited=edited)
    culprits = [_with_edit(culprit, edits.get(culprit.site)) for culprit in culprits]
    if all(map(is_precise, culprits)):
        culprits += alike(trace, checkpoint, found, None)
    culprits.sort(key=is_precise)
    guilty = {culprit.site for culprit in culprits}
    return ExplainedAudit(**{**vars(found), "culprits": tuple(culprits), "clean": found.clean - guilty})


def _with_edit(culprit: ExplainedCulprit, edited: ExplainedCulprit | None) -> ExplainedCulprit:
    """A culprit with the edit of the reference's source that explains it: a recipe names the mistake, an edit its line.
    The declared formula in another arithmetic has no wrong line."""
    named = culprit.explanation
    if edited is None or is_precise(culprit):
        return culprit
    edit, untried = edited.explanation, edited.untried
    if edit is None or named is edit:
        return replace(culprit, untried=untried)
    both = edit if named is None else replace(named, also=(*named.also, edit))
    return replace(culprit, explanation=both, untried=untried)


def _with_recipes(trace: Trace, checkpoint: Checkpoint, culprits: Sequence[Culprit]) -> list[Culprit]:
    """Culprits, those that a reference program found as the recipe for their site sees them, where one does: a
    mistake is a recipe with one thing changed."""
    named = {one.site: one.named for one in culprits if isinstance(one, ExplainedCulprit) and one.named is not None}
    culprits = [named.get(culprit.site, culprit) for culprit in culprits]
    segments = {culprit.site for culprit in culprits if isinstance(culprit.own.recipe.operation, Segment)}
    if not segments:
        return list(culprits)
    again = {culprit.site: culprit for culprit in audit(trace, checkpoint, only=segments).culprits}
    return [again.get(culprit.site, culprit) for culprit in culprits]
