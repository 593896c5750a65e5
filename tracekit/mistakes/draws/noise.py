"""Other random numbers than exponential ones in the race."""

from __future__ import annotations

import numpy as np

from tracekit.mistakes.draw_mistake import DrawMistake, always
from tracekit.mistakes.explanation import Mistake
from tracekit.sampling.drawing import Chance, Choose
from tracekit.sampling.replay import Tape

UNIFORM = Mistake(
    "uniform_for_exponential", "the race divides by uniform numbers ({dtype}) instead of exponential ones"
)


def _uniform(dtype: str) -> Choose:
    def choose(tape: Tape, chance: Chance) -> int:
        with np.errstate(divide="ignore", invalid="ignore"):
            return int(np.nanargmax(chance.probs / tape.rand(chance.probs.size, dtype).astype(np.float32)))

    return choose


def _normal(tape: Tape, chance: Chance) -> int:
    with np.errstate(divide="ignore", invalid="ignore"):
        return int(np.nanargmax(chance.probs / np.abs(tape.normal(chance.probs.size))))


def _gumbel(tape: Tape, chance: Chance) -> int:
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = -np.log(-np.log(tape.rand(chance.probs.size).astype(np.float64)))
        return int(np.nanargmax(np.log(chance.probs.astype(np.float64)) + noise))


MISTAKES = (
    *(
        DrawMistake(UNIFORM, always(_uniform(dtype), whole=True), values={"dtype": dtype})
        for dtype in ("float64", "float32")
    ),
    DrawMistake(
        Mistake("normal_for_exponential", "the race divides by normal numbers instead of exponential ones"),
        always(_normal, whole=True),
    ),
    DrawMistake(
        Mistake("gumbel_noise", "the largest of log p plus Gumbel noise is taken, instead of the exponential race"),
        always(_gumbel, whole=True),
    ),
)
