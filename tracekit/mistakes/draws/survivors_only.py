"""The race draws numbers for the survivors alone, where torch draws one for every token of the vocabulary."""

from __future__ import annotations

import numpy as np

from tracekit.mistakes.draw_mistake import DrawMistake, always
from tracekit.mistakes.explanation import Mistake
from tracekit.sampling.drawing import Chance
from tracekit.sampling.replay import Tape

RACE_OF_SURVIVORS = Mistake(
    "race_among_survivors", "the race draws numbers for the survivors alone, in order of {order}"
)


def _by_id(tape: Tape, chance: Chance) -> int:
    ids = np.sort(chance.ids)
    return int(ids[np.argmax(tape.race(chance.probs[ids]))])


def _descending(tape: Tape, chance: Chance) -> int:
    return int(chance.ids[np.argmax(tape.race(chance.kept))])


MISTAKES = (
    DrawMistake(RACE_OF_SURVIVORS, always(_by_id), values={"order": "id"}),
    DrawMistake(RACE_OF_SURVIVORS, always(_descending), values={"order": "descending probability"}),
)
