"""Positions of a sequence: where its prompt ends, and which step a position belongs to."""

from __future__ import annotations

from tracekit.trace import Sequence


def prompt_length(sequence: Sequence) -> int:
    """Positions of the prompt; of a sequence without token inputs, all of them."""
    if sequence.step_count:
        return sequence.step(0).position + 1
    return len(sequence.prompt_ids) if sequence.prompt_ids is not None else sequence.positions


def step_of(position: int, prompt: int) -> int:
    """The step that a position belongs to; all of the prefill is step 0."""
    return max(0, position - (prompt - 1))
