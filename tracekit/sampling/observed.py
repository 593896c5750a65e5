"""One recorded step of one side, ready to be recomputed: logits, history, survivors, draws, token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.trace import Draw, Json


@dataclass(frozen=True)
class Context:
    """What a processor knows besides the scores: the prompt and the tokens so far, and how many are the prompt's."""

    history: Sequence[int] = ()
    prompt: int = 0

    @property
    def generated(self) -> Sequence[int]:
        """The tokens so far without the prompt."""
        return self.history[self.prompt :]


@dataclass(frozen=True)
class Observed:
    """One step of one side."""

    index: int
    logits: NDArray[Any] | None  # f32 or f64 [vocabulary]
    context: Context
    ids: NDArray[np.int64] | None  # survivors, descending probability
    probs: NDArray[Any] | None
    token: int
    """What this side chose by itself, also where another token was forced on it."""
    draws: tuple[Draw, ...]
    processors: tuple[Json, ...]
    """Details of the recorded `processor` events, in the order in which they ran."""
