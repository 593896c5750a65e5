"""What a sampler that states nothing shows of itself: the temperature, and the one filter, that left its survivors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tracekit.sampling.chain import stated
from tracekit.sampling.fit import fit
from tracekit.sampling.observed import Observed
from tracekit.sampling.processor import Applied, FilterMistake, Rank, Stated, Steps
from tracekit.sampling.processors import BY_SETTING, GENERATE

TEMPERATURE = "temperature"


def shown_chain(steps: Sequence[Observed]) -> tuple[Applied, ...] | None:
    """The simplest chain that left the survivors of all steps that have logits and survivors; None where none did, or
    there are no such steps. Its numbers are the ones with the fewest digits that do."""
    usable = [seen for seen in steps if seen.logits is not None and seen.ids is not None and seen.probs is not None]
    if not usable:
        return None
    seen = Steps(usable[0], usable)
    return next((chain for chain in _chains(seen) if all(fit(chain, each).follows for each in usable)), None)


def _chains(steps: Steps) -> Iterator[tuple[Applied, ...]]:
    """Chains that may have run: scores as they are or divided by a temperature, by themselves and then with each
    filter of one number."""
    plain = stated({"do_sample": True})
    divided = [
        plain.changed(temperature=variant.values["found"])
        for mistake in _of_numbers(BY_SETTING[TEMPERATURE].mistakes)
        for variant in mistake.variants(plain, steps)
    ]
    bases: list[Stated] = [*divided, plain]
    yield from (base.chain for base in bases)
    for base in bases:
        for processor in GENERATE:
            for mistake in () if processor.setting == TEMPERATURE else _of_numbers(processor.mistakes):
                yield from (variant.chain for variant in mistake.variants(base, steps))


def _of_numbers(mistakes: Sequence[FilterMistake]) -> Iterator[FilterMistake]:
    """Those that are another number of a processor which need not be stated."""
    return (mistake for mistake in mistakes if mistake.rank is Rank.NUMBER)
