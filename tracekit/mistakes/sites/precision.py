"""Parts of the attention core in a narrower format than the model's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tracekit.mistakes.core import ATTENTION, changed
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, narrower


def _rounded(*fields: str) -> Callable[[Case], Iterator[Hypothesis]]:
    """Fields of the core that hold a format."""

    def hypotheses(case: Case) -> Iterator[Hypothesis]:
        for dtype in narrower(case):
            yield changed(case, {"dtype": dtype}, **dict.fromkeys(fields, dtype))

    return hypotheses


TABLE = SiteMistake(
    "rotary_table_rounded",
    "rotary table rounded to {dtype}",
    main="dtype",
    at=ATTENTION,
    hypotheses=_rounded("table"),
)
SCORES = SiteMistake(
    "scores_rounded",
    "attention scores rounded to {dtype}",
    main="dtype",
    at=ATTENTION,
    hypotheses=_rounded("scores"),
)
WEIGHTS = SiteMistake(
    "softmax_rounded", "softmax rounded to {dtype}", main="dtype", at=ATTENTION, hypotheses=_rounded("weights")
)
BOTH = SiteMistake(
    "scores_and_softmax_rounded",
    "scores and softmax rounded to {dtype}",
    main="dtype",
    at=ATTENTION,
    hypotheses=_rounded("scores", "weights"),
)
WHOLE = SiteMistake(
    "softmax_narrow", "the whole softmax in {dtype}", main="dtype", at=ATTENTION, hypotheses=_rounded("softmax")
)
ANGLES = SiteMistake(
    "rotary_angles_rounded",
    "rotary angles rounded to {dtype}",
    main="dtype",
    at=ATTENTION,
    hypotheses=_rounded("angles"),
)
