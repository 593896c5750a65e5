"""Tables of sines that a program computes, where a port may have computed them itself.

Positions that are fixed numbers (Vaswani et al. 2017, 3.5) need not be in a checkpoint, and where they are, a port may
compute them all the same. One that the candidate does not hold under the reference's name is taken for a computed one:
the angle p * f of position p is off by its rounding in float32, which grows with p, and f by that of the power or
exponential that it comes from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from tracekit_torch.eager import plain_name
from tracekit_torch.reference_program.lockstep import Lockstep

FLOAT32 = 2.0**-24
FEWEST = 8
"""Positions below which numbers may follow each other like sines by chance."""
UNITS = 4.0
"""Roundoffs that a table's own numbers may be off by, as units of its angles."""
POWER = 2.0
"""Units in the last place to which a library computes a power, and an exponential besides its argument's rounding."""


class SineTable:
    """A table [positions, width] of sines and cosines of p * f, f by column."""

    def __init__(self, held: Tensor, table: Tensor, frequency: Tensor) -> None:
        self._held, self._table, self._frequency = held, table, frequency

    @classmethod
    def of(cls, held: Tensor) -> SineTable | None:
        """None where `held` is no such table, whatever further dimensions of one it has."""
        sizes = [size for size in held.shape if size > 1]
        if len(sizes) != 2 or sizes[0] < FEWEST or not held.is_floating_point():
            return None
        shaped = held.detach().reshape(sizes)
        if _cosines(shaped[: 2 * FEWEST].to(torch.float64)) is None:
            return None  # without a look at all of it
        table = shaped.to(torch.float64)
        cosine = _cosines(table)
        return None if cosine is None else cls(held, table, torch.arccos(cosine.clamp(-1.0, 1.0)))

    def draw(self, drawn: Lockstep, unit: float, dice: torch.Generator) -> None:
        """The table is off in each run. `unit`: unit roundoff of what the candidate stores."""
        table, frequency = self._table, self._frequency
        ahead = torch.cat([table[1:], 2.0 * torch.cos(frequency) * table[-1:] - table[-2:-1]])
        # What a position more adds, by the sine of f: the derivative, times f as small as f is.
        slope = (ahead - torch.cos(frequency) * table) / torch.sinc(frequency / torch.pi).clamp_min(FLOAT32)
        angle = torch.arange(len(table), dtype=torch.float64)[:, None] * slope * FLOAT32
        units = POWER + frequency.clamp_min(1e-300).log().abs()
        off = _drawn(drawn.runs, (1, table.shape[1]), dice) * (angle * units).to(torch.float32)
        off += _drawn(drawn.runs, tuple(table.shape), dice) * angle.to(torch.float32)
        off += _drawn(drawn.runs, tuple(table.shape), dice) * (table * max(unit, POWER * FLOAT32)).to(torch.float32)
        drawn.add(self._held, off.reshape(drawn.runs, *self._held.shape))


def sine_tables(model: nn.Module, held: Collection[str]) -> Iterator[SineTable]:
    """Those of a model but for the parameters that the candidate says it holds."""
    for path, value in (*model.named_parameters(), *model.named_buffers()):
        if plain_name(path) not in held and (found := SineTable.of(value)) is not None:
            yield found


def _cosines(table: Tensor) -> Tensor | None:
    """cos(f) of each column of a table [positions, width] of sines and cosines of p * f; None where it is none."""
    filled = (table != 0.0).any(dim=1)  # a row of zeros stands for padding
    whole = (filled[:-2] & filled[1:-1] & filled[2:])[:, None]
    inner, around = table[1:-1] * whole, (table[:-2] + table[2:]) * whole
    # sin((p - 1) f) + sin((p + 1) f) = 2 cos(f) sin(p f), and so of cosines.
    cosine = (inner * around).sum(dim=0) / (2.0 * inner.square().sum(dim=0)).clamp_min(1e-300)
    rows = torch.arange(1, len(table) - 1, dtype=torch.float64)[:, None]
    alike = (around - 2.0 * cosine * inner).abs() <= UNITS * FLOAT32 * (2.0 + rows)
    varies = bool((table.amax(dim=0) > table.amin(dim=0)).any())
    small = bool((table.abs() <= 1.0 + UNITS * FLOAT32).all())
    return cosine if varies and small and bool(alike.all()) else None


def _drawn(runs: int, shape: tuple[int, ...], dice: torch.Generator) -> Tensor:
    return torch.empty((runs, *shape), dtype=torch.float32).uniform_(-1.0, 1.0, generator=dice)
