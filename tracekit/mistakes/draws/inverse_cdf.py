"""One uniform number against the cumulative sum of the probabilities, where torch runs an exponential race."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracekit.mistakes.draw_mistake import Algorithm, DrawMistake, Rank, always
from tracekit.mistakes.explanation import Mistake
from tracekit.sampling.drawing import Chance, Choose, ras_way
from tracekit.sampling.ras import Pick, Ras
from tracekit.sampling.replay import Tape
from tracekit.sampling.scores import Floats

INVERSE_CDF = Mistake(
    "inverse_cdf",
    "one uniform number ({dtype}) is compared with the cumulative sum in order of {order}, "
    "where torch runs an exponential race",
)


def _index(goal: float, probs: Floats) -> int:
    sums = np.cumsum(probs.astype(np.float64))
    return min(int(np.searchsorted(sums, goal * sums[-1], side="right")), probs.size - 1)


def _sorted(chance: Chance, order: str) -> NDArray[np.int64]:
    return np.sort(chance.ids) if order == "id" else chance.ids


def _by(order: str, dtype: str) -> Choose:
    def choose(tape: Tape, chance: Chance) -> int:
        ids = _sorted(chance, order)
        return int(ids[_index(float(tape.rand(1, dtype)[0]), chance.probs[ids])])

    return choose


def _pick(dtype: str) -> Pick:
    return lambda tape, probs: _index(float(tape.rand(1, dtype)[0]), probs)


def _in_nucleus(dtype: str, removes: bool) -> DrawMistake:
    rule = Ras(pick=_pick(dtype), removes=removes)
    values = {"dtype": dtype, "order": "the nucleus"}
    return DrawMistake(INVERSE_CDF, lambda stated: ras_way(rule, stated), (Algorithm.RAS,), values, Rank.SAME)


MISTAKES = (
    *(_in_nucleus(dtype, removes) for removes in (False, True) for dtype in ("float32", "float64")),
    *(
        DrawMistake(INVERSE_CDF, always(_by(order, dtype)), values={"dtype": dtype, "order": order})
        for order in ("id", "descending probability")
        for dtype in ("float32", "float64")
    ),
)
