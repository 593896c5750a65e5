"""What a verdict covers: how much of what the programs computed was compared or recomputed, and what was lost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from tracekit.align.pair import Pair
from tracekit.auditing.audit import Audit
from tracekit.compare.search import Search
from tracekit.inspection.losses import (
    CallByCall,
    CallsLeftOut,
    Loss,
    NothingCompared,
    ResultsNotCompared,
    Rows,
    SequencesAlone,
    SitesUnlike,
    StepsNotRecorded,
    losses,
    quantised,
    unrecorded_steps,
    without_value,
)
from tracekit.trace import LOGITS, Json, Sequence, Trace, resolve


@dataclass(frozen=True)
class Share:
    """`done` of `of`."""

    done: int
    of: int

    def __str__(self) -> str:
        return f"{self.done} of {self.of}"


@dataclass(frozen=True)
class Coverage:
    """What a verdict says something about."""

    steps: Share
    sites: Share
    parameters: Share
    unchecked: tuple[str, ...] = ()
    """Parameters of no site that was compared or recomputed."""
    audited: Share | None = None
    """Sites recomputed from the checkpoint; None where there was no audit."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Sites without a value, or without one in some calls, and why."""
    in_part: tuple[str, ...] = ()
    """Those of the sites looked at that have no value in some calls."""
    quantised: tuple[str, ...] = ()
    """Weights that a side holds in fewer than 16 bits: what was judged was computed with these."""
    lost: tuple[Loss, ...] = ()
    """What should be in a file and is not, a line each: no PARITY then."""

    @property
    def by_chance(self) -> bool:
        """Whether chance decided which of the calls at once a side recorded."""
        return any(isinstance(loss, CallsLeftOut) and loss.by_chance for loss in self.lost)


def compared_coverage(reference: Trace, candidate: Trace, found: Search, audited: Share | None) -> Coverage:
    """What a comparison covers."""
    steps = sum(sequence.step_count for sequence in reference.sequences)
    more = sum(sequence.step_count for sequence in candidate.sequences)
    alignment = found.pair.sites
    apart = len(alignment.unmatched_reference) + len(alignment.unmatched_candidate)
    names = {site.name for site in alignment.pairs}
    done = names & found.ratios.keys()
    skipped, more_skipped = without_value(reference), without_value(candidate)
    partly = {site.name for site in alignment.pairs if site.name in skipped or site.candidate in more_skipped}
    return Coverage(
        steps=Share(found.compared.steps, max(steps, more)),
        sites=Share(len(done), len(names) + apart),
        audited=audited,
        **_parameters(reference, done | (found.ratios.keys() & {LOGITS})),
        skipped=more_skipped | skipped,
        in_part=tuple(sorted(done & partly)),
        quantised=tuple(dict.fromkeys(quantised(reference) + quantised(candidate))),
        lost=(
            *losses(reference),
            *losses(candidate),
            *_alone(found.pair),
            *_without_steps(found.pair),
            *_results_apart(found.pair),
            *_unlike(found.pair),
            *_not_judged(found),
            *_nothing(found),
        ),
    )


def audited_coverage(found: Audit, trace: Trace) -> Coverage:
    """What an audit covers."""
    seen = found.clean | {culprit.site for culprit in found.culprits}
    steps = sum(sequence.step_count for sequence in trace.sequences)
    share = Share(len(seen), len(seen | found.unknown.keys()))
    skipped = without_value(trace)
    held = any(sequence.sites or sequence.logits_dtype for sequence in trace.sequences if sequence.step_count)
    return Coverage(
        steps=Share(steps if held else 0, steps),
        sites=share,
        audited=share,
        **_parameters(trace, seen),
        skipped=skipped,
        in_part=tuple(sorted(seen & skipped.keys())),
        quantised=quantised(trace),
        lost=tuple(losses(trace)),
    )


def _not_judged(found: Search) -> Iterator[Loss]:
    """What was recorded of the sampling and could not be compared."""
    if found.probabilities is not None:
        yield found.probabilities
    if found.processors is not None and found.processors.greedy:
        yield found.processors


def _nothing(found: Search) -> Iterator[NothingCompared]:
    """That there was nothing to compare: agreement of nothing is none."""
    done = found.compared
    if not (done.steps or done.values or found.findings or LOGITS in found.ratios):
        yield NothingCompared(found.pair.reference.path)


def _alone(pair: Pair) -> Iterator[CallByCall | SequencesAlone]:
    """Sequences that are compared with nothing: all but the first call of a generation whose calls are sequences of
    their own on one side; those of the reference that the candidate lacks."""
    for sequences in pair.sequences:
        for trace, one, other in (
            (pair.reference, sequences.reference, sequences.candidate),
            (pair.candidate, sequences.candidate, sequences.reference),
        ):
            alone = len(trace.sequences) - len(pair.sequences)
            if other.step_count and not one.step_count and alone > 0:
                yield CallByCall(trace.path, one.index, alone, other.step_count)
                return
    if pair.left:
        yield SequencesAlone(pair.reference.path, pair.left, pair.candidate.path)


def _without_steps(pair: Pair) -> Iterator[StepsNotRecorded]:
    """The first generation whose steps are recorded on one side alone."""
    for sequences in pair.sequences:
        for trace, one, other in (
            (pair.reference, sequences.reference, sequences.candidate),
            (pair.candidate, sequences.candidate, sequences.reference),
        ):
            behind = unrecorded_steps(one)
            if other.step_count and behind > 0:
                yield StepsNotRecorded(trace.path, one.index, behind, other.step_count)
                return


def _results_apart(pair: Pair) -> Iterator[ResultsNotCompared]:
    """The first run without steps whose results are compared with nothing."""
    ours = max((_order(pair.reference, each.name) for each in pair.sites.pairs), default=-1)
    theirs = max((_order(pair.candidate, each.candidate) for each in pair.sites.pairs), default=-1)
    for sequences in pair.sequences:
        one, other = sequences.reference, sequences.candidate
        site = _last(pair.reference, one, pair.sites.unmatched_reference, ours)
        match = _last(pair.candidate, other, pair.sites.unmatched_candidate, theirs)
        if not one.step_count and not other.step_count and site is not None and match is not None:
            yield ResultsNotCompared(pair.reference.path, one.index, site, match)
            return


def _unlike(pair: Pair) -> Iterator[SitesUnlike]:
    """The first sequence with sites that cannot be compared, though both sides recorded them."""
    for sequences in pair.sequences:
        one, other = sequences.reference.sites, sequences.candidate.sites
        both = [
            (site.name, Rows(ours.width, ours.axis), Rows(theirs.width, theirs.axis))
            for site in pair.sites.pairs
            if (ours := one.get(site.name)) is not None and (theirs := other.get(site.candidate)) is not None
        ]
        unlike = [each for each in both if each[1] != each[2]]
        if unlike:
            yield SitesUnlike(pair.reference.path, sequences.index, *unlike[0], len(unlike) - 1)
            return


def _last(trace: Trace, sequence: Sequence, names: Collection[str], after: int) -> str | None:
    """The last of some modules' outputs that a sequence holds, behind a place of the site table."""
    held = [name for name in names if name in sequence.sites and _order(trace, name) > after]
    return max(held, key=lambda name: _order(trace, name), default=None)


def _order(trace: Trace, name: str) -> int:
    """When a module's output is computed; before all where a site is none."""
    return trace.sites[name].order if name in trace.sites else -1


def _parameters(trace: Trace, seen: Collection[str]) -> Json:
    """`parameters` and `unchecked`: those of the modules whose output is among `seen`, of all that the engine holds."""
    rows = list(trace.sites.values())
    used = {
        name
        for site in rows
        if site.name in seen or resolve(trace, site.name) in seen
        for name in site.parameters.values()
    }
    known = list(trace.weights) or sorted({name for site in rows for name in site.parameters.values()})
    unchecked = tuple(name for name in known if name not in used)
    return {"parameters": Share(len(known) - len(unchecked), len(known)), "unchecked": unchecked}
