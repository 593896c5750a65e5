"""What a model does to the head's output before it is the logits: a factor and a soft cap."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.auditing import operations
from tracekit.auditing.operations.soft_cap import SoftCap
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, plainly, unchanged

CAPPED = (SoftCap.kind,)


def _soft_cap(case: Case) -> SoftCap:
    assert isinstance(case.recipe.operation, SoftCap)
    return case.recipe.operation


def _uncapped(case: Case) -> Iterator[Hypothesis]:
    capped = _soft_cap(case)
    if capped.cap is not None:
        yield plainly(unchanged, case.inputs[0] * capped.factor, stated=capped.cap)


def _unscaled(case: Case) -> Iterator[Hypothesis]:
    capped = _soft_cap(case)
    if capped.factor != 1.0:
        yield plainly(operations.capped, case.inputs[0], 1.0, capped.cap, case.dtype, factor=capped.factor)


CAP_LEFT_OUT = SiteMistake(
    "soft_cap_left_out", "the soft cap of {stated:g} is left out", main="stated", at=CAPPED, hypotheses=_uncapped
)
SCALE_LEFT_OUT = SiteMistake(
    "logits_scale_left_out",
    "the logits are not multiplied by {factor:.6g}",
    main="factor",
    at=CAPPED,
    hypotheses=_unscaled,
)
