"""Tokens that rounding moved over a cut, and what follows from it for the draws."""

from __future__ import annotations

import numpy as np

from tracekit.align.sites import SequencePair
from tracekit.sampling.chain import chain, cuts
from tracekit.sampling.fit import departs
from tracekit.sampling.replay import observations
from tracekit.sampling.shown import shown_chain
from tracekit.torch_rng.transforms import race_words
from tracekit.trace import Step
from tracekit.verdict.counterfactual.evidence import CutCrossed
from tracekit.verdict.counterfactual.sides import both, observed


def cut_crossed(pair: SequencePair, step: int) -> CutCrossed:
    """A token that survives on one side alone was drawn there, or its place in the race taken by another."""
    one, other = observed(pair, step)
    assert one.ids is not None and other.ids is not None, "survivors that crossed a cut are recorded"
    apart = np.setxor1d(one.ids, other.ids)
    shown = None if pair.reference.sampling else shown_chain(observations(pair.reference, step))
    processors = chain(pair.reference.sampling) if shown is None else shown
    follows = [departs(processors, seen) is False for seen in (one, other)]
    near = [] if one.logits is None else cuts(processors, one.logits, one.context)
    found = min(((float(cut.distances[apart].min()), cut.unit) for cut in near), default=(np.inf, None))
    known = bool(np.isfinite(found[0]))
    unit = None if not known or found[1] is None else str(found[1])
    return CutCrossed(int(apart.size), all(follows), found[0] if known else None, unit)


def words_follow_survivors(pair: SequencePair, step: int, draw: int) -> bool:
    """Whether a draw takes two words for each survivor on both sides, as torch's race of the survivors alone does: of
    other survivors it takes another number."""
    return all(_takes_two_each(side.step(step), draw) for side in both(pair))


def _takes_two_each(step: Step, draw: int) -> bool:
    ids, words = step.survivors_id, step.draws[draw].words
    return ids is not None and words == race_words(ids.size)
