"""How a token is drawn from a step's distribution: torch's exponential race, the largest, repetition-aware sampling.

A way of drawing is run again on a recorded step: its distribution, and the generator's words from where the draw began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tracekit.sampling.chain import RAS, chain
from tracekit.sampling.exponential_race import RACE_TOLERANCE
from tracekit.sampling.observed import Observed
from tracekit.sampling.processor import run
from tracekit.sampling.ras import Ras, redrawn
from tracekit.sampling.replay import Streams, Tape
from tracekit.sampling.scores import Floats, survivors
from tracekit.torch_rng.transforms import race_words
from tracekit.trace import Draw, Json

NEAR_SEEDS = 64
"""Seeds on either side of the stated one that are tried."""
ENOUGH = 3
"""Tokens that a way of drawing must give back before it is named: one may come out by chance."""


@dataclass(frozen=True)
class Chance:
    """What a step's token was drawn from."""

    probs: Floats  # [vocabulary]: f32 as recorded, f64 where recomputed
    ids: NDArray[np.int64]  # what can be drawn, descending
    index: int
    recorded: bool
    """Whether the probabilities are the recorded ones, not recomputed."""
    seen: Observed
    whole: bool = True
    """Whether `probs` is as long as the vocabulary."""

    @property
    def kept(self) -> Floats:
        """Probabilities of `ids`."""
        return self.probs[self.ids]


@dataclass(frozen=True)
class Trial:
    """A step with its distribution and the words that its draw began with."""

    seen: Observed
    chance: Chance
    words: NDArray[np.uint32] | None


Choose = Callable[[Tape, Chance], int | None]
"""The token; None where it comes from what was not recorded."""


def _never(trial: Trial) -> bool:
    return False


@dataclass(frozen=True, eq=False)
class Way:
    """A way of drawing."""

    choose: Choose
    whole: bool = False
    """Whether it draws for every token of the vocabulary: its size decides which words a token gets."""
    undrawn: Callable[[Trial], bool] = _never
    """Whether it needs no random numbers at a step."""


def chance_of(seen: Observed, stated: Json, vocabulary: int | None = None) -> Chance | None:
    """The distribution of a step: as recorded, else, and of a greedy one, recomputed from the logits under the stated
    settings.

    `vocabulary` is the number of tokens where it is known of a step without logits.
    """
    # What a greedy choice was made from is kept as probabilities in float32, in which near-equal scores may be equal.
    if seen.ids is not None and seen.probs is not None and stated.get("do_sample") is not False:
        size = seen.logits.size if seen.logits is not None else vocabulary
        if size is None and stated.get("sampler") != RAS:
            return None  # the stated way, too, draws for every token
        least = int(seen.ids.max(initial=0)) + 1
        whole = size is not None and size >= least
        return _chance(seen.ids, seen.probs, max(size or 0, least), seen, recorded=True, whole=whole)
    if seen.logits is None:
        return None
    ids, probs = survivors(run(chain(stated), seen.logits, seen.context))
    return _chance(ids, probs, seen.logits.size, seen, recorded=False, whole=True)


def _chance(ids: NDArray[np.int64], kept: Floats, size: int, seen: Observed, *, recorded: bool, whole: bool) -> Chance:
    # What is recomputed keeps its precision: near-equal scores must not become equal probabilities.
    probs = np.zeros(size, dtype=np.float32 if recorded else np.float64)
    probs[ids] = kept
    return Chance(probs, ids, seen.index, recorded, seen, whole)


# -------------------------------------------------------------------- the ways that sides state


def race(tape: Tape, chance: Chance) -> int:
    """torch's: the largest of p / q, q exponential, over the whole vocabulary."""
    return int(np.argmax(tape.race(chance.probs)))


def largest(tape: Tape, chance: Chance) -> int:
    """The largest probability, the lowest id where several are equal."""
    return int(np.argmax(chance.probs))


RACE = Way(race, whole=True)
GREEDY = Way(largest, undrawn=lambda trial: True)


def own_way(stated: Json) -> Way:
    """How a side says that it draws."""
    if stated.get("do_sample") is False:
        return GREEDY
    return ras_way(Ras(), stated) if stated.get("sampler") == RAS else RACE


def ras_way(rule: Ras, stated: Json) -> Way:
    """Repetition-aware sampling by a rule."""
    return Way(lambda tape, chance: redrawn(rule, tape, chance.seen, stated))


# -------------------------------------------------------------------- trying one


@dataclass(frozen=True)
class Tried:
    """How many of the recorded tokens a way of drawing gives back."""

    right: int
    of: int

    @property
    def all(self) -> bool:
        """Every one, and not none."""
        return self.of > 0 and self.right == self.of


def words_needed(chance: Chance) -> int:
    """Words that the hungriest way takes: two races over the vocabulary, or as many as were drawn and one more, and a
    ragged end."""
    return max(2, len(chance.seen.draws) + 1) * race_words(chance.probs.size) + 64


def trials(steps: Sequence[Observed], stated: Json, streams: Streams, vocabulary: int | None = None) -> list[Trial]:
    """The steps that can be drawn again; `vocabulary` as for `chance_of`."""
    out = []
    for seen in steps:
        chance = chance_of(seen, stated, vocabulary)
        if chance is None:
            continue
        draw = _token_draw(seen, stated)
        out.append(Trial(seen, chance, None if draw is None else streams.at(draw, words_needed(chance))))
    return out


def _token_draw(seen: Observed, stated: Json) -> Draw | None:
    """The draw that gave the token; of a sampler that may draw twice, the first."""
    if not seen.draws:
        return None
    return seen.draws[0] if stated.get("sampler") == RAS else seen.draws[-1]


def gives(way: Way, trial: Trial) -> int | None:
    """The token that a way gives; None where that hangs on what is not known: the generator's words, other tokens'
    probabilities, the number of tokens."""
    if way.whole and not trial.chance.whole:
        return None
    if trial.words is None:
        return way.choose(Tape(np.zeros(0, np.uint32)), trial.chance) if way.undrawn(trial) else None
    return way.choose(Tape(trial.words), trial.chance)


def reproduces(way: Way, trial: Trial) -> bool | None:
    """Whether a way gives the recorded token, or loses it by a last bit of probabilities that were recomputed; None
    where it cannot be tried."""
    token = gives(way, trial)
    if token is None:
        return None
    if trial.words is None or token == trial.seen.token:
        return token == trial.seen.token
    if trial.chance.recorded or way is not RACE or trial.seen.token >= trial.chance.probs.size:
        return False
    scores = Tape(trial.words).race(trial.chance.probs)
    lag = float(scores[trial.seen.token]) / float(scores[token])
    return lag > 1.0 - RACE_TOLERANCE


def tried(way: Way, among: Sequence[Trial]) -> Tried:
    """How many steps a way reproduces, of those that it can be tried on; stops at the second failure."""
    right, of = 0, 0
    drawn = any(trial.seen.draws for trial in among)
    for trial in among:
        fits = reproduces(way, trial)
        undrawn = drawn and not trial.seen.draws  # a way that draws would have been seen to
        if fits is None and not undrawn:
            continue
        of += 1
        right += bool(fits)
        if of - right > 1:
            break
    return Tried(right, of)


def as_stated(among: Sequence[Trial], stated: Json) -> bool:
    """Whether the stated way of drawing gives back the token of every step, and none was chosen without a draw."""
    way = own_way(stated)
    undrawn = any(not trial.seen.draws for trial in among) and any(trial.seen.draws for trial in among)
    return tried(way, among).all and (way is GREEDY or not undrawn)


def near_seed(among: Sequence[Trial], streams: Streams, stated: int) -> int | None:
    """The seed nearest to the stated one whose race gives back every token, drawn one after the other from its start.

    For sides that do not record where their generator was.
    """
    if len(among) < ENOUGH:
        return None
    size = race_words(among[0].chance.probs.size)
    for seed in sorted(range(max(0, stated - NEAR_SEEDS), stated + NEAR_SEEDS + 1), key=lambda s: abs(s - stated)):
        if all(
            reproduces(RACE, replace(trial, words=streams.words(seed, size * trial.seen.index, size)))
            for trial in among
        ):
            return seed
    return None
