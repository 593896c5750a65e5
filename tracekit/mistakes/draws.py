"""How was this token drawn? torch's way and the ways of ports, tried on the recorded distribution and generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.sampling import chain as sampling
from tracekit.sampling.chain import GONE, RAS
from tracekit.sampling.exponential_race import RACE_TOLERANCE
from tracekit.sampling.replay import Observed, Streams, Tape
from tracekit.trace import Draw, Json

Floats = NDArray[Any]
NEAR_SEEDS = 64
"""Seeds on either side of the stated one that are tried."""
ENOUGH = 3
"""Tokens that a way of drawing must give back before it is named: one may come out by chance."""


@dataclass(frozen=True)
class Chance:
    """What a step's token was drawn from."""

    probs: Floats  # [vocabulary]: f32 as recorded, f64 where worked out again
    ids: NDArray[np.int64]  # what can be drawn, descending
    index: int
    recorded: bool
    """Whether the probabilities are the recorded ones, not worked out again."""
    seen: Observed
    whole: bool = True
    """Whether `probs` is as long as the vocabulary."""

    @property
    def kept(self) -> Floats:
        """Probabilities of `ids`."""
        return self.probs[self.ids]


@dataclass(frozen=True)
class Way:
    """A way of drawing."""

    kind: str
    text: str
    choose: Callable[[Tape, Chance], int | None]
    """The token; None where it comes from what was not recorded."""
    whole: bool = False
    """Whether it draws for every token of the vocabulary: its size decides which words a token gets."""


def chance_of(seen: Observed, stated: Json, vocabulary: int | None = None) -> Chance | None:
    """The distribution of a step: as recorded, else worked out from the logits under the stated settings.

    `vocabulary` is the number of tokens where it is known of a step without logits.
    """
    if seen.ids is not None and seen.probs is not None:
        size = seen.logits.size if seen.logits is not None else vocabulary
        if size is None and stated.get("sampler") != RAS:
            return None  # the stated way, too, draws for every token
        least = int(seen.ids.max(initial=0)) + 1
        whole = size is not None and size >= least
        return _chance(seen.ids, seen.probs, max(size or 0, least), seen, recorded=True, whole=whole)
    if seen.logits is None:
        return None
    ids, probs = sampling.survivors(sampling.run(sampling.chain(stated), seen.logits, seen.context))
    return _chance(ids, probs, seen.logits.size, seen, recorded=False, whole=True)


def _chance(ids: NDArray[np.int64], kept: Floats, size: int, seen: Observed, *, recorded: bool, whole: bool) -> Chance:
    # What was worked out again keeps its precision: near-equal scores must not become equal probabilities.
    probs = np.zeros(size, dtype=np.float32 if recorded else np.float64)
    probs[ids] = kept
    return Chance(probs, ids, seen.index, recorded, seen, whole)


# -------------------------------------------------------------------- ways of drawing


def race(tape: Tape, chance: Chance) -> int:
    """torch's: the largest of p / q, q exponential, over the whole vocabulary."""
    return int(np.argmax(tape.race(chance.probs)))


def _uniform_race(tape: Tape, chance: Chance) -> int:
    with np.errstate(divide="ignore", invalid="ignore"):
        return int(np.nanargmax(chance.probs / tape.rand(chance.probs.size, "float64").astype(np.float32)))


def _uniform_race_of_words(tape: Tape, chance: Chance) -> int:
    with np.errstate(divide="ignore", invalid="ignore"):
        return int(np.nanargmax(chance.probs / tape.rand(chance.probs.size)))


def _normal_race(tape: Tape, chance: Chance) -> int:
    with np.errstate(divide="ignore", invalid="ignore"):
        return int(np.nanargmax(chance.probs / np.abs(tape.normal(chance.probs.size))))


def _compact_race(tape: Tape, chance: Chance) -> int:
    ids = np.sort(chance.ids)
    return int(ids[np.argmax(tape.race(chance.probs[ids]))])


def _compact_race_descending(tape: Tape, chance: Chance) -> int:
    return int(chance.ids[np.argmax(tape.race(chance.kept))])


def _gumbel(tape: Tape, chance: Chance) -> int:
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = -np.log(-np.log(tape.rand(chance.probs.size).astype(np.float64)))
        return int(np.nanargmax(np.log(chance.probs.astype(np.float64)) + noise))


def _inverse(ids: NDArray[np.int64], chance: Chance, goal: float) -> int:
    kept = chance.probs[ids].astype(np.float64)
    sums = np.cumsum(kept)
    place = int(np.searchsorted(sums, goal * sums[-1], side="right"))
    return int(ids[min(place, ids.size - 1)])


def _inverse_by(order: str, dtype: str) -> Callable[[Tape, Chance], int]:
    def choose(tape: Tape, chance: Chance) -> int:
        ids = np.sort(chance.ids) if order == "id" else chance.ids
        return _inverse(ids, chance, float(tape.rand(1, dtype)[0]))

    return choose


def largest(tape: Tape, chance: Chance) -> int:
    """The largest probability, the lowest id where several are equal."""
    return int(np.argmax(chance.probs))


def _largest_first(tape: Tape, chance: Chance) -> int:
    return largest(tape, chance) if chance.index == 0 else race(tape, chance)


def _race_or_largest(tape: Tape, chance: Chance) -> int:
    drawn, top = race(tape, chance), int(np.argmax(chance.probs))
    return top if chance.seen.token == top else drawn


RACE = Way("race", "torch's exponential race", race, whole=True)
WAYS = (
    Way("argmax at the first step", "the first token is the largest, the others are drawn", _largest_first, whole=True),
    Way("argmax", "the largest is taken, nothing is drawn", largest),
    *(
        Way(
            "inverse CDF",
            f"one uniform number ({dtype}) against the cumulative sum by {order}, in place of the exponential race",
            _inverse_by(order, dtype),
        )
        for order in ("id", "descending probability")
        for dtype in ("float32", "float64")
    ),
    Way(
        "uniform for exponential",
        "the race divides by uniform numbers in place of exponential ones",
        _uniform_race,
        whole=True,
    ),
    Way(
        "uniform for exponential",
        "the race divides by uniform float32 numbers in place of exponential ones",
        _uniform_race_of_words,
        whole=True,
    ),
    Way(
        "normal for exponential",
        "the race divides by normal numbers in place of exponential ones",
        _normal_race,
        whole=True,
    ),
    Way("race among survivors", "the race draws for the survivors alone, in order of id", _compact_race),
    Way(
        "race among survivors",
        "the race draws for the survivors alone, in descending order of probability",
        _compact_race_descending,
    ),
    Way(
        "argmax at some steps", "at some steps the largest is taken in place of the drawn", _race_or_largest, whole=True
    ),
    Way(
        "Gumbel noise", "the largest of log p plus Gumbel noise, in place of the exponential race", _gumbel, whole=True
    ),
)


# -------------------------------------------------------------------- trying them


@dataclass(frozen=True)
class Tried:
    """How many of the recorded tokens a way of drawing gives back."""

    right: int
    of: int

    @property
    def all(self) -> bool:
        """Every one, and not none."""
        return self.of > 0 and self.right == self.of


@dataclass(frozen=True)
class Trial:
    """A step with its distribution and the words that its draw began with."""

    seen: Observed
    chance: Chance
    words: NDArray[np.uint32] | None
    seed: int | None
    offset: int | None


def words_needed(chance: Chance) -> int:
    """Words that the hungriest way takes: two races over the vocabulary, or as many as were drawn and one more, and a
    ragged end."""
    return 2 * max(2, len(chance.seen.draws) + 1) * chance.probs.size + 64


def trials(steps: Sequence[Observed], stated: Json, streams: Streams, vocabulary: int | None = None) -> list[Trial]:
    """The steps that can be drawn again; `vocabulary` as for `chance_of`."""
    out = []
    for seen in steps:
        chance = chance_of(seen, stated, vocabulary)
        if chance is None:
            continue
        draw = _token_draw(seen, stated)
        words = None if draw is None else streams.at(draw, words_needed(chance))
        out.append(Trial(seen, chance, words, draw.seed if draw else None, draw.offset if draw else None))
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
        return way.choose(Tape(np.zeros(0, np.uint32)), trial.chance) if _needs_none(way, trial) else None
    return way.choose(Tape(trial.words), trial.chance)


def _needs_none(way: Way, trial: Trial) -> bool:
    """Whether a way needs no random numbers at a step."""
    if way.kind == "argmax at the first step":
        return trial.chance.index == 0
    if way.kind == "argmax at some steps":
        return not trial.seen.draws
    return way.kind in ("argmax", "last of equal logits")


def reproduces(way: Way, trial: Trial) -> bool | None:
    """Whether a way gives the recorded token, or loses it by a last bit of probabilities that were worked out again;
    None where it cannot be tried."""
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


def own_way(stated: Json) -> Way:
    """How a side says that it draws."""
    if stated.get("do_sample") is False:
        return Way("argmax", "the largest is taken", largest)
    if stated.get("sampler") == RAS:
        return _ras_way(Ras("ras", "repetition-aware sampling"), stated)
    return RACE


def other_ways(stated: Json) -> tuple[Way, ...]:
    """How it may draw in truth."""
    if stated.get("do_sample") is False:
        return (Way("last of equal logits", "of equal logits the last is taken, not the first", _last_largest), RACE)
    if stated.get("sampler") == RAS:
        return (*(_ras_way(rule, stated) for rule in RAS_RULES), RACE, *WAYS)
    return WAYS


def _last_largest(tape: Tape, chance: Chance) -> int:
    return int(chance.probs.size - 1 - np.argmax(chance.probs[::-1]))


def as_stated(among: Sequence[Trial], stated: Json) -> bool:
    """Whether the stated way of drawing gives back the token of every step, and none was chosen without a draw."""
    way = own_way(stated)
    undrawn = any(not trial.seen.draws for trial in among) and any(trial.seen.draws for trial in among)
    return tried(way, among).all and (way.kind == "argmax" or not undrawn)


def explain(among: Sequence[Trial], stated: Json) -> list[tuple[Way, Tried]]:
    """The ways, other than the stated one, that give back the token of every step; the simplest first."""
    if not any(float(trial.chance.probs.max()) < 0.999 for trial in among):
        return []  # a sure token comes out of any
    results = [(way, tried(way, among)) for way in other_ways(stated)]
    return [(way, result) for way, result in results if result.all and result.of >= min(ENOUGH, len(among))]


def narrowed(answers: list[tuple[Way, Tried]], among: Sequence[Trial]) -> list[tuple[Way, Tried]]:
    """Of ways that fit some steps, those that fit further ones, too; all of them where none does."""
    further = [(way, right, tried(way, among)) for way, right in answers]
    kept = [
        (way, Tried(right.right + more.right, right.of + more.of))
        for way, right, more in further
        if more.right == more.of
    ]
    return kept or answers


def near_seed(among: Sequence[Trial], streams: Streams, stated: int) -> int | None:
    """The seed nearest to the stated one whose race gives back every token, drawn one after the other from its start.

    For sides that do not record where their generator was.
    """
    if len(among) < ENOUGH:
        return None
    size = 2 * among[0].chance.probs.size
    for seed in sorted(range(max(0, stated - NEAR_SEEDS), stated + NEAR_SEEDS + 1), key=lambda s: abs(s - stated)):
        if all(
            reproduces(RACE, replace(trial, words=streams.words(seed, size * trial.seen.index, size)))
            for trial in among
        ):
            return seed
    return None


# -------------------------------------------------------------------- CosyVoice's sampler


Pick = Callable[[Tape, Floats], int]
"""(words, probabilities f32 [n]) -> index."""


def _race_of(tape: Tape, probs: Floats) -> int:
    return int(np.argmax(tape.race(probs)))


def _inverse_of(dtype: str) -> Pick:
    def pick(tape: Tape, probs: Floats) -> int:
        goal, sums = float(tape.rand(1, dtype)[0]), np.cumsum(probs.astype(np.float64))
        return min(int(np.searchsorted(sums, goal * sums[-1], side="right")), probs.size - 1)

    return pick


@dataclass(frozen=True)
class Ras:
    """Repetition-aware sampling with its numbers, and how it may be miswritten."""

    kind: str
    text: str
    pick: Pick = _race_of
    strict: bool = False
    """The rule has > for >=."""
    window_from_start: bool = False
    fallback: bool = True
    redraws: bool = True
    eos_only: bool = False
    """Of the stop tokens, which begin with sos, only the next one counts."""


RAS_RULES = (
    Ras("no repetition rule", "tokens that repeat are not drawn again", fallback=False),
    Ras("repetition rule with >", "the repetition rule has > in place of >=", strict=True),
    Ras("stop tokens not drawn again", "stop tokens before min_len are taken as they come", redraws=False),
    Ras(
        "stop on eos only", "of the stop tokens only eos counts: others are neither drawn again nor stop", eos_only=True
    ),
    Ras("repetition window from the start", "the repetition window is the first tokens", window_from_start=True),
    *(
        Ras(
            "inverse CDF",
            f"one uniform number ({dtype}) a draw against the cumulative sum, in place of the exponential race",
            _inverse_of(dtype),
        )
        for dtype in ("float32", "float64")
    ),
)


REDRAWS = 100
"""Times that `sampling_ids` draws again before it gives up."""


NONE = -1
"""No token: what a rule gives that would have drawn again where the recorded side did not."""


def ras(rule: Ras, tape: Tape, seen: Observed, stated: Json) -> int | None:
    """A token as CosyVoice's `sampling_ids` chooses it: before `min_len` steps, a stop token is drawn again.

    None where it comes from probabilities that were not recorded.
    """
    listed = sorted(stated.get("stop_token_ids") or ())
    stops = set(listed[1:2] if rule.eos_only else listed)
    early = len(seen.context.generated) < int(stated.get("min_len") or 0)
    token: int | None = NONE
    for _ in range(1 + REDRAWS):
        token = _ras_once(rule, tape, seen, stated)
        if not (early and token in stops and rule.redraws):
            break
    return token


def _ras_once(rule: Ras, tape: Tape, seen: Observed, stated: Json) -> int | None:
    """CosyVoice's `ras_sampling`, written anew.

    The nucleus is drawn from with numbers for its survivors alone; a token that repeats is drawn again from everything.
    """
    ids, kept, probs = _nucleus_of(seen, stated)
    token = int(ids[rule.pick(tape, kept)])
    window, share = int(stated.get("win_size", 10)), float(stated.get("tau_r", 0.1))
    decoded = list(seen.context.generated)
    recent = decoded[:window] if rule.window_from_start else decoded[-window:]
    count, least = recent.count(token), window * share
    if not (rule.fallback and (count > least if rule.strict else count >= least)):
        return token
    if probs is None:
        return None if len(seen.draws) > 1 else NONE
    return rule.pick(tape, probs)


def _nucleus_of(seen: Observed, stated: Json) -> tuple[NDArray[np.int64], Floats, Floats | None]:
    """Tokens of the nucleus and their probabilities, f32, and those of all tokens, which survivors alone do not say."""
    if seen.logits is None:
        if seen.ids is None or seen.probs is None:
            raise ValueError("repetition-aware sampling needs logits or survivors")
        return seen.ids, seen.probs.astype(np.float32), None
    values = sampling.run(sampling.chain(stated | {"sampler": RAS}), seen.logits, seen.context)
    probs = sampling.softmax(sampling.working(seen.logits)).astype(np.float32)
    order = np.argsort(-probs, kind="stable")
    ids = order[values[order] > GONE]
    return ids, probs[ids], probs


def _ras_way(rule: Ras, stated: Json) -> Way:
    return Way(rule.kind, rule.text, lambda tape, chance: ras(rule, tape, chance.seen, stated))
