"""One step of repetition-aware sampling, read off the draws that a speech model makes for it.

A trial is a draw from the nucleus and, where the token repeats, one from everything. A stop token that is not allowed
yet is drawn again: another trial.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tracekit.sampling.chain import RAS
from tracekit.trace import Json
from tracekit_torch.draws import Drawn

NUMBERS = ("top_p", "top_k", "win_size", "tau_r", "temperature")
"""What samplers of this family are given."""


def sampling_numbers(sampling: Callable[..., Any]) -> Json:
    """The numbers that a sampler works with: those bound by a `functools.partial`, else its own defaults."""
    try:
        parameters = inspect.signature(sampling).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    found = {name: parameters[name].default for name in NUMBERS if name in parameters}
    numbers = {name: value for name, value in found.items() if isinstance(value, (int, float))}
    repeats = {"win_size", "tau_r"} <= set(numbers)
    return {"sampler": RAS if repeats else _name(sampling), **numbers}


def _name(sampling: Callable[..., Any]) -> str:
    function = getattr(sampling, "func", sampling)
    return str(getattr(function, "__name__", type(function).__name__))


@dataclass
class Trial:
    """A token drawn from the nucleus, and the one drawn from everything in its place."""

    first: int
    fallback: int | None = None

    @property
    def token(self) -> int:
        """What the trial gave."""
        return self.first if self.fallback is None else self.fallback


@dataclass
class RasStep:
    """The step that goes on. `scores` [V] are what the sampler was given, `decoded` the tokens so far."""

    scores: torch.Tensor
    decoded: Sequence[int]
    numbers: Json
    draws: list[Json] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    survivors: tuple[torch.Tensor, torch.Tensor] | None = None
    """Ids i64 [n] and unnormalised probabilities f32 [n] of the nucleus."""
    _probs: torch.Tensor | None = None

    def drew(self, drawn: Drawn) -> None:
        """Something was drawn for this step."""
        token = self._token(drawn)
        self.draws.append(drawn.as_json(token))
        self.values.append(drawn.value)

    def _token(self, drawn: Drawn) -> int | None:
        source = drawn.source
        if drawn.op != "multinomial" or source is None or source.dim() != 1 or drawn.result.numel() != 1:
            return None
        index = int(drawn.result)
        if source.numel() == self.scores.numel():
            return self._from_everything(source, index)
        ids = self._ids_of(source)
        if ids is None:
            return None  # another sampler's way; its index stands for nothing that is known
        if self.survivors is None:
            self.survivors = ids.cpu(), source.detach().float().cpu()
        self.trials.append(Trial(int(ids[index])))
        return self.trials[-1].first

    def _from_everything(self, source: torch.Tensor, token: int) -> int:
        if self.trials and self.trials[-1].fallback is None:
            self.trials[-1].fallback = token
        else:
            self.trials.append(Trial(token))
        return token

    def _ids_of(self, nucleus: torch.Tensor) -> torch.Tensor | None:
        """Ids [n] of the nucleus' probabilities [n]: the n largest, descending, ties by lower id; None if it is not."""
        if self._probs is None:
            self._probs = self.scores.softmax(dim=0)
        probs, count = self._probs, nucleus.numel()
        ids = torch.nonzero(probs >= nucleus[-1].to(probs)).reshape(-1)
        values, order = probs[ids].sort(descending=True, stable=True)
        if values.numel() < count or not torch.equal(values[:count].to(nucleus), nucleus):
            return None
        return ids[order[:count]]

    def events(self) -> list[Json]:
        """Fallbacks and redraws, in the order of the draws."""
        out: list[Json] = []
        window = list(self.decoded)[-int(self.numbers.get("win_size", 10)) :]
        for index, trial in enumerate(self.trials):
            if trial.fallback is not None:
                detail = {"token": trial.first, "count": window.count(trial.first)}
                out.append({"kind": "repetition_fallback", "detail": detail})
            if index + 1 < len(self.trials):
                out.append({"kind": "redraw", "detail": {"token": trial.token, "count": index + 1}})
        return out
