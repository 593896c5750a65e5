"""Minimum of new tokens: stop tokens are removed until so many tokens are generated.

Transformers' `MinNewTokensLengthLogitsProcessor`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.formats.file_values import is_number
from tracekit.sampling.observed import Context
from tracekit.sampling.processor import Apply, FilterMistake, Processor, Stated, Steps, Variant, stop_tokens
from tracekit.sampling.scores import Floats, without
from tracekit.trace import Json

NAME, SETTING = "MinNewTokensLengthLogitsProcessor", "min_new_tokens"


def barred_below(length: int, stops: list[int], *, prompt_counts: bool = False) -> Apply:
    """Stop tokens removed below a length."""

    def apply(values: Floats, context: Context) -> Floats:
        reached = len(context.history) if prompt_counts else len(context.generated)
        return values if reached >= length else without(values, stops)

    return apply


def _make(numbers: Json, settings: Json) -> Apply:
    return barred_below(int(numbers["min_new_tokens"]), stop_tokens(settings))


def _one_stop(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    length, stops = int(stated.settings[SETTING]), stated.stops
    if stops:
        values = {"length": length, "stop": stops[0]}
        yield Variant(stated.replaced(NAME, barred_below(length, stops[:1])), values)


def _prompt_counts(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    length = int(stated.settings[SETTING])
    apply = barred_below(length, stated.stops, prompt_counts=True)
    yield Variant(stated.replaced(NAME, apply), {"length": length})


PROCESSOR = Processor(
    name=NAME,
    setting=SETTING,
    words="minimum of new tokens",
    place=100,
    arguments=("min_new_tokens",),
    make=_make,
    accepts=is_number,
    neutral=(0,),
    mistakes=(
        FilterMistake(
            "minimum_length_bars_one_stop_token",
            "below {length} new tokens only the first stop token, {stop}, is removed",
            _one_stop,
            "stop",
            (SETTING,),
        ),
        FilterMistake(
            "minimum_length_counts_prompt",
            "the prompt counts towards the minimum of {length} new tokens",
            _prompt_counts,
            "length",
            (SETTING,),
        ),
    ),
)
