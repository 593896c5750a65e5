"""A model that looks ahead, an encoder that is made to generate: every token changes all positions before it.

A trace holds each position as it was when it was first computed. One prefill of everything gives other values, and the
later calls' own values at earlier positions are not recorded. So such a trace is judged by its prompt's call alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from tracekit.trace import Sequence, Trace
from tracekit.trace_view import TraceView
from tracekit_torch.adapters.causal_calls import output_logits
from tracekit_torch.contained_tensors import first_tensor
from tracekit_torch.reference_program.first_positions import FirstPositions
from tracekit_torch.reference_program.loading import forward_of

AHEAD = 1e-6
"""Relative difference, in float64, from which what comes later is part of a position's value."""


def looks_ahead(model: nn.Module, trace: Trace) -> bool:
    """Whether the model, in float64, gives a prompt other logits with the sampled tokens after it than without."""
    for whole, first in zip(trace.sequences, first_calls(trace).sequences, strict=True):
        if not 0 < first.positions < whole.positions:
            continue
        with torch.no_grad():
            alone, within = (_logits(forward_of(model, trace, each)()) for each in (first, whole))
        if alone is None or within is None:
            continue
        apart = (within[:, : alone.shape[1]] - alone).norm() / alone.norm()
        return bool(apart > AHEAD)
    return False


def _logits(output: Any) -> torch.Tensor | None:
    """[batch, time, vocabulary], or what a model without logits gives first."""
    logits = output_logits(output)
    return first_tensor(output) if logits is None else logits


def first_calls(trace: Trace) -> Trace:
    """Of each sequence, the positions and the step of its prompt's call."""
    return cast(Trace, TraceView(trace, map(_first_call, trace.sequences)))


def _first_call(sequence: Sequence) -> FirstPositions:
    count = sequence.step(0).position + 1 if sequence.step_count else sequence.positions
    return FirstPositions(sequence, count)
