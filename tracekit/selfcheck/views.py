"""A run seen as another one: one sequence of several, or generated tokens that were read as a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from tracekit.trace import TOKENS_GIVEN, Array, Event, Json, Sequence, Trace
from tracekit.trace_view import SequenceView, TraceView


def only(trace: Trace, index: int) -> Trace:
    """A trace with one of its sequences, which is then its first."""
    return cast(Trace, TraceView(trace, [_First(trace.sequences[index])]))


def as_generated(trace: Trace, base: Sequence) -> Trace:
    """A run that was given prompt and generated tokens of `base` as its prompt, seen as a run of that prompt: its sites
    are compared position by position, and it says nothing of steps."""
    return cast(Trace, TraceView(trace, [_AsPrompt(trace.sequences[0], base)]))


def on_a_prefix(trace: Trace, index: int, base: Sequence) -> Trace:
    """A sequence that was computed on positions that the cache held already. A recorder that saw the rest of the prompt
    alone calls that the prompt, and counts its steps from there: its sites are compared position by position."""
    sequence = trace.sequences[index]
    told, whole = sequence.prompt_ids, base.prompt_ids
    if told is None or whole is None or not 0 < len(told) < len(whole):
        return only(trace, index)
    if not np.array_equal(told, whole[len(whole) - len(told) :]):
        return only(trace, index)
    return cast(Trace, TraceView(trace, [_AsPrompt(sequence, base)]))


class _First(SequenceView):
    """A sequence counted from 0."""

    index = 0


class _AsPrompt(SequenceView):
    """A sequence of another's prompt, without steps."""

    index = 0
    step_count = 0
    end_reason = "done"
    events: tuple[Event, ...] = ()
    logits_dtype = None

    def __init__(self, sequence: Sequence, base: Sequence) -> None:
        super().__init__(sequence)
        self.prompt_ids = base.prompt_ids
        self.inputs: Mapping[str, Array] = base.inputs
        self.info: Json = {**sequence.info, TOKENS_GIVEN: True}
        self.tokens: Array = np.empty(0, np.int64)

    def logits(self, first: int, stop: int) -> None:
        """None of a step."""
