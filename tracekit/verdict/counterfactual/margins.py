"""How narrowly a token was chosen, and how narrowly the compared steps of a run went."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tracekit.align.pair import Pair
from tracekit.align.sites import SequencePair
from tracekit.compare.search import first_token_difference
from tracekit.sampling.chain import chain, cuts
from tracekit.sampling.exponential_race import lead, race_of_step
from tracekit.sampling.fit import shares
from tracekit.sampling.observed import Observed
from tracekit.sampling.processor import run
from tracekit.sampling.replay import Streams, observe
from tracekit.trace import Json
from tracekit.verdict.counterfactual.sides import both, observed
from tracekit.verdict.ruling import Narrowest, NarrowestCut, RunMargins, Scale, TokenMargin

MARGIN_STEPS = 256
"""Steps that margins are measured on; the first ones, of each pair of traces."""


def token_margin(pair: SequencePair, step: int) -> TokenMargin | None:
    """How narrowly the reference chose its token over the candidate's; None where that cannot be measured.

    Greedy: the gap of the two scores. Sampled: the gap of the two in the exponential race, its draws regenerated from
    seed and offset.
    """
    one, other = observed(pair, step)
    if one.ids is None or one.probs is None or pair.reference.sampling.get("do_sample") is False:
        return _greedy_margin(one, other, pair.reference.sampling)
    tokens = [one.token, other.token]
    if other.ids is None or other.probs is None or not (np.isin(tokens, one.ids) & np.isin(tokens, other.ids)).all():
        return None
    scores = race_of_step(one, pair.reference.sampling, Streams(pair.reference))
    if scores is None:
        return None
    winner, runner = (float(scores[one.ids == token][0]) for token in tokens)
    ours, theirs = shares(one.probs), shares(other.probs)
    error = sum(abs(np.log(ours[one.ids == token][0]) - np.log(theirs[other.ids == token][0])) for token in tokens)
    return TokenMargin(Scale.RACE, winner - runner, float(error))


def _greedy_margin(one: Observed, other: Observed, stated: Json) -> TokenMargin | None:
    if one.logits is None or other.logits is None or one.logits.shape != other.logits.shape:
        return None
    processors = chain(stated | {"do_sample": False})
    ours = run(processors, one.logits, one.context).astype(np.float64)
    theirs = run(processors, other.logits, other.context).astype(np.float64)
    tokens = [one.token, other.token]
    if not np.isfinite(ours[tokens]).all() or not np.isfinite(theirs[tokens]).all():
        return None
    error = float(np.abs(ours[tokens] - theirs[tokens]).sum())
    return TokenMargin(Scale.LOGITS, float(ours[one.token] - ours[other.token]), error)


def run_margins(traces: Pair) -> RunMargins | None:
    """How narrowly the compared steps went; None where no logits say."""
    out = RunMargins(0)
    left = MARGIN_STEPS
    for pair in traces.sequences:
        if left <= 0:
            break
        steps, out = _pair_margins(out, pair, left)
        left -= steps
    return None if out == RunMargins(0) else replace(out, steps=MARGIN_STEPS - left)


def _pair_margins(out: RunMargins, pair: SequencePair, most: int) -> tuple[int, RunMargins]:
    split = first_token_difference(pair.reference, pair.candidate)
    common = min(pair.reference.step_count, pair.candidate.step_count)
    steps = min(most, common if split is None else split + 1)
    streams, stated = Streams(pair.reference), pair.reference.sampling
    processors = chain(stated)
    tokens = [side.tokens for side in both(pair)]
    for index in range(steps):
        one, other = observe(pair.reference, index, tokens[0]), observe(pair.candidate, index, tokens[1])
        if one.logits is None or one.logits.size < 2:
            continue
        error = _logit_error(one, other)
        if error is not None:
            out = replace(out, error=max(out.error or 0.0, error))
        top = np.sort(np.partition(one.logits, one.logits.size - 2)[-2:]).astype(np.float64)
        gap = Narrowest(float(top[1] - top[0]), pair.index, index, error)
        if _is_least(gap.value, out.logit_gap):
            out = replace(out, logit_gap=gap)
        for cut in cuts(processors, one.logits, one.context):
            distance, token = cut.nearest
            if _is_least(distance, out.cut):
                found = NarrowestCut(distance, pair.index, index, str(cut.processor), str(cut.unit), token, error)
                out = replace(out, cut=found)
        scores: NDArray[np.float64] | None = race_of_step(one, stated, streams)
        if scores is not None and scores.size > 1:
            race = Narrowest(lead(scores), pair.index, index)
            if _is_least(race.value, out.race):
                out = replace(out, race=race)
    return steps, out


def _is_least(value: float, before: Narrowest | NarrowestCut | None) -> bool:
    return bool(np.isfinite(value)) and (before is None or value < before.value)


def _logit_error(one: Observed, other: Observed) -> float | None:
    if one.logits is None or other.logits is None or one.logits.shape != other.logits.shape:
        return None
    with np.errstate(invalid="ignore"):
        apart = np.abs(one.logits.astype(np.float64) - other.logits.astype(np.float64))
    return float(np.nanmax(apart, initial=0.0))
