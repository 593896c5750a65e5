"""What an adapter is, and what it tells the recorder: of its model, of a sequence, of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from tracekit.trace import Json
from tracekit_torch.draws import Drawn


@dataclass
class Row:
    """One sequence that is being recorded: a row of the model's batch."""

    sequence: int
    padding: int
    """Positions of the batch's padding to the left of this row, which are no positions of the sequence."""
    prompt_length: int
    next_position: int = 0
    steps: int = 0
    reason: str | None = None
    """Why it ended; None while it goes on."""
    followed: int = 0
    """Steps that went on with the followed trace's token."""
    mask_unknown: int | None = None
    """The first position whose call was given a mask that a trace does not hold."""
    weights_unknown: int | None = None
    """The first position that was computed after the program had changed the model's weights."""


@dataclass
class Choice:
    """What is known of one step of one row."""

    token: int
    logits: torch.Tensor | None = None  # [V] on the host
    survivors: tuple[torch.Tensor, torch.Tensor] | None = None  # ids i64 [n], probabilities f32 [n]
    draws: list[Json] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    events: list[Json] = field(default_factory=list)
    text: str | None = None
    """What the token stands for, where the program's tokenizer does not know it."""
    position: int | None = None
    """Of the logits, where it does not follow from the prompt and the step."""
    own: int | None = None
    """What the run chose by itself, where it was seen; the token of a step that was forced is another trace's."""
    unseen: str | None = None
    """Why it was not seen how the token was drawn; None where it was."""
    may_be_given: bool = False
    """An unseen token may be one that the program feeds, not one that it chose."""


@dataclass(frozen=True)
class About:
    """What an adapter knows of its model that the model itself does not tell."""

    model: Json
    """Hyper-parameters, in the words of a `config.json`."""
    checkpoint: str | None = None
    lifted: nn.Module | None = None
    """The module whose forward an oracle computes in higher precision, where the model's own is not what runs."""
    left_out: Mapping[nn.Module, str] = field(default_factory=dict)
    """Modules that are not recorded, and why."""
    encoder: nn.Module | None = None
    """Of an encoder-decoder: the module that runs before the steps, over rows of its own."""


class Adapter(Protocol):
    """What knows how a kind of model is run. `begin` and `end` frame each outermost call of the model.

    An exception from any method ends the recording, not the program.
    """

    def begin(self, arguments: Json) -> None:
        """The model is called with these arguments, by name."""

    def end(self, output: Any) -> None:
        """The call has returned `output`."""

    def listening(self) -> bool:
        """Whether what is drawn now, between two calls, belongs to a step."""

    def drew(self, drawn: Drawn) -> torch.Tensor | None:
        """A torch operator drew while `listening`. A tensor that is returned takes the place of the result."""

    def chose(self, scores: torch.Tensor, result: torch.Tensor) -> torch.Tensor | None:
        """An argmax of `scores` was taken while `listening`: `result`. What is returned is as for `drew`."""

    def write(self) -> None:
        """Write what the taps hold of the current call."""

    def finish(self, reason: str | None, detail: str | None) -> None:
        """The run is over: end every sequence that goes on."""
