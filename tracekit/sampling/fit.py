"""Does a chain of processors leave the survivors that were recorded?

Where other tokens are left than were recorded, rounding may have decided about each: it lies nearer to a cut than what
is compared there may be off, by the roundings of the scores that reach it, of their exponentials and of their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import SMALLEST, UNIT_ROUNDOFF, round_to, to_float
from tracekit.sampling.observed import Context, Observed
from tracekit.sampling.processor import Applied, cut_of, run
from tracekit.sampling.scores import LAST_BITS, ROUNDINGS, UNIT, Floats, Rounded, rounding, softmax
from tracekit.sampling.scores import SMALLEST as LEAST


@dataclass(frozen=True)
class Fit:
    """How well a chain gives the recorded survivors."""

    strict: bool  # the same tokens, but for what rounding decides
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


def fit(processors: Sequence[Applied], seen: Observed, narrow: str | None = None) -> Fit:
    """Run a chain on a step's logits and compare what is left with what was recorded. `narrow`: the 16-bit format in
    which the probabilities, and their sums, are kept."""
    if seen.logits is None or seen.ids is None or seen.probs is None:
        return Fit(strict=True, apart=0.0)
    with np.errstate(all="ignore"):
        values = run(processors, seen.logits, seen.context)
        probs = softmax(values)
    recorded = np.zeros(probs.size)
    # CosyVoice draws from its nucleus as it is, others normalise first: torch's race gives the same token.
    recorded[seen.ids] = shares(seen.probs)
    ours, theirs = probs > LEAST, recorded > LEAST
    apart = np.flatnonzero(ours != theirs)
    common = ours & theirs
    if not common.any() or not np.isfinite(probs).all():
        return Fit(strict=False, apart=float("inf"))
    unit = UNIT if narrow is None else UNIT_ROUNDOFF[narrow]
    if narrow is not None:
        apart = apart[probs[apart] + recorded[apart] > SMALLEST[narrow]]
    strict = not apart.size or _rounding_decides(processors, seen, apart, ours, unit)
    if apart.size:
        probs, recorded = probs / probs[common].sum(), recorded / recorded[common].sum()
    ratios = np.abs(np.log(probs[common]) - np.log(recorded[common]))
    if narrow is not None:
        # A probability is rounded once, by more where it is below the normal range, and so are those it is a share of.
        ratios = np.maximum(ratios - 2.0 * unit - SMALLEST[narrow] / probs[common], 0.0)
    return Fit(strict, float(ratios.max()), rounding(len(processors), values))


def shares(probs: Floats) -> NDArray[np.float64]:
    """Probabilities of survivors as parts of one, f64 [n]."""
    wide = probs.astype(np.float64)
    total = wide.sum()
    return wide / total if total > 0 else wide


def misfit(processors: Sequence[Applied], seen: Observed) -> float:
    """Largest difference of a survivor's log-probability from the recorded one; infinity for other survivors."""
    return fit(processors, seen).misfit


def departs(processors: Sequence[Applied], seen: Observed, narrow: str | None = None) -> bool | None:
    """Whether a step's survivors are not those of a chain on its own logits; None where that cannot be worked out.

    What reached the logits is no matter here, so this tells a fault of the filter from rounding in any precision.
    `narrow`: a 16-bit format that the sampler may have computed in.
    """
    if seen.logits is None or seen.ids is None or seen.probs is None:
        return None
    if fit(processors, seen).follows:
        return False
    return narrow is None or not any(fit(each, seen, narrow).follows for each in _in_format(processors, narrow))


def _rounding_decides(
    processors: Sequence[Applied], seen: Observed, apart: NDArray[np.int64], ours: NDArray[np.bool_], unit: float
) -> bool:
    """Whether each token that differs lies nearer to a cut than rounding tells, or they are of one score (which of the
    equal ones a cut takes is left to a sort) and no more on one side than lie near a cut."""
    if seen.logits is None:
        return False
    values = seen.logits.astype(np.float64)
    # float32 holds neither float64's logits nor what processors make of them.
    errors = np.zeros(values.size) if seen.logits.dtype == np.float32 else UNIT * np.abs(values)
    scores, near = values, np.zeros(values.size, dtype=bool)
    with np.errstate(all="ignore"):
        for each in processors:
            cut, rounded = cut_of(each, values), Rounded(errors, unit)
            if cut is not None and each.kind.rounds is not None:
                near |= cut.distances <= each.kind.rounds(each.settings, values, rounded)
            after = each.apply(values, seen.context)
            computed = (after != values) & np.isfinite(after) & np.isfinite(values)
            made = each.kind.stretch(each.settings) * errors + ROUNDINGS * UNIT * np.abs(after)
            errors, scores = np.where(computed, made, errors), np.where(np.isfinite(after), after, scores)
            values = after
    if near[apart].all():
        return True
    gained, lost = (np.sort(scores[apart[kept]]) for kept in (ours[apart], ~ours[apart]))
    equal = 2.0 * errors[apart].max()
    if gained.size == lost.size:
        return bool((np.abs(gained - lost) <= equal).all())
    lowest, highest = scores[apart].min(), scores[apart].max()
    alike = (scores >= lowest - equal) & (scores <= highest + equal)
    # Of equal ones, more or fewer are left by as many as rounding may move across the cut.
    return bool(highest - lowest <= equal) and abs(gained.size - lost.size) <= int((near & alike).sum())


# -------------------------------------------------------------------- 16 bits


def _in_format(processors: Sequence[Applied], dtype: str) -> Iterator[list[Applied]]:
    """A chain that keeps its scores in a 16-bit format, as libraries multiply in it: by the number itself, by it as the
    format holds it, or by its reciprocal as the format holds it."""

    def stored(number: float) -> float:
        return float(to_float(round_to(np.array([number]), dtype), dtype)[0])

    def inverse(number: float) -> float:
        return 1.0 / stored(1.0 / number)

    for number in (float, stored, inverse):
        yield [_kept_in(dtype, each if each.kind.cut else _with_number(each, number)) for each in processors]


def _with_number(each: Applied, change: Callable[[float], float]) -> Applied:
    (name, number), *others = each.settings.items()
    scales = not others and isinstance(number, float) and number != 0.0
    return each.kind.with_numbers({name: change(number)}, {}) if scales else each


def _kept_in(dtype: str, each: Applied) -> Applied:
    def apply(values: Floats, context: Context) -> Floats:
        after = each.apply(values, context)
        return to_float(round_to(after, dtype), dtype).astype(after.dtype)

    return replace(each, apply=apply)
