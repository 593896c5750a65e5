"""Tokens that are removed at the first step. Transformers' `SuppressTokensAtBeginLogitsProcessor`."""

from __future__ import annotations

from tracekit.formats.file_values import is_ids
from tracekit.sampling.processor import Apply, Processor
from tracekit.sampling.scores import without
from tracekit.trace import Json


def _make(numbers: Json, settings: Json) -> Apply:
    tokens = numbers["begin_suppress_tokens"]
    ids = [int(token) for token in (tokens if isinstance(tokens, list) else [tokens])]
    return lambda values, context: values if context.generated else without(values, ids)


PROCESSOR = Processor(
    name="SuppressTokensAtBeginLogitsProcessor",
    setting="begin_suppress_tokens",
    words="tokens suppressed at the first step",
    place=170,
    arguments=("begin_suppress_tokens",),
    make=_make,
    accepts=is_ids,
)
