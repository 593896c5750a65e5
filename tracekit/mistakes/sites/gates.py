"""A gated MLP: its activation and its two factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from tracekit.auditing import operations
from tracekit.auditing.operations import ACTIVATIONS, Floats
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, plainly, unchanged

GATE = ("gate",)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -700.0, 700.0))))


FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "silu": operations.silu,
    "gelu": operations.gelu,
    "tanh-gelu": operations.gelu_tanh,
    "relu": operations.relu,
    "sigmoid": _sigmoid,
    "no activation": unchanged,
}


def _gated(function: Callable[[Floats], Floats], gate: Floats, up: Floats) -> Floats:
    return np.asarray(function(gate) * up)


def _other_function(case: Case) -> Iterator[Hypothesis]:
    (gate, up), stated = case.inputs, case.recipe.activation
    for name, function in FUNCTIONS.items():
        if function is not ACTIVATIONS[stated]:
            made = plainly(_gated, function, gate, up, found=name, stated=stated)
            yield replace(made, variance=operations.cancelled(gate, up))


def _swapped(case: Case) -> Iterator[Hypothesis]:
    gate, up = case.inputs
    yield plainly(_gated, ACTIVATIONS[case.recipe.activation], up, gate)


SWAPPED = SiteMistake("gate_and_up_swapped", "gate and up swapped", at=GATE, hypotheses=_swapped)
ACTIVATION = SiteMistake("activation", "{found} instead of {stated}", main="found", at=GATE, hypotheses=_other_function)
UP_LEFT_OUT = SiteMistake(
    "up_left_out",
    "the up projection is left out",
    at=GATE,
    hypotheses=lambda case: [plainly(ACTIVATIONS[case.recipe.activation], case.inputs[0])],
)
GATE_LEFT_OUT = SiteMistake(
    "gate_left_out", "the gate is left out", at=GATE, hypotheses=lambda case: [plainly(unchanged, case.inputs[1])]
)
