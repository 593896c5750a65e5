"""Which experts a router chose: those of the reference's scores, or others, as the values after it show.

A router takes the largest of some scores. Where two are a rounding apart, a right program may take either, and what the
experts give is then another value altogether. So every choice of the replay is noted with the scores that it was made
of; where a site after it is wrong, the choices that come next by their scores are tried, and one under which the
recorded values are right is what the candidate chose.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tracekit.auditing.audit import Audit
from tracekit.trace import Sequence
from tracekit_torch.reference_program.lockstep import Lockstep

Floats = NDArray[np.float64]
Forced = Mapping[tuple[int, int], tuple[int, ...]]
"""By number of the choice in the program, and position: the experts to take."""
PRIOR = 4.0
"""Samples that the spread of all scores together weighs as much as."""


@dataclass(frozen=True, eq=False)
class Choice:
    """One `topk` over the positions of a sequence."""

    index: int
    """In the order of the program."""
    module: str
    """The module that runs."""
    scores: Floats
    """[positions, experts]"""
    taken: NDArray[np.int64]
    """[positions, chosen], in no order."""
    spread: Floats
    """Standard deviation of what rounding makes of each score, [positions, experts]."""

    def others(self, position: int) -> Iterator[tuple[int, ...]]:
        """Other experts than those taken, those first whose scores sum to the most."""
        order = np.argsort(-self.scores[position], kind="stable")
        own = frozenset(self.taken[position].tolist())
        count, scores = len(own), self.scores[position][order]
        start = tuple(range(count))
        queue, seen = [(0.0, start)], {start}
        while queue:
            _, places = heapq.heappop(queue)
            chosen = tuple(sorted(int(order[place]) for place in places))
            if frozenset(chosen) != own:
                yield chosen
            for place in range(count):
                after = places[place] + 1
                if after < len(order) and after not in places:
                    moved = (*places[:place], after, *places[place + 1 :])
                    if moved not in seen:
                        seen.add(moved)
                        heapq.heappush(queue, (float(-scores[list(moved)].sum()), moved))

    def apart(self, position: int, chosen: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], float, float]:
        """Of experts that were chosen in place of those taken: which ones are not among them, which stand in their
        place, how far their scores are apart at most, and the standard deviation of that difference."""
        own = set(self.taken[position].tolist())
        left, instead = tuple(sorted(own - set(chosen))), tuple(sorted(set(chosen) - own))
        scores, spread = self.scores[position], self.spread[position]
        first, last = max(left, key=lambda one: scores[one]), min(instead, key=lambda one: scores[one])
        return left, instead, float(scores[first] - scores[last]), float(np.hypot(spread[first], spread[last]))


class Choosing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is on, the choices over all positions are noted, and some of them made otherwise.

    Args:
        positions: rows of what is chosen from.
        module: gives the module that runs.
        forced: choices to make otherwise.
        drawn: the runs with drawn roundings that go beside.
    """

    def __init__(self, positions: int, module: Callable[[], str], forced: Forced, drawn: Lockstep | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[Choice] = []
        self._positions, self._module, self._forced, self._drawn = positions, module, forced, drawn

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is not torch.ops.aten.topk.default or not self._chooses(args[0], out[1]):
            return out
        with _disable_current_modes():
            self._note(args[0], out[1])
            other = self._otherwise(out[1])
        if other is None:
            return out
        other = torch.ops.aten.lift_fresh(other)  # as a constant of the program, for a capture of it
        return torch.gather(args[0], -1, other), other

    def _chooses(self, scores: torch.Tensor, taken: torch.Tensor) -> bool:
        wide = scores.shape[-1] if scores.dim() else 0
        return wide > 1 and scores.numel() == self._positions * wide and taken.shape[-1] < wide

    def _note(self, scores: torch.Tensor, taken: torch.Tensor) -> None:
        wide = scores.shape[-1]
        exact = scores.reshape(-1, wide).to(torch.float64, copy=True).numpy()
        off = None if self._drawn is None else self._drawn.off(scores)
        spread = np.zeros_like(exact)
        if off is not None:
            samples = off.reshape(len(off), -1, wide).numpy().astype(np.float64)
            mean = np.square(samples).mean()
            # Of a few samples a single score's spread is not known well.
            spread = np.sqrt((PRIOR * mean + np.square(samples).sum(axis=0)) / (PRIOR + len(samples)))
        chosen = taken.reshape(-1, taken.shape[-1]).numpy().copy()
        self.made.append(Choice(len(self.made), self._module(), exact, chosen, spread))

    def _otherwise(self, taken: torch.Tensor) -> torch.Tensor | None:
        index = len(self.made) - 1
        mine = {position: experts for (call, position), experts in self._forced.items() if call == index}
        if not mine:
            return None
        other = taken.clone()
        rows = other.reshape(-1, other.shape[-1])
        for position, experts in mine.items():
            if position < len(rows):  # of a run that is cut short
                rows[position] = torch.tensor(experts)
        return rows.reshape(other.shape)


def near_ties(found: Audit, sequence: Sequence) -> Forced:
    """The near-ties of a sequence that the candidate decided otherwise, to be decided as it did."""
    return {
        (each.choice, each.position): each.taken
        for each in found.routed
        if each.near_tie and each.sequence == sequence.index
    }
