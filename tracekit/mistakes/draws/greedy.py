"""The largest is taken where a token should be drawn, or drawn where the largest should be taken."""

from __future__ import annotations

import numpy as np

from tracekit.mistakes.draw_mistake import Algorithm, DrawMistake, Rank, always
from tracekit.mistakes.explanation import Mistake
from tracekit.sampling.drawing import GREEDY, RACE, Chance, largest, race
from tracekit.sampling.replay import Tape


def _largest_first(tape: Tape, chance: Chance) -> int:
    return largest(tape, chance) if chance.index == 0 else race(tape, chance)


def _race_or_largest(tape: Tape, chance: Chance) -> int:
    drawn, top = race(tape, chance), largest(tape, chance)
    return top if chance.seen.token == top else drawn


def _last_largest(tape: Tape, chance: Chance) -> int:
    return int(chance.probs.size - 1 - np.argmax(chance.probs[::-1]))


MISTAKES = (
    DrawMistake(
        Mistake("argmax_at_first_step", "the first token is the largest, the others are drawn"),
        always(_largest_first, whole=True, undrawn=lambda trial: trial.chance.index == 0),
    ),
    DrawMistake(Mistake("argmax", "the largest is taken, nothing is drawn"), lambda stated: GREEDY),
    DrawMistake(
        Mistake("argmax_at_some_steps", "at some steps the largest is taken instead of the drawn token"),
        always(_race_or_largest, whole=True, undrawn=lambda trial: not trial.seen.draws),
        rank=Rank.SOMETIMES,
    ),
    DrawMistake(
        Mistake("last_of_equal_logits", "of equal logits the last is taken, not the first"),
        always(_last_largest, undrawn=lambda trial: True),
        (Algorithm.GREEDY,),
        rank=Rank.SAME,
    ),
    DrawMistake(
        Mistake("exponential_race", "the token is drawn by torch's exponential race over the vocabulary"),
        lambda stated: RACE,
        (Algorithm.GREEDY, Algorithm.RAS),
        rank=Rank.PLAIN,
    ),
)
