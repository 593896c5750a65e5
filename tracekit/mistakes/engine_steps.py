"""The declared formula of a site in 16 bits as engines compute it that round every step: a choice of precision.

Values are worked out bit for bit, so that what another formula does beside such an arithmetic can be told from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from tracekit.auditing import operations, stepwise
from tracekit.auditing.arithmetic import Emulated
from tracekit.auditing.operations import Attention, Core, Floats
from tracekit.auditing.operations.activation import Activation
from tracekit.auditing.operations.gate import Gate
from tracekit.auditing.operations.norms import Norm, RmsNorm
from tracekit.auditing.rounding import as_stored
from tracekit.dtypes import SIXTEEN_BITS
from tracekit.mistakes.suspect import Case, Rows


@dataclass(frozen=True)
class Steps:
    """One arithmetic: what is rounded, and the rows [rows, width] that it gives, all or some of them."""

    what: str
    made: Callable[[], Floats]
    at: Callable[[Rows], Floats] | None = None
    """Some rows alone, of a core: indexes into the case's."""


NORM_STEPS: tuple[tuple[str, stepwise.NormSteps], ...] = (
    ("the root mean square", stepwise.divided_by_rounded),
    ("the reciprocal root mean square", stepwise.times_rounded),
    ("the mean square and the reciprocal of its root", stepwise.times_twice_rounded),
)
CORE_STEPS: tuple[tuple[str, bool, bool], ...] = (
    ("", False, False),
    ("the softmax", True, False),
    ("rotary positions, frequencies and angles", False, True),
    ("the softmax, and rotary positions, frequencies and angles", True, True),
)
"""What is rounded, and the switches of `Emulated`: softmax, rotary."""
SUMMED = "the sum of the values"


def steps_of(case: Case) -> Iterator[Steps]:
    """The arithmetics that the declared formula of a site is computed in by engines; none outside 16 bits."""
    if case.dtype not in SIXTEEN_BITS:
        return
    match case.recipe.operation:
        case RmsNorm() as norm:
            yield from norm_steps(case, norm, case.run.parameters.vector(case.recipe, "weight"))
        case Gate() | Activation() as operation if operation.activation in stepwise.ACTIVATIONS:
            yield Steps("every step of the activation", lambda: _activated(case, operation.activation))
        case Attention() as attention:
            yield from core_steps(case, attention.core, case.inputs, sums_alone=True)


def norm_steps(case: Case, norm: Norm, weight: Floats | None) -> Iterator[Steps]:
    """A root mean square norm with this weight as the checkpoint holds it."""
    factor = weight + 1.0 if weight is not None and norm.plus_one else weight
    for what, steps in NORM_STEPS:
        yield Steps(what, lambda steps=steps: _normed(case, factor, norm.eps, steps))  # type: ignore[misc]


def _normed(case: Case, factor: Floats | None, eps: float, steps: stepwise.NormSteps) -> Floats:
    return stepwise.rms_norm(case.inputs[0], factor, eps, case.dtype, steps, case.recorded)


def _activated(case: Case, activation: str) -> Floats:
    active = stepwise.ACTIVATIONS[activation](case.inputs[0], case.dtype)
    return active if len(case.inputs) == 1 else as_stored(active * case.inputs[1], case.dtype)


def core_steps(case: Case, core: Core, inputs: list[Floats], sums_alone: bool = False) -> Iterator[Steps]:
    """An attention core from these queries, keys and values. Scores are rounded as a product, or again when they are
    scaled; a row by itself may be added up in 16 bits, as a product of one row is. `sums_alone`: also where nothing
    else is rounded, which takes long."""
    for what, softmax, rotary in CORE_STEPS:
        if (rotary and not (core.rotate_queries or core.rotate_keys)) or not (what or sums_alone):
            continue
        for scores in () if not what else (1, 2) if softmax else (0, 1, 2):
            how = Emulated(case.dtype, scores, softmax=softmax, rotary=rotary)
            yield _steps(what, partial(attended_as, case, core, inputs, how))
        if softmax or not rotary:
            how = Emulated(case.dtype, 1, softmax=softmax, rotary=rotary, sums=True)
            said = f"{what}, and {SUMMED}" if what else SUMMED
            yield _steps(said, partial(attended_as, case, core, inputs, how))
            yield _steps(said, partial(_in_decoding, case, core, inputs, how))


def _steps(what: str, at: Callable[[Rows], Floats]) -> Steps:
    return Steps(what, lambda: at(slice(None)), at)


def attended_as(case: Case, core: Core, inputs: list[Floats], how: Emulated, rows: Rows) -> Floats:
    """An attention core from these inputs in an engine's arithmetic at some rows, [rows, width]."""
    q, k, v = inputs
    return operations.attend(core, q[rows], k, v, case.window.rows[rows], how)


def _in_decoding(case: Case, core: Core, inputs: list[Floats], how: Emulated, rows: Rows) -> Floats:
    """The sum of the values in 16 bits in decoding alone, where a call has one row."""
    wide = Emulated(how.dtype, how.scores, softmax=how.softmax, rotary=how.rotary)
    at = np.arange(len(case.window.rows))[rows]
    reading = case.window.rows[at] < case.prompt
    out = np.empty((len(at), inputs[0].shape[1]))
    for part, arithmetic in ((reading, wide), (~reading, how)):
        if part.any():
            out[part] = attended_as(case, core, inputs, arithmetic, at[part])
    return out
