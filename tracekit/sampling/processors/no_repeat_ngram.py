"""No-repeat n-gram: tokens that would complete an n-gram of the history a second time are removed.

Transformers' `NoRepeatNGramLogitsProcessor`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracekit.formats.file_values import is_count
from tracekit.sampling.processor import Processor, by_number
from tracekit.sampling.scores import Floats, without


def _without_repeats(values: Floats, size: int, history: Sequence[int]) -> Floats:
    past = [int(token) for token in history]
    if size < 1 or len(past) + 1 < size:
        return values
    tail = past[len(past) - size + 1 :]
    ends = range(size - 1, len(past))
    return without(values, [past[end] for end in ends if past[end - size + 1 : end] == tail])


PROCESSOR = Processor(
    name="NoRepeatNGramLogitsProcessor",
    setting="no_repeat_ngram_size",
    words="no-repeat n-gram",
    place=60,
    arguments=("ngram_size",),
    make=by_number(lambda size: lambda values, context: _without_repeats(values, size, context.history), int),
    accepts=is_count,
    neutral=(0,),
)
