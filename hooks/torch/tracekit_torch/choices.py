"""Tokens that a program chose while no step was recorded: without them, two runs that agree say nothing of sampling."""

from __future__ import annotations

import torch

RACE = "exponential_"
"""What a draw by hand begins with: the largest of probabilities over exponential numbers wins."""


class Choices:
    """Counts the tokens that are drawn between the model's calls."""

    def __init__(self) -> None:
        self.tokens = 0
        self.at_a_time = 0
        """The most that one operator drew: rows of a batch, codebooks."""
        self._raced: torch.Size | None = None

    def drew(self, op: str, result: torch.Tensor) -> None:
        """A torch operator drew `result`."""
        self._raced = result.shape if op == RACE else None
        if op == "multinomial" and result.shape[-1:] == (1,):
            self._add(result.numel())

    def chose(self, scores: torch.Tensor, result: torch.Tensor) -> None:
        """An argmax of `scores` was taken: a draw, where numbers of their shape were drawn before it."""
        if self._raced is not None and scores.shape == self._raced:
            self._add(result.numel())
        self._raced = None

    def _add(self, tokens: int) -> None:
        self.tokens += tokens
        self.at_a_time = max(self.at_a_time, tokens)

    def lost(self) -> str:
        """What is said of them."""
        several = f", {self.at_a_time} at a time" if self.at_a_time > 1 else ""
        return (
            f"{self.tokens} tokens that the program chose{several}: which recorded call gave the logits of each is not "
            "known; where another module makes them, name it with --module"
        )
