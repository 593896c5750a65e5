"""Tokens of another trace that a run is forced onto, and its random numbers."""

from __future__ import annotations

import torch

import tracekit
from tracekit.trace import Draw, Sequence, TraceError


class Follow:
    """The tokens of every sequence of a trace, with `draws` also where its generator stood. Raises TraceError where the
    trace cannot be read, or does not say where in its stream a draw lay."""

    def __init__(self, path: str, draws: bool = False) -> None:
        with tracekit.open(path) as trace:
            self._tokens = [[int(token) for token in sequence.tokens] for sequence in trace.sequences]
            self._draws = [_places(path, sequence) if draws else [] for sequence in trace.sequences]
        self._stream: torch.Generator | None = None
        self._at = (0, 0)  # seed of the stream, and words taken from it
        self._placed: tuple[int, int] | None = None

    def token(self, sequence: int, step: int) -> int | None:
        """The token to force, or None where the trace has no more."""
        tokens = self._tokens[sequence] if sequence < len(self._tokens) else []
        return tokens[step] if step < len(tokens) else None

    def place(self, sequence: int, step: int, generator: torch.Generator) -> None:
        """Put a generator where the trace's stood before this step's first draw; once a step, since its later draws
        follow from the first. A step without draws leaves it alone."""
        places = self._draws[sequence] if sequence < len(self._draws) else []
        if (sequence, step) == self._placed or step >= len(places) or places[step] is None:
            return
        self._placed = (sequence, step)
        seed, offset = places[step] or (0, 0)
        if self._stream is None or self._at[0] != seed or self._at[1] > offset:
            self._stream, self._at = torch.Generator().manual_seed(seed), (seed, 0)
        # One 32-bit word for each number (aten/src/ATen/core/TransformationHelper.h, `random`).
        torch.empty(offset - self._at[1], dtype=torch.int32).random_(generator=self._stream)
        self._at = (seed, offset)
        generator.set_state(self._stream.get_state())


def _places(path: str, sequence: Sequence) -> list[tuple[int, int] | None]:
    """Seed and offset of each step's first draw; None of a step without any."""
    steps = [sequence.step(index).draws for index in range(sequence.step_count)]
    return [_place(f"{path}: sequence {sequence.index}, step {index}", draws) for index, draws in enumerate(steps)]


def _place(where: str, draws: tuple[Draw, ...]) -> tuple[int, int] | None:
    if not draws:
        return None
    first = draws[0]
    if first.generator != "mt19937":
        raise TraceError(f"{where}: its draw comes from {first.generator}; record it with --rng cpu to follow it")
    if first.seed is None or first.offset is None:
        raise TraceError(
            f"{where}: it is not known where in its stream the draw lay; seed the program, record it again"
        )
    return first.seed, first.offset
