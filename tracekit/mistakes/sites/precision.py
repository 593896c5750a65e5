"""Parts of the attention core in a narrower format than the model's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tracekit.auditing.operations import unit
from tracekit.mistakes.core import ATTENTION, changed, core_of
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, narrower

ROTARY_PARTS = (
    (("frequencies", "angles"), "frequencies and angles"),
    (("frequencies", "table"), "frequencies and table"),
    (("angles", "table"), "angles and table"),
    (("frequencies", "angles", "table"), "frequencies, angles and table"),
)
"""Fields of the core that hold a format, and what they are called together."""


def _rounded(*fields: str) -> Callable[[Case], Iterator[Hypothesis]]:
    """Fields of the core that hold a format."""

    def hypotheses(case: Case) -> Iterator[Hypothesis]:
        for dtype in narrower(case):
            yield changed(case, {"dtype": dtype}, **dict.fromkeys(fields, dtype))

    return hypotheses


def _rotary_parts(case: Case) -> Iterator[Hypothesis]:
    """Several parts; with positions that the format cannot hold, those as well."""
    if not core_of(case).rotate_queries:
        return
    last = float(case.window.rows[-1])
    for dtype in narrower(case):
        for fields, what in ROTARY_PARTS:
            yield _together(case, dtype, fields, what)
            if "angles" in fields and last * unit(dtype) > 1.0:
                yield _together(case, dtype, ("places", *fields), f"positions, {what}")


def _together(case: Case, dtype: str, fields: tuple[str, ...], what: str) -> Hypothesis:
    hypothesis = changed(case, {"what": what, "dtype": dtype}, **dict.fromkeys(fields, dtype))
    return replace(hypothesis, changes=len(fields))


TABLE = SiteMistake(
    "rotary_table_rounded",
    "rotary table rounded to {dtype}",
    main="dtype",
    at=ATTENTION,
    hypotheses=_rounded("table"),
)
ANGLES = SiteMistake(
    "rotary_angles_rounded",
    "rotary angles rounded to {dtype}",
    main="dtype",
    at=ATTENTION,
    hypotheses=_rounded("angles"),
)
FREQUENCIES = SiteMistake(
    "rotary_frequencies_rounded",
    "rotary frequencies rounded to {dtype}",
    main="dtype",
    at=ATTENTION,
    hypotheses=_rounded("frequencies"),
)
ROTARY = SiteMistake(
    "rotary_rounded", "rotary {what} rounded to {dtype}", main="what", at=ATTENTION, hypotheses=_rotary_parts
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
