"""Are the survivors of a step the same on both sides, and if not, is it the filter or only the logits it was given?

Each side's survivors are worked out again from its own logits under the reference's settings. Where both sides pass,
whatever differs between them came with the logits; where one does not, its filter is at fault, in any precision.
Where that cannot be worked out, the distance to the cut is measured against the logits' error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.align.pair import Side
from tracekit.align.sites import SequencePair
from tracekit.compare.findings import SurvivorsDiffer
from tracekit.dtypes import SIXTEEN_BITS, UNIT_ROUNDOFF
from tracekit.sampling.chain import chain as chain_of
from tracekit.sampling.chain import cut_distance, unknown_settings
from tracekit.sampling.fit import departs, shares
from tracekit.sampling.observed import Observed
from tracekit.sampling.replay import observations
from tracekit.sampling.scores import rounding
from tracekit.sampling.shown import shown_chain

UNLIKELY = 1e-30
"""Probabilities up to it are not compared: the least that float32 holds have few bits left, or are written as 0."""


@dataclass(frozen=True)
class Kept:
    """Survivors of a step, beside each other."""

    found: SurvivorsDiffer | None = None
    """What differs beyond what the logits explain."""
    tied: bool = False
    """Whether rounding moved tokens across a cut."""
    unjudged: float | None = None
    """Nats by which the probability of a survivor differs, where no logits tell what they may."""


def difference(pair: SequencePair, one: Observed, other: Observed, logits_gap: float | None) -> Kept:
    """Compare a step's survivors. `logits_gap`: the largest difference of a logit; None where not both have them."""
    if not pair.reference.sampling:
        one, other = _likely(one, other), _likely(other, one)
    if one.ids is None or other.ids is None:
        return Kept()
    same = np.array_equal(np.sort(one.ids), np.sort(other.ids))
    ratio = log_ratio(one.ids, one.probs, other.ids, other.probs)
    if ratio is not None and ratio <= _rounded(pair, one, UNIT_ROUNDOFF["float32"]):
        return Kept()
    wrong = _which_departs(pair, one, other)
    if wrong == (False, False):
        return Kept(tied=not same)
    if ratio is not None and (logits_gap is None or one.logits is None):
        return Kept(unjudged=ratio)
    found = SurvivorsDiffer(
        sequence=pair.index,
        step=one.index,
        position=pair.reference.step(one.index).position,
        site="survivors",
        lost=tuple(np.setdiff1d(one.ids, other.ids).tolist()),
        gained=tuple(np.setdiff1d(other.ids, one.ids).tolist()),
        counts=(int(one.ids.size), int(other.ids.size)),
    )
    found, explained = _measured(found, pair, one, other, logits_gap, ratio)
    if wrong is not None and wrong[0] != wrong[1]:
        return Kept(replace(found, departs=Side.REFERENCE if wrong[0] else Side.CANDIDATE))
    if explained or (not pair.reference.sampling and _follows_what_is_shown(pair, other)):
        return Kept(tied=not same)
    return Kept(found)


def _follows_what_is_shown(pair: SequencePair, other: Observed) -> bool:
    """Whether a step of the candidate is left by the filter that the reference's survivors show at all of its steps."""
    chain = shown_chain(observations(pair.reference, other.index))
    return chain is not None and departs(chain, other, _narrow(pair.candidate.logits_dtype)) is False


def _rounded(pair: SequencePair, one: Observed, unit: float) -> float:
    """Nats that rounding of scores of a unit roundoff may make of a probability; of scores that are not recorded, which
    are no nearer to zero than their probabilities tell, no more than is known."""
    chain = chain_of(pair.reference.sampling)
    if one.ids is None or one.probs is None or not one.ids.size:
        return 0.0
    if one.logits is not None:
        kept = np.take(one.logits, one.ids, mode="clip").astype(np.float64) * _stretch(pair, one)
    else:
        with np.errstate(divide="ignore"):
            kept = np.log(shares(one.probs))
    return rounding(len(chain), kept) * unit / UNIT_ROUNDOFF["float32"]


def _stretch(pair: SequencePair, one: Observed) -> float:
    """By what the processors multiply a difference of logits: as they are stated, else as the reference's own
    probabilities tell."""
    if pair.reference.sampling:
        return math.prod(each.kind.stretch(each.settings) for each in chain_of(pair.reference.sampling))
    if one.ids is None or one.logits is None or one.probs is None:
        return 1.0
    probable = one.probs > UNLIKELY
    logits = np.take(one.logits, one.ids[probable], mode="clip").astype(np.float64)
    logits -= logits.mean() if logits.size else 0.0
    spread = float(logits @ logits)
    return max(1.0, float(logits @ np.log(shares(one.probs)[probable])) / spread) if spread > 0.0 else 1.0


def _swapped(one: Observed, lost: NDArray[np.int64], gained: NDArray[np.int64]) -> float:
    """How far the logits of the reference are apart, of tokens that survive there alone and of as many that do not,
    where no filter is stated. Infinite where they are not as many, or not the smaller ones: it is another filter."""
    if one.logits is None or lost.size != gained.size:
        return math.inf
    if not lost.size:
        return 0.0
    apart = [float(each) for each in np.take(one.logits, np.concatenate([lost, gained]), mode="clip")]
    distance = max(apart[: lost.size]) - min(apart[lost.size :])
    return distance if distance >= 0.0 else math.inf


def _likely(seen: Observed, other: Observed) -> Observed:
    """A side's survivors without those that the other does not have, of probabilities that rounding may write as 0."""
    if seen.ids is None or seen.probs is None or other.ids is None:
        return seen
    kept = np.isin(seen.ids, other.ids) | (seen.probs > UNLIKELY)
    return replace(seen, ids=seen.ids[kept], probs=seen.probs[kept])


def _which_departs(pair: SequencePair, one: Observed, other: Observed) -> tuple[bool, bool] | None:
    """Whether the reference, and the candidate, do otherwise than the reference states; None where unknown."""
    stated = pair.reference.sampling
    if not stated or unknown_settings(stated):
        return None
    chain = chain_of(stated)
    narrow = [_narrow(side.logits_dtype) for side in (pair.reference, pair.candidate)]
    ours, theirs = departs(chain, one, narrow[0]), departs(chain, other, narrow[1])
    return None if ours is None or theirs is None else (ours, theirs)


def _narrow(dtype: str | None) -> str | None:
    """The 16-bit format in which a sampler of such logits may compute."""
    return dtype if dtype in SIXTEEN_BITS else None


def _measured(
    found: SurvivorsDiffer,
    pair: SequencePair,
    one: Observed,
    other: Observed,
    gap: float | None,
    ratio: float | None,
) -> tuple[SurvivorsDiffer, bool]:
    """With the distance to the cut, or of the probabilities, beside what the logits' error can do; and whether that
    explains it."""
    stated = pair.reference.sampling
    if gap is None or one.logits is None:
        return found, False
    # Both sides of a cut move by at most the logits' error, as the processors stretch it; doubled, since each moves.
    stretch = _stretch(pair, one)
    allowed = 2 * gap * stretch
    if ratio is not None:
        formats = [_narrow(side.logits_dtype) or "float32" for side in (pair.reference, pair.candidate)]
        allowed += max(_rounded(pair, one, UNIT_ROUNDOFF[each]) for each in formats)
        return replace(found, log_ratio=ratio, allowed=allowed), ratio <= allowed
    if other.ids is None or one.ids is None:
        return found, True
    if stated:
        apart = np.setxor1d(one.ids, other.ids).tolist()
        distance = cut_distance(one.logits, stated, apart, one.context.history, one.context.prompt)
    else:
        distance = stretch * _swapped(one, np.setdiff1d(one.ids, other.ids), np.setdiff1d(other.ids, one.ids))
    explained = distance <= allowed
    if math.isinf(distance):
        return found, explained  # there is no cut to be near to
    return replace(found, cut_distance=distance, logit_error=gap, allowed=allowed), explained


def log_ratio(
    ids: NDArray[np.int64] | None,
    probs: NDArray[Any] | None,
    other_ids: NDArray[np.int64] | None,
    other_probs: NDArray[Any] | None,
) -> float | None:
    """Largest difference of a survivor's log-probability between the sides, nats; None unless both have the same
    survivors [n], with their probabilities.

    What all of a side's are multiplied by is no matter to a draw.
    """
    if ids is None or probs is None or other_ids is None or other_probs is None:
        return None
    order, other_order = np.argsort(ids), np.argsort(other_ids)
    if not np.array_equal(ids[order], other_ids[other_order]):
        return None
    ours, theirs = shares(probs)[order], shares(other_probs)[other_order]
    sound = (ours > UNLIKELY) & (theirs > UNLIKELY)
    return float(np.abs(np.log(ours[sound]) - np.log(theirs[sound])).max(initial=0.0))
