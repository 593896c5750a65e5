"""Steps as they were recorded, made ready to be worked out again: logits, history, survivors, draws, token."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import to_float
from tracekit.inspection.following import own_choice
from tracekit.sampling.observed import Context, Observed
from tracekit.torch_rng.generator import TorchGenerator
from tracekit.torch_rng.transforms import Transforms
from tracekit.trace import Draw, Sequence

MOST_STEPS = 64
"""Steps of a sequence that a hypothesis is tried on."""
FURTHER_STEPS = 512
"""Steps more where several hypotheses fit all of those."""


def observe(sequence: Sequence, index: int, tokens: NDArray[Any] | None = None) -> Observed:
    """A step of a sequence, whose `tokens` may be at hand. Raises IndexError."""
    tokens = sequence.tokens if tokens is None else tokens
    step = sequence.step(index)
    logits = step.logits
    if logits is not None and sequence.logits_dtype is not None:
        logits = to_float(logits, sequence.logits_dtype)
    prompt = [] if sequence.prompt_ids is None else [int(token) for token in sequence.prompt_ids]
    own = own_choice(step)
    return Observed(
        step.index,
        logits,
        Context(prompt + [int(token) for token in tokens[:index]], len(prompt)),
        step.survivors_id,
        step.survivors_prob,
        step.token if own is None else own,
        step.draws,
        tuple(event.detail for event in step.events if event.kind == "processor" and isinstance(event.detail, dict)),
    )


def observations(sequence: Sequence, around: int = 0) -> list[Observed]:
    """Steps of a sequence, `MOST_STEPS` at most; `around` is among them."""
    first = max(0, min(around - MOST_STEPS // 2, sequence.step_count - MOST_STEPS))
    tokens = sequence.tokens
    return [observe(sequence, index, tokens) for index in range(first, min(sequence.step_count, first + MOST_STEPS))]


def other_observations(sequence: Sequence, known: list[Observed]) -> list[Observed]:
    """Further steps of a sequence, `FURTHER_STEPS` at most, for hypotheses that the known ones do not tell apart."""
    seen = {one.index for one in known}
    tokens = sequence.tokens
    left = [index for index in range(sequence.step_count) if index not in seen]
    return [observe(sequence, index, tokens) for index in left[:FURTHER_STEPS]]


class Tape(Transforms):
    """A source that plays given words, so that many rules can be tried on the same ones."""

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self._tape = words
        self._played = 0

    def words(self, count: int) -> NDArray[np.uint32]:
        """The next words; zeros after the end of the tape."""
        first = self._played
        self._played = first + count
        given = self._tape[first : first + count]
        return np.pad(given, (0, count - given.size))


MOST_OFFSET = 1 << 31
"""Words from the seed up to which a stream is regenerated; ten seconds."""
MOST_WORDS = 1 << 24
"""Words of one draw that are regenerated, 128 MB: two for each of eight million tokens."""


class Streams:
    """Words of one side's generator at its recorded draws. Going forward is cheap: the generator is kept."""

    def __init__(self, sequence: Sequence) -> None:
        self._state = sequence.rng_state
        self._seed = sequence.seed
        self._generator: TorchGenerator | None = None

    def at(self, draw: Draw, count: int) -> NDArray[np.uint32] | None:
        """`count` words from where a draw began; None where that is not known, the generator is none of ours, or they
        are too many or too far from the seed."""
        if draw.generator != "mt19937" or draw.seed is None or draw.offset is None:
            return None
        if not 0 <= draw.offset <= MOST_OFFSET or not 0 <= count <= MOST_WORDS:
            return None
        return self.words(draw.seed, draw.offset, count)

    def words(self, seed: int, offset: int, count: int) -> NDArray[np.uint32]:
        """`count` words of a seed's stream from `offset` on."""
        generator = self._generator
        known = generator is not None and generator.seed == seed % 2**64 and (generator.offset or 0) <= offset
        if generator is None or not known:
            generator = TorchGenerator(seed)
        generator.skip(offset - (generator.offset or 0))
        ahead = TorchGenerator(seed)
        ahead._bits.state = generator._bits.state
        self._generator = generator
        return ahead.words(count)
