"""Other survivors than the logits explain: which side departs from its settings, by which mistake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tracekit.align.pair import Pair, Side
from tracekit.align.sites import SequencePair
from tracekit.compare.findings import SurvivorsDiffer
from tracekit.compare.search import first_token_difference
from tracekit.mistakes.explanation import MANY_ALSO, Explained, Explanation, FitsAsWell
from tracekit.mistakes.filters import AS_STATED, explain
from tracekit.sampling.chain import RAS, chain, recorded_chain
from tracekit.sampling.fit import fit
from tracekit.sampling.replay import observations, observe
from tracekit.trace import Sequence
from tracekit.verdict.cause import Cause
from tracekit.verdict.counterfactual.algorithm import with_algorithm
from tracekit.verdict.counterfactual.combinations import combinations
from tracekit.verdict.counterfactual.evidence import (
    CutMissed,
    DrawCounts,
    NotFromLogits,
    ProbabilitiesDiffer,
    Redraws,
    ReferenceNotAsStated,
    SurvivesAlone,
    SurvivorCounts,
)
from tracekit.verdict.counterfactual.processors_apart import not_recomputed, processors_apart
from tracekit.verdict.counterfactual.sides import both, observed, of, sequences_of
from tracekit.verdict.ruling import Ruling


def rule_filter(traces: Pair, first: SurvivorsDiffer) -> Ruling:
    """Other survivors, or other probabilities of the same ones, than the logits' error allows."""
    pair = sequences_of(traces, first)
    seen = observed(pair, first.step)
    side, explanation = _explained(pair, first.step)
    if side is Side.CANDIDATE:
        explanation = with_algorithm(pair, first.step, explanation)
    evidence: list[object] = [*_survivors(first)]
    if first.departs is not None:
        evidence.append(NotFromLogits(first.departs, _declares_others(pair)))
    evidence += [*processors_apart(seen), *_draws(pair, first.step)]
    if side is Side.REFERENCE:
        evidence.append(ReferenceNotAsStated())
    evidence += [*as_evidence(explanation), *not_recomputed(pair, seen)]
    margins = replace(combinations(pair, first.step), cut_distance=first.cut_distance, logit_error=first.logit_error)
    return Ruling(Cause.FILTER, first, tuple(evidence), explanation, margins)


def as_evidence(explanation: Explanation | None) -> list[object]:
    """An explanation, and others that fit as well."""
    if explanation is None:
        return []
    return [Explained(explanation), *(FitsAsWell(other) for other in explanation.also[:MANY_ALSO])]


def _survivors(first: SurvivorsDiffer) -> Iterator[object]:
    if first.log_ratio is not None:
        yield ProbabilitiesDiffer(first.counts[0], first.log_ratio, first.allowed)
        return
    yield SurvivorCounts(first.counts)
    for side, tokens in ((Side.REFERENCE, first.lost), (Side.CANDIDATE, first.gained)):
        if tokens:
            yield SurvivesAlone(side, tokens)
    if first.cut_distance is not None and first.logit_error is not None:
        within = first.allowed is not None and first.cut_distance <= first.allowed
        yield CutMissed(first.cut_distance, first.logit_error, within)


def _declares_others(pair: SequencePair) -> bool:
    """Whether the candidate declares other settings than the reference."""
    one, other = both(pair)
    return bool(other.sampling) and _shown(one) != _shown(other)


def _shown(sequence: Sequence) -> list[str]:
    return [str(each) for each in chain(sequence.sampling)]


# -------------------------------------------------------------------- which side, and how


def _explained(pair: SequencePair, step: int) -> tuple[Side, Explanation | None]:
    """Which side departs, and how: from its own settings, if it does."""
    ours, theirs = (_follows(side, step) for side in both(pair))
    side = Side.REFERENCE if ours is False and theirs is True else Side.CANDIDATE
    sequence = of(pair, side)
    stated = sequence.sampling or pair.reference.sampling
    if not stated:
        return side, None
    if side is Side.CANDIDATE and theirs is True:
        return side, _as_stated(pair)
    return side, explain(stated, observations(sequence, step), observe(sequence, step))


def _follows(sequence: Sequence, step: int) -> bool | None:
    """Whether a side's survivors are what its logits give under its own settings; None where that is not known."""
    seen = observe(sequence, step)
    if not sequence.sampling or seen.ids is None or seen.logits is None:
        return None
    if recorded_chain(seen.processors, sequence.sampling)[1]:
        return None  # what a program gives its sampler beside the settings is no departure from them
    return fit(chain(sequence.sampling), seen).follows


def _as_stated(pair: SequencePair) -> Explanation | None:
    ours, theirs = (_shown(side) for side in both(pair))
    if ours == theirs:
        return None
    extra = ", ".join(each for each in theirs if each not in ours) or "nothing"
    missing = ", ".join(each for each in ours if each not in theirs) or "nothing"
    return Explanation(AS_STATED, {"chain": tuple(theirs), "extra": extra, "missing": missing}, steps=1)


# -------------------------------------------------------------------- CosyVoice's draws beside it


def _draws(pair: SequencePair, step: int) -> Iterator[object]:
    """Of CosyVoice's sampler, which may draw more than once a step: where the sides first draw another number of times,
    as long as the tokens before are the same."""
    if pair.reference.sampling.get("sampler") != RAS:
        return
    split = first_token_difference(pair.reference, pair.candidate)
    most = min(side.step_count for side in both(pair)) if split is None else split + 1
    for later in range(step, most):
        ours, theirs = (len(side.step(later).draws) for side in both(pair))
        if ours != theirs:
            yield DrawCounts(later, (ours, theirs))
            return
    draws = sum(len(pair.reference.step(index).draws) for index in range(most))
    redraws = _redraws(pair.reference), _redraws(pair.candidate)
    if redraws[0] != redraws[1]:
        yield Redraws(most - 1, draws, redraws)


def _redraws(sequence: Sequence) -> int:
    """Stop tokens that were drawn too early and drawn again, in the whole of a segment."""
    steps = range(sequence.step_count)
    return sum(event.kind == "redraw" for index in steps for event in sequence.step(index).events)
