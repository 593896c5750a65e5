"""Drawn roundings of a program without a cache: what a position read of those before it is not what is recorded.

Such a program computes everything again with each token. Of a position, the trace holds the values of the call that it
was new in; the later calls' values of it, which later positions read, are off by another rounding of the whole program
up to there. That is the difference of two runs with drawn roundings that nothing was put into.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

FREE = 8
"""Runs that nothing is put into."""


class ComputedAgain(DrawnRounding):  # type: ignore[no-untyped-call]
    """`draws` errors of each position, whose earlier positions are off as another call's are.

    A position's own values are put in as they were recorded, and earlier ones off. So there are two runs for each draw:
    in the one, positions after the first call's are off at random, in the other those that are not. A position is
    judged by the run in which it is not off; there, half of the others after the first call are off, by sqrt(2) times
    as much. `draws` more runs in which no position is off are those of the first call's positions.

    Args:
        first: the first position whose call computed earlier ones again.
        positions: how many positions there are.
    """

    def __init__(
        self, unit: float, sums: float, seed: int, draws: int, first: int, positions: int, only: int | None = None
    ) -> None:
        super().__init__(unit, sums, seed, FREE + 3 * draws, only)
        self._count, self._first = draws, first
        dice = torch.Generator().manual_seed(seed)
        late = torch.arange(positions) >= first
        chosen = torch.rand((draws, positions), generator=dice) < 0.5
        off = torch.stack([chosen, ~chosen], dim=1).flatten(0, 1)
        # Of two computations each is off by a rounding of its own.
        self._sizes = torch.where(late, off * 2.0, 2.0**0.5)
        self._moved = (off & late).numpy()
        # The same sum of free runs at every site and position is a free run as well.
        mix = torch.randn((2 * draws, FREE), generator=dice)
        self._mix = mix / torch.linalg.vector_norm(mix, dim=1, keepdim=True)

    def put(self, into: Tensor, value: Tensor, first: int | None = None) -> None:
        """Put what was recorded of the positions from `first` on into a tensor [positions, ...]."""
        found, since = self.off(into), self.since(into)
        kept = None if found is None or first is None else found.clone()
        super().put(into, value)
        if kept is None or first is None:
            return
        kept[FREE : FREE + self._count] = 0.0
        sizes = self._sizes[:, first : first + len(into)]
        free = torch.einsum("rf,fp...->rp...", self._mix, kept[:FREE])
        kept[FREE + self._count :] = free.mul_(sizes.reshape(*sizes.shape, *(1,) * (into.dim() - 1)))
        self.add(into, kept, since)

    def draws(self, off: NDArray[np.float32], positions: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Of the errors of all runs, [runs, rows, width], those that rows at these positions are judged by, [draws,
        rows, width]. None: rows that are no positions."""
        chosen = off[FREE : FREE + self._count]
        if positions is None:
            return chosen
        pairs = off[FREE + self._count :]
        late = (positions >= self._first)[None, :, None]
        moved = self._moved[::2, positions][:, :, None]
        return np.where(late, np.where(moved, pairs[1::2], pairs[::2]), chosen)
