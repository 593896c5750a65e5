"""Does a chain of processors leave the survivors that were recorded?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.sampling.chain import cuts
from tracekit.sampling.observed import Observed
from tracekit.sampling.processor import Applied, run
from tracekit.sampling.scores import LAST_BITS, SMALLEST, UNIT, Floats, rounding, softmax

CUT_TOLERANCE = 2e-5
"""Probability mass (or nats of score) within which float32 sums decide a cut either way."""


LOOSE_TOLERANCE, LOOSE_CUT = 0.03, 0.01
"""The same for a sampler that computes in 16 bits: what its probabilities, and their sums, may be off by."""


@dataclass(frozen=True)
class Fit:
    """How well a chain gives the recorded survivors."""

    strict: bool  # the same tokens, but for what a last bit of float32 decides
    loose: bool  # the same tokens, but for what 16-bit sums decide
    apart: float
    """Largest difference, in nats, of the probability of a token that both have."""
    allowed: float = LAST_BITS * UNIT
    """Nats that rounding of the scores may make of it."""

    @property
    def follows(self) -> bool:
        """Whether the chain leaves what was recorded, but for rounding."""
        return self.strict and self.apart <= self.allowed

    @property
    def misfit(self) -> float:
        """`apart`, or infinity for other survivors."""
        return self.apart if self.strict else float("inf")


def fit(processors: Sequence[Applied], seen: Observed) -> Fit:
    """Run a chain on a step's logits and compare what is left with what was recorded."""
    if seen.logits is None or seen.ids is None or seen.probs is None:
        return Fit(strict=True, loose=True, apart=0.0)
    with np.errstate(all="ignore"):
        values = run(processors, seen.logits, seen.context)
        probs = softmax(values)
    recorded = np.zeros(probs.size)
    # CosyVoice draws from its nucleus as it is, others normalise first: torch's race gives the same token.
    recorded[seen.ids] = shares(seen.probs)
    ours, theirs = probs > SMALLEST, recorded > SMALLEST
    apart = np.flatnonzero(ours != theirs)
    common = ours & theirs
    if not common.any() or not np.isfinite(probs).all():
        return Fit(strict=False, loose=False, apart=float("inf"))
    strict = loose = True
    if apart.size:
        same, masses, any_cut = _distances(processors, seen, values.size, apart, ours)
        strict, loose = same or masses <= CUT_TOLERANCE, same or any_cut <= LOOSE_CUT
        probs, recorded = probs / probs[common].sum(), recorded / recorded[common].sum()
    ratios = np.abs(np.log(probs[common]) - np.log(recorded[common]))
    return Fit(strict, loose, float(ratios.max()), rounding(len(processors), values))


def shares(probs: Floats) -> NDArray[np.float64]:
    """Probabilities of survivors as parts of one, f64 [n]."""
    wide = probs.astype(np.float64)
    total = wide.sum()
    return wide / total if total > 0 else wide


def misfit(processors: Sequence[Applied], seen: Observed) -> float:
    """Largest difference of a survivor's log-probability from the recorded one; infinity for other survivors."""
    return fit(processors, seen).misfit


def departs(processors: Sequence[Applied], seen: Observed, *, half: bool) -> bool | None:
    """Whether a step's survivors are not those of a chain on its own logits; None where that cannot be worked out.

    What reached the logits is no matter here, so this tells a fault of the filter from rounding in any precision.
    `half`: the sampler may have computed in 16 bits.
    """
    if seen.logits is None or seen.ids is None or seen.probs is None:
        return None
    found = fit(processors, seen)
    if found.apart <= found.allowed:
        return not found.strict
    return not (half and found.apart <= LOOSE_TOLERANCE and found.loose)


def _distances(
    processors: Sequence[Applied], seen: Observed, size: int, apart: NDArray[np.int64], ours: NDArray[np.bool_]
) -> tuple[bool, float, float]:
    """Whether the tokens that differ have equal logits; the farthest of them from its nearest cut by mass, and by any.

    A cut that compares scores and sums nothing (top-k) leaves nothing to the last bit in float32.
    """
    if seen.logits is None:
        return False, float("inf"), float("inf")
    masses, all_cuts = np.full(size, np.inf), np.full(size, np.inf)
    for cut in cuts(processors, seen.logits, seen.context):
        all_cuts = np.minimum(all_cuts, cut.distances)
        masses = np.minimum(masses, cut.distances) if cut.processor.kind.sums else masses
    gained, lost = apart[ours[apart]], apart[~ours[apart]]
    same = gained.size == lost.size and np.array_equal(np.sort(seen.logits[gained]), np.sort(seen.logits[lost]))
    return bool(same), float(masses[apart].max()), float(all_cuts[apart].max())
