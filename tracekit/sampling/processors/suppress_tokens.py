"""Suppressed tokens: removed at every step. Transformers' `SuppressTokensLogitsProcessor`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.formats.file_values import is_ids
from tracekit.sampling.processor import Apply, FilterMistake, Processor, Rank, Stated, Steps, Variant, run
from tracekit.sampling.scores import survivors, without
from tracekit.trace import Json

MANY = 4
"""Tokens that may be missing at a step to be tried as suppressed ones: more are a cut's doing."""


def _make(numbers: Json, settings: Json) -> Apply:
    tokens = numbers["suppress_tokens"]
    ids = [int(token) for token in (tokens if isinstance(tokens, list) else [tokens])]
    return lambda values, context: without(values, ids)


def _suppressed(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    """The few tokens that the stated chain keeps at the step at fault and that did not survive."""
    first = None if steps is None else steps.first
    if first is None or first.logits is None or first.ids is None:
        return
    expected, _ = survivors(run(stated.chain, first.logits, first.context))
    lost = np.setdiff1d(expected, first.ids)
    if not 0 < lost.size <= MANY:
        return
    removed = PROCESSOR.of(lost.tolist(), stated.settings)
    yield Variant((removed, *stated.chain), {"tokens": tuple(lost.tolist()), "place": "before the other processors"})
    yield Variant((*stated.chain, removed), {"tokens": tuple(lost.tolist()), "place": "after the other processors"})


PROCESSOR = Processor(
    name="SuppressTokensLogitsProcessor",
    setting="suppress_tokens",
    words="suppressed tokens",
    place=160,
    arguments=("suppress_tokens",),
    make=_make,
    accepts=is_ids,
    mistakes=(
        FilterMistake(
            "tokens_suppressed",
            "tokens {tokens} are removed at every step, {place}",
            _suppressed,
            "tokens",
            rank=Rank.NUMBER,
        ),
    ),
)
