"""A norm, an activation or an attention core with steps rounded to the model's own 16-bit format: a choice of
precision, no wrong formula."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.auditing.operations import Attention
from tracekit.auditing.operations.activation import Activation
from tracekit.auditing.operations.gate import Gate
from tracekit.auditing.operations.norms import RmsNorm
from tracekit.mistakes.engine_steps import steps_of
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, plainly

STEPS_AT = (RmsNorm.kind, Gate.kind, Activation.kind, Attention.kind)


def _rounded(case: Case) -> Iterator[Hypothesis]:
    for steps in steps_of(case):
        yield plainly(steps.made, steps=steps.what, dtype=case.dtype)


STEPS_ROUNDED = SiteMistake(
    "steps_rounded",
    "{steps} rounded to {dtype}",
    main="steps",
    precision=True,
    at=STEPS_AT,
    hypotheses=_rounded,
)
