"""The parameters that a reference model holds, in the place of a checkpoint, where a program loads none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tracekit.checkpoints.parameters import Parameters
from tracekit.trace import Trace
from tracekit_torch import describe
from tracekit_torch.memory import WORDS


@dataclass(frozen=True)
class _Held:
    """A tensor of the model."""

    value: torch.Tensor

    @property
    def dtype(self) -> str:
        return WORDS[self.value.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def bits(self) -> NDArray[Any]:
        """A view of it."""
        held: NDArray[Any] = self.value.numpy()
        return np.ascontiguousarray(held)


def held_parameters(model: nn.Module, trace: Trace, name: str) -> Parameters:
    """Those of a reference in float64, by the names of its state dict. Its parameters are rounded to the dtype that the
    trace declares: what the candidate holds in another one cannot be compared with them, and is left out."""
    declared = str(trace.config.get("dtype") or "float32")
    found = {}
    for path, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.dtype not in WORDS:
            continue
        recorded, held_as = trace.weights.get(path), declared if value.is_floating_point() else WORDS[value.dtype]
        if recorded is None or recorded.dtype == held_as:
            found[path] = _Held(value.detach())
    return Parameters(name, found, describe.model_config(model))
