"""Stop tokens that a filter spares, or that are removed though nothing states it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tracekit.sampling.observed import Context
from tracekit.sampling.processor import Apply, FilterMistake, Rank, Stated, Steps, Variant, function, run
from tracekit.sampling.processors import BY_SETTING
from tracekit.sampling.scores import Floats, seen_tokens

MINIMUM = BY_SETTING["min_new_tokens"]
BOUNDS = (*range(1, 33), 48, 64, 128)
"""Minimum lengths that are tried."""
ALWAYS = 10**9


def _spared(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    first = next((index for index, each in enumerate(stated.chain) if each.kind.cut is not None), None)
    if not stated.stops or first is None:
        return

    def keeping(scores: Callable[[Floats, Context], Floats]) -> Apply:
        def apply(values: Floats, context: Context) -> Floats:
            after, ids = run(stated.chain, values, context), seen_tokens(stated.stops, values.size)
            after[ids] = scores(values, context)[ids]
            return after

        return apply

    stops = tuple(stated.stops)
    before = keeping(lambda values, context: run(stated.chain[:first], values, context))
    untouched = keeping(lambda values, context: values)
    yield Variant((function(before),), {"stops": stops, "scores": "the scores from before the cut"})
    yield Variant((function(untouched),), {"stops": stops, "scores": "the model's logits"})


def _suppressed(throughout: bool) -> Callable[[Stated, Steps | None], Iterator[Variant]]:
    def variants(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
        if stated.stops and not stated.settings.get("min_new_tokens"):
            for bound in (ALWAYS,) if throughout else BOUNDS:
                removed = MINIMUM.of(bound, stated.settings)
                values = {"stops": tuple(stated.stops), "below": bound}
                yield Variant((removed, *stated.chain), values)

    return variants


MISTAKES = (
    FilterMistake(
        "stop_tokens_bypass_filter",
        "stop tokens {stops} are never removed and keep {scores}",
        _spared,
        "stops",
        rank=Rank.ORDER,
    ),
    FilterMistake(
        "stop_tokens_removed_below_length",
        "stop tokens {stops} are removed below {below} new tokens",
        _suppressed(throughout=False),
        "below",
        ("min_new_tokens",),
        Rank.ORDER,
    ),
    FilterMistake(
        "stop_tokens_removed",
        "stop tokens {stops} are removed at every step",
        _suppressed(throughout=True),
        rank=Rank.ORDER,
    ),
)
