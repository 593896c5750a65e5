"""Bad words: the last token of a forbidden word is removed where the history ends with what comes before it.

Transformers' `NoBadWordsLogitsProcessor`; a word that is a stop token is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracekit.formats.file_values import is_ids
from tracekit.sampling.processor import Apply, Processor, stop_tokens
from tracekit.sampling.scores import Floats, without
from tracekit.trace import Json


def _without_words(values: Floats, words: Sequence[Sequence[int]], history: Sequence[int]) -> Floats:
    past = list(history)
    return without(values, [word[-1] for word in words if past[len(past) - len(word) + 1 :] == list(word[:-1])])


def _make(numbers: Json, settings: Json) -> Apply:
    stops = [[token] for token in stop_tokens(settings)]
    words = [list(word) for word in numbers["bad_word_ids"] if list(word) not in stops]
    return lambda values, context: _without_words(values, words, context.history)


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, list) and word and is_ids(word) for word in value)


PROCESSOR = Processor(
    name="NoBadWordsLogitsProcessor",
    setting="bad_words_ids",
    words="bad words",
    place=80,
    arguments=("bad_word_ids",),
    make=_make,
    accepts=_is_words,
)
