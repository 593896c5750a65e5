"""Which filter left these survivors? The stated chain of processors with one thing changed, tried on recorded steps.

A mistake with one processor is declared in that processor's file, one between several in a module of this package, as
`MISTAKES`. One is named only if it leaves exactly the recorded survivors, with their probabilities, at all steps that
were recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from tracekit.mistakes.explanation import Explanation, Mistake
from tracekit.plugins import modules_in
from tracekit.sampling.chain import stated as stated_by
from tracekit.sampling.fit import fit
from tracekit.sampling.observed import Observed
from tracekit.sampling.processor import Applied, FilterMistake, Rank, Stated, Steps, run
from tracekit.sampling.processors import PROCESSORS
from tracekit.trace import Json

DIGITS = 9
"""Decimals that are kept of a residual in nats."""
ENOUGH = 3
"""Greedy tokens that a chain must give before it is named: one may be right by chance."""
BETWEEN: tuple[FilterMistake, ...] = tuple(mistake for module in modules_in(__name__) for mistake in module.MISTAKES)
"""Mistakes that no single processor has."""
AS_STATED = Mistake(
    "settings_as_stated", "the candidate follows its declared settings: {extra} instead of {missing}", "chain"
)
"""No mistake of a program: it states other settings than the reference."""
UNDECLARED = Mistake(
    "undeclared_processors", "{processors} ran before the largest was taken, which the settings do not ask for", "all"
)


def explain(settings: Json, steps: Sequence[Observed], first: Observed) -> Explanation | None:
    """The mistake that left the recorded survivors of `first` and of all `steps`; None where none of them did."""
    if first.logits is None or first.ids is None:
        return None
    usable = [seen for seen in steps if seen.logits is not None and seen.ids is not None]
    recorded, stated = Steps(first, usable), stated_by(settings)
    known = mistakes_with(stated)
    found = [one for mistake in known if mistake.rank < Rank.NUMBER for one in _fitting(mistake, stated, recorded)]
    named = {setting for one, mistake in found for setting in mistake.about}
    for mistake in known:
        # A number read off the survivors only repeats what a mistake with the same setting has said.
        repeats = bool(found) if mistake.rank is Rank.TWO_NUMBERS else not named.isdisjoint(mistake.about)
        if mistake.rank >= Rank.NUMBER and not repeats:
            found += _fitting(mistake, stated, recorded)
    if not found:
        return None
    others = {mistake.id: one for one, mistake in reversed(found[1:]) if mistake is not found[0][1]}
    return replace(found[0][0], also=tuple(reversed(others.values())))


def mistakes_with(stated: Stated) -> list[FilterMistake]:
    """The mistakes that may be made with these settings, in the order in which they are named."""
    running = {each.kind for each in stated.chain}
    sampler = {each.sampler for each in running} or {None}
    out = [mistake for mistake in BETWEEN if None in sampler]
    # The last one of a chain first: what it left is what was recorded. Those that the settings ask for before others.
    for processor in sorted(PROCESSORS, key=lambda each: (each not in running, -each.place)):
        own = processor in running
        may_be = processor.sampler in sampler and (stated.sampled or not processor.sampled)
        out += [one for one in processor.mistakes if own or (may_be and one.rank >= Rank.NUMBER)]
    return sorted(out, key=lambda mistake: mistake.rank)


def _fitting(mistake: FilterMistake, stated: Stated, steps: Steps) -> Iterator[tuple[Explanation, FilterMistake]]:
    """The ways of a mistake that left the survivors of all steps."""
    for variant in mistake.variants(stated, steps):
        residual = _residual(variant.chain, steps)
        if residual is not None:
            said = Explanation(named(mistake), variant.values, round(residual, DIGITS), len(steps.all))
            yield said, mistake


def _residual(chain: tuple[Applied, ...], steps: Steps) -> float | None:
    """The largest misfit, nats, or None where one is beyond rounding."""
    if not fit(chain, steps.first).follows:
        return None
    residual = 0.0
    for seen in steps.all:
        found = fit(chain, seen)
        if not found.follows:
            return None
        residual = max(residual, found.apart)
    return residual


@cache
def named(mistake: FilterMistake) -> Mistake:
    """A mistake with a filter as explanations hold it."""
    return Mistake(mistake.id, mistake.words, mistake.main)


def explain_greedy(settings: Json, steps: Sequence[Observed], ran: Sequence[Applied]) -> Explanation | None:
    """What left every greedy token: processors that `ran` and are not stated, or the stated chain changed."""
    usable = [seen for seen in steps if seen.logits is not None]
    if len(usable) < ENOUGH:
        return None
    if ran and _gives_tokens(ran, usable):
        names = tuple(str(each) for each in ran)
        return Explanation(UNDECLARED, {"all": names, "processors": ", ".join(names)}, steps=len(usable))
    stated = stated_by(settings)
    for mistake in mistakes_with(stated):
        for variant in mistake.variants(stated, None):
            if _gives_tokens(variant.chain, usable):
                return Explanation(named(mistake), variant.values, steps=len(usable))
    return None


def _gives_tokens(chain: Sequence[Applied], steps: Sequence[Observed]) -> bool:
    return all(
        seen.logits is not None and int(np.argmax(run(chain, seen.logits, seen.context))) == seen.token
        for seen in steps
    )
