"""Which dimensions of a tensor are its rows: the positions of a forward call, or those of the encoder's input.

Nothing says it, so the shape has to: [batch, time, ...] as a rule, [batch, heads, time, width] where a module works on
heads, [time, batch, width] in layers that have the time first, all cached positions where keys and values are made
again at every step, one row for the whole batch where only the position counts. A tensor that fits in several ways is
taken as its site was before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tracekit.trace import ENCODER


@dataclass(slots=True)
class Axis:
    """What the rows of a call are. `length`: positions with those of earlier calls; `time` is None until a value of the
    encoder tells it."""

    batch: int
    time: int | None
    length: int = 0
    flat: bool = False
    """The model was given [time, ...], without a batch dimension."""
    name: str | None = None
    """As `tracekit.trace.Site.axis`."""
    turned: bool = False
    """A call of as many rows as positions has had its time turned to the front: its shapes tell no longer which is."""

    @property
    def size(self) -> tuple[int, int]:
        """[batch, time]; no rows while the time is not known."""
        return self.batch, self.time or 0

    @property
    def rows(self) -> int:
        """Rows over the whole batch."""
        return self.batch * (self.time or 0)


def arranged(axis: Axis, value: torch.Tensor, width: int | None) -> torch.Tensor | None:
    """`value` as [batch, time, ...] or [batch * time, ...], a view of it, or None where it has no row a position.

    `width`: numbers a row that the site has had so far; of several ways the first that gives them is taken.
    """
    if axis.time is None:
        if axis.name != ENCODER or value.dim() != 3 or value.shape[0] != axis.batch:
            return None
        axis.time = value.shape[1]
    if value.dim() == 3 and 1 < axis.batch == axis.time == value.shape[0] == value.shape[1]:
        axis.turned = axis.turned or 0 < value.stride(0) < value.stride(1)
        if axis.turned:
            return None
    first: torch.Tensor | None = None
    for way in _ways(axis, axis.time, value):
        if width is None or way.numel() == width * axis.rows:
            return way
        first = way if first is None else first
    return first


def _ways(axis: Axis, time: int, value: torch.Tensor) -> Iterator[torch.Tensor]:
    batch, shape, count = axis.batch, value.shape, value.dim()
    by_head = count == 4 and shape[0] == batch and shape[2] == time
    if by_head and time > 1 and shape[1] == time and _heads_first(value):
        yield value.transpose(1, 2)
    if count >= 2 and shape[0] == batch and shape[1] == time:
        yield value
    if count and shape[0] == batch * time and (count == 2 or axis.flat):
        yield value
    if by_head:
        yield value.transpose(1, 2)
    if count == 4 and shape[0] == batch and shape[1] == 1 and time < shape[2] >= axis.length:
        # [batch, 1, positions, width]: of all cached positions, or of a static cache's, those of this call.
        yield value[:, 0, axis.length - time : axis.length]
    if count == 3 and shape[0] == batch and time < shape[1] == axis.length:
        yield value[:, axis.length - time :]  # of all cached positions, those of this call: keys joined by a hook
    if count == 3 and shape[0] == 1 and shape[1] == time and batch > 1:
        yield value.expand(batch, *shape[1:])  # the same row for the whole batch: learned positions
    if count == 3 and shape[0] == time and shape[1] == batch:
        yield value.transpose(0, 1)  # [time, batch, width], as torch's own attention has it unless told otherwise


def _heads_first(value: torch.Tensor) -> bool:
    """Whether [batch, n, n, width], of as many heads as positions, has its heads first: a projection or a convolution
    gives them one after the other, each as long as its width, whichever dimensions are moved later."""
    step = value.shape[3] * value.stride(3)
    return value.stride(1) == step != value.stride(2)
