"""A step's token from either side's logits with either side's draws, and which ingredient flips it."""

from __future__ import annotations

from itertools import product

import numpy as np

from tracekit.align.pair import Side
from tracekit.align.sites import SequencePair
from tracekit.sampling.chain import RAS, chain
from tracekit.sampling.drawing import GREEDY, Trial, Way, chance_of, gives, own_way, trials
from tracekit.sampling.fit import misfit
from tracekit.sampling.observed import Observed
from tracekit.sampling.replay import Streams
from tracekit.trace import Json
from tracekit.verdict.counterfactual.sides import both, observed, stated_by
from tracekit.verdict.ruling import Combination, Flip, Margins

FILTER_APART = 1e-2
"""Nats by which the reference's survivors may differ from those of its stated filter, to be called recomputed."""
Sides = tuple[Side, Side]
"""(whose logits, whose draws)."""
REFERENCE, CANDIDATE = Side.REFERENCE, Side.CANDIDATE


def combinations(pair: SequencePair, step: int) -> Margins:
    """The four tokens, and what flips them; nothing where a token cannot be drawn again."""
    stated, seen = stated_by(pair), observed(pair, step)
    size = vocabulary(pair, step)
    found = [trials([one], stated, Streams(side), size) for one, side in zip(seen, both(pair), strict=True)]
    if not found[0] or not found[1]:
        return Margins()
    way = own_way(stated)
    steps = {side: trial[0] for side, trial in zip(Side, found, strict=True)}
    tokens: dict[Sides, int] = {}
    for logits, draws in product(Side, Side):
        token = _token_of(way, steps[logits], steps[draws])
        if token is None:
            return Margins()
        tokens[logits, draws] = token
    rows = tuple(Combination(logits, draws, token) for (logits, draws), token in tokens.items())
    return Margins(combinations=rows, flips=_flips(tokens, seen, stated, way, steps[REFERENCE]))


def vocabulary(pair: SequencePair, step: int) -> int | None:
    """Number of tokens, as a side's race over all of them shows it; CosyVoice's is over the nucleus."""
    for side in both(pair):
        draws = side.step(step).draws
        if draws and draws[-1].op == "multinomial" and draws[-1].words and side.sampling.get("sampler") != RAS:
            return draws[-1].words // 2
    return None


def _token_of(way: Way, distribution: Trial, draws: Trial) -> int | None:
    if draws.words is None and way is not GREEDY:
        return None
    words = draws.words if draws.words is not None else np.zeros(0, np.uint32)
    return gives(way, Trial(distribution.seen, distribution.chance, words))


def _flips(
    tokens: dict[Sides, int], seen: tuple[Observed, Observed], stated: Json, way: Way, reference: Trial
) -> Flip | None:
    ours, theirs = tokens[REFERENCE, REFERENCE], tokens[CANDIDATE, CANDIDATE]
    if ours != seen[0].token or theirs != seen[1].token:
        return Flip.SAMPLER
    if ours == theirs:
        return None
    if tokens[REFERENCE, CANDIDATE] == theirs and tokens[CANDIDATE, REFERENCE] == ours:
        return Flip.DRAWS
    if not (tokens[CANDIDATE, REFERENCE] == theirs and tokens[REFERENCE, CANDIDATE] == ours):
        return Flip.LOGITS_AND_DRAWS
    return Flip.LOGITS if _logits_suffice(seen, stated, way, reference, theirs) else Flip.FILTER


def _logits_suffice(seen: tuple[Observed, Observed], stated: Json, way: Way, reference: Trial, token: int) -> bool:
    """Whether the stated filter, on the candidate's logits, gives the candidate's token, too."""
    one, other = seen
    if other.logits is None or other.ids is None or misfit(chain(stated), one) > FILTER_APART:
        return True  # no filter that could be recomputed stands between the logits and the token
    plain = Observed(other.index, other.logits, other.context, None, None, other.token, (), ())
    chance = chance_of(plain, stated)
    return chance is None or _token_of(way, Trial(plain, chance, None), reference) == token
