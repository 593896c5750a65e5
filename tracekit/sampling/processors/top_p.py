"""Top-p: the smallest set of probability p or more stays: the token that crosses p, too, and the largest always.

Holtzman et al. 2019; transformers' `TopPLogitsWarper`.
"""

from __future__ import annotations

import numpy as np

from tracekit.formats.file_values import is_number
from tracekit.sampling.other_numbers import Interval, mass_interval, within
from tracekit.sampling.processor import (
    Apply,
    Processor,
    Stated,
    Steps,
    Unit,
    by_number,
    instead,
    removed_nothing,
)
from tracekit.sampling.scores import GONE, Floats, Rounded, descending, mass_above, softmax
from tracekit.trace import Json

NAME, SETTING, PLACE = "TopPLogitsWarper", "top_p", 240


def keep_top_p(values: Floats, p: float) -> Floats:
    """Scores with what stands after the token that crosses p removed."""
    above = mass_above(values)
    return np.where((above < p) | (above == 0.0), values, GONE)


def drop_crossing(values: Floats, p: float) -> Floats:
    """The same without the token that crosses p: a mistake."""
    above, probs = mass_above(values), softmax(values)
    return np.where((above + probs <= p) | (above == 0.0), values, GONE)


def _cut(numbers: Json, values: Floats) -> tuple[Floats, Unit]:
    return mass_above(values) - float(numbers["top_p"]), Unit.MASS


def _rounds(numbers: Json, values: Floats, rounded: Rounded) -> Floats:
    return rounded.mass(values, descending(values))


# -------------------------------------------------------------------- mistakes


def _one_more(p: float) -> Apply:
    def apply(values: Floats, context: object) -> Floats:
        kept = keep_top_p(values, p)
        rest = np.where(kept > GONE, GONE, values)
        if rest.max() > GONE:
            following = int(np.argmax(rest))
            kept[following] = values[following]
        return kept

    return apply


def _interval(stated: Stated, steps: Steps) -> Interval | None:
    return mass_interval(PLACE, stated, steps)


PROCESSOR = Processor(
    name=NAME,
    setting=SETTING,
    words="top-p",
    place=PLACE,
    arguments=("top_p",),
    make=by_number(lambda p: lambda values, context: keep_top_p(values, p)),
    accepts=is_number,
    neutral=(1.0,),
    sampled=True,
    common=True,
    cut=_cut,
    rounds=_rounds,
    unexercised=removed_nothing,
    mistakes=(
        instead(
            "top_p_drops_crossing_token",
            "top-p {p:g} drops the token that crosses p; the smallest set of mass p or more keeps it",
            (NAME, SETTING, "p"),
            lambda p: lambda values, context: drop_crossing(values, p),
        ),
        instead(
            "top_p_keeps_one_more",
            "top-p {p:g} keeps one token more than the one that crosses p",
            (NAME, SETTING, "p"),
            _one_more,
        ),
        within(SETTING, _interval),
    ),
)
