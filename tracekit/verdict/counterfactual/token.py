"""Another token from the same survivors and draws: a near-tie where that can be proved, else the sampler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tracekit.align.pair import Pair
from tracekit.align.sites import SequencePair
from tracekit.compare.findings import TokenDiffers
from tracekit.compare.search import Search
from tracekit.mistakes import generator
from tracekit.mistakes.explanation import Explanation
from tracekit.mistakes.filters import explain_greedy
from tracekit.sampling.chain import recorded_chain
from tracekit.sampling.drawing import near_seed, trials
from tracekit.sampling.replay import Streams, observations, observe
from tracekit.trace import Sequence
from tracekit.verdict.cause import Cause
from tracekit.verdict.counterfactual.algorithm import other_algorithm, with_filter
from tracekit.verdict.counterfactual.combinations import combinations
from tracekit.verdict.counterfactual.cut import cut_crossed
from tracekit.verdict.counterfactual.draw import same_survivors
from tracekit.verdict.counterfactual.evidence import (
    BothUnseeded,
    DrawsUnknown,
    Judgement,
    Known,
    OtherToken,
    OwnDistribution,
    TokenMarginMeasured,
    TokenRanks,
)
from tracekit.verdict.counterfactual.filter import as_evidence
from tracekit.verdict.counterfactual.margins import token_margin
from tracekit.verdict.counterfactual.processors_apart import processors_apart
from tracekit.verdict.counterfactual.sides import both, observed, sequences_of
from tracekit.verdict.ruling import Flip, Margins, Ruling, TokenMargin

NEAR = 2.0
"""A margin is crossed by rounding if it is at most this many times the measured error: both tokens may move."""


def rule_token(traces: Pair, found: Search, first: TokenDiffers) -> Ruling:
    """A near-tie, an unseeded generator, or the sampler."""
    pair, step = sequences_of(traces, first), first.step
    margins = replace(combinations(pair, step), token=token_margin(pair, step))
    tie = _near_tie(pair, step, margins, crossed=(first.sequence, step) in found.ties)
    if tie is not None:
        return Ruling(Cause.NEAR_TIE, first, (*tie, OwnDistribution()), margins=margins)
    algorithm = other_algorithm(pair, step)
    drawn = [side.step(step).draws for side in both(pair)]
    if algorithm is None and all(drawn) and all(draws[-1].seed is None for draws in drawn):
        names = tuple(dict.fromkeys(draws[-1].generator for draws in drawn))
        return Ruling(Cause.RNG, first, (BothUnseeded(names),), margins=margins)
    explanation = with_filter(pair, step, algorithm) if algorithm else _explained(pair, step, margins)
    evidence: list[object] = [*_other_token(pair, step), *processors_apart(observed(pair, step))]
    if margins.token is not None:
        near = _is_near(margins.token)
        judgement = Judgement.NOT_THE_LOGITS if near else Judgement.FAULT
        evidence.append(TokenMarginMeasured(margins.token.margin, margins.token.error, judgement))
    elif margins.flips is None:
        evidence.append(DrawsUnknown())
    evidence += as_evidence(explanation)
    moved = explanation is not None and explanation.mistake is generator.SEED
    return Ruling(Cause.RNG if moved else Cause.SAMPLER, first, tuple(evidence), explanation, margins)


def _is_near(token: TokenMargin) -> bool:
    return abs(token.margin) <= NEAR * token.error


def _near_tie(pair: SequencePair, step: int, margins: Margins, *, crossed: bool) -> list[object] | None:
    """What shows that rounding decided: the logits flip the token, and their error covers its margin or the cut."""
    if margins.flips is not Flip.LOGITS:
        return None
    if margins.token is not None:
        if not _is_near(margins.token):
            return None
        return [TokenMarginMeasured(margins.token.margin, margins.token.error, Judgement.ROUNDING)]
    return [cut_crossed(pair, step)] if crossed else None


def _other_token(pair: SequencePair, step: int) -> Iterator[OtherToken | TokenRanks]:
    steps = [side.step(step) for side in both(pair)]
    survivors = _known([one.survivors_id is not None for one in steps])
    if survivors is Known.SAME and not same_survivors(pair, step):
        survivors = Known.WITHIN_ROUNDING
    other = OtherToken(survivors, _known([bool(one.draws) for one in steps]))
    yield other
    if other == OtherToken(Known.NEITHER, Known.NEITHER):
        ranks = [_rank(pair.reference, index) for index in range(step + 1)]
        ours, theirs = ranks[-1], _rank(pair.candidate, step)
        if ours is not None and theirs is not None:
            yield TokenRanks(ours, theirs, ranks.count(1), len(ranks))


def _rank(sequence: Sequence, step: int) -> int | None:
    """The place of a step's token among its logits, 1 for the largest; None where they are not recorded."""
    logits, token = observe(sequence, step).logits, int(sequence.tokens[step])
    if logits is None or not 0 <= token < logits.size:
        return None
    return 1 + int((logits > logits[token]).sum())


def _known(recorded: list[bool]) -> Known:
    if all(recorded):
        return Known.SAME
    if not any(recorded):
        return Known.NEITHER
    return Known.REFERENCE if recorded[0] else Known.CANDIDATE


# -------------------------------------------------------------------- mistakes


def _explained(pair: SequencePair, step: int, margins: Margins) -> Explanation | None:
    found = _seed(pair, step) if margins.flips is None else None
    if found is None and pair.reference.sampling.get("do_sample") is False:
        stated = pair.reference.sampling
        ran, unknown = recorded_chain(observe(pair.candidate, step).processors, stated)
        found = explain_greedy(stated, observations(pair.candidate, step), () if unknown else ran)
    return found


def _seed(pair: SequencePair, step: int) -> Explanation | None:
    """Of a candidate that does not say where its generator was: the seed whose draws give all of its tokens."""
    stated = pair.reference.seed
    if stated is None or pair.reference.sampling.get("do_sample") is False:
        return None
    streams = Streams(pair.candidate)
    among = trials(observations(pair.candidate, step), pair.reference.sampling, streams)
    if not among or among[0].seen.index != 0 or any(trial.words is not None for trial in among):
        return None
    seed = near_seed(among, streams, stated)
    return None if seed is None or seed == stated else replace(generator.other_seed(stated, seed), steps=len(among))
