"""Which dimension of a value is the positions of a call: as the recorder of PyTorch takes it, so that both line up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shape:
    """A call over [batch, time]; `flat`: it was given [time, ...] without a batch; `image`: [batch, channels, ...] of
    one position."""

    batch: int
    time: int
    flat: bool = False
    image: bool = False

    @classmethod
    def of(cls, value: NDArray[Any]) -> Shape:
        """That of a call whose first input this is."""
        flat = value.ndim == 1 or (value.ndim == 2 and value.dtype.kind == "f")
        if value.ndim > 3:
            return cls(value.shape[0], 1, image=True)
        return cls(1, value.shape[0], flat) if flat else cls(value.shape[0], value.shape[1])


def arranged(shape: Shape, value: NDArray[Any], width: int | None) -> NDArray[Any] | None:
    """A value as [batch, time, numbers], or None where it has no row a position. Of several ways the first that gives
    `width` numbers a row."""
    first = None
    for way in _ways(shape, value):
        rows = way.reshape(shape.batch, shape.time, -1) if way.size else None
        if rows is not None and (width is None or rows.shape[2] == width):
            return np.ascontiguousarray(rows)
        first = rows if first is None else first
    return None if first is None else np.ascontiguousarray(first)


def _ways(shape: Shape, value: NDArray[Any]) -> Iterator[NDArray[Any]]:
    batch, time, sides = shape.batch, shape.time, value.shape
    if shape.image and sides and sides[0] == batch:
        yield value
    if value.ndim >= 2 and sides[:2] == (batch, time):
        yield value
    if value.ndim and sides[0] == batch * time and (value.ndim == 2 or shape.flat):
        yield value
    if value.ndim == 4 and sides[0] == batch and sides[2] == time:
        yield value.swapaxes(1, 2)
    if value.ndim == 3 and sides[:2] == (1, time) and batch > 1:
        yield np.broadcast_to(value, (batch, *sides[1:]))
