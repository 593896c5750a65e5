"""An activation, with a gate or without, and the two factors of a gated MLP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from tracekit.auditing import operations
from tracekit.auditing.operations import ACTIVATIONS, Floats
from tracekit.auditing.operations.activation import Activation
from tracekit.auditing.operations.gate import Gate
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, plainly, unchanged

GATE = (Gate.kind,)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -700.0, 700.0))))


FUNCTIONS: tuple[tuple[str, Callable[[Floats], Floats]], ...] = (
    ("silu", operations.silu),
    ("gelu", operations.gelu),
    ("tanh-gelu", operations.gelu_tanh),
    ("relu", operations.relu),
    ("sigmoid", _sigmoid),
    ("no activation", unchanged),
)
"""Each with how it reads."""


def _other_function(case: Case) -> Iterator[Hypothesis]:
    operation = case.recipe.operation
    assert isinstance(operation, Gate | Activation)
    x, stated = case.inputs[0], operation.activation
    up = case.inputs[1] if isinstance(operation, Gate) else np.ones_like(x)
    for name, function in FUNCTIONS:
        if function is not ACTIVATIONS[stated]:
            made = plainly(_times, function, x, up, found=name, stated=stated)
            yield replace(made, variance=operations.cancelled(x, up))


def _times(function: Callable[[Floats], Floats], x: Floats, up: Floats) -> Floats:
    return np.asarray(function(x) * up)


def _activation(case: Case) -> Callable[[Floats], Floats]:
    """The one that is declared."""
    assert isinstance(case.recipe.operation, Gate)
    return ACTIVATIONS[case.recipe.operation.activation]


def _swapped(case: Case) -> Iterator[Hypothesis]:
    gate, up = case.inputs
    yield plainly(_times, _activation(case), up, gate)


ACTIVATION = SiteMistake(
    "activation",
    "{found} instead of {stated}",
    main="found",
    at=(Gate.kind, Activation.kind),
    hypotheses=_other_function,
)
SWAPPED = SiteMistake("gate_and_up_swapped", "gate and up swapped", at=GATE, hypotheses=_swapped)
UP_LEFT_OUT = SiteMistake(
    "up_left_out",
    "the up projection is left out",
    at=GATE,
    hypotheses=lambda case: [plainly(_activation(case), case.inputs[0])],
)
GATE_LEFT_OUT = SiteMistake(
    "gate_left_out", "the gate is left out", at=GATE, hypotheses=lambda case: [plainly(unchanged, case.inputs[1])]
)
