"""Minimum length: stop tokens are removed until prompt and generation together have a length.

Transformers' `MinLengthLogitsProcessor`.
"""

from __future__ import annotations

from tracekit.formats.file_values import is_number
from tracekit.sampling.processor import Apply, Processor, stop_tokens
from tracekit.sampling.scores import without
from tracekit.trace import Json


def _make(numbers: Json, settings: Json) -> Apply:
    length, stops = int(numbers["min_length"]), stop_tokens(settings)
    return lambda values, context: values if len(context.history) >= length else without(values, stops)


PROCESSOR = Processor(
    name="MinLengthLogitsProcessor",
    setting="min_length",
    words="minimum length",
    place=90,
    arguments=("min_length",),
    make=_make,
    accepts=is_number,
    neutral=(0,),
)
