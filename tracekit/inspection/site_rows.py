"""Rows of a stored site or of the logits, read as floats a block at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import STORAGE, to_float
from tracekit.trace import Array, Sequence, TraceError

BLOCK_BYTES = 512 << 10
"""Bytes of one side compared at a time: two sides and their difference stay in a 2 MB cache."""


Reader = Callable[[int, int], Array]
"""Rows [first, stop) of one side as floats, [rows, width]."""


def site_reader(sequence: Sequence, site: str) -> Reader:
    """Floats of a stored site."""
    dtype = sequence.sites[site].dtype
    return lambda first, stop: to_float(sequence.read(site, first, stop), dtype)


def row_bytes(sequence: Sequence, site: str) -> int:
    """Bytes of a row of a stored site."""
    data = sequence.sites[site]
    return data.width * STORAGE[data.dtype].itemsize


def logits_width(sequence: Sequence) -> int | None:
    """Tokens that the logits of a sequence are of; None where its first step has none."""
    first = sequence.logits(0, 1) if sequence.step_count else None
    return None if first is None else int(first.shape[1])


def logits_reader(sequence: Sequence, width: int | None = None) -> Reader:
    """Logits of steps [first, stop) as floats, of the first `width` tokens. Reading raises TraceError where a step has
    none."""
    dtype = sequence.logits_dtype or "float32"

    def read(first: int, stop: int) -> NDArray[np.float64]:
        rows = sequence.logits(first, stop)
        if rows is None:
            where = f"{sequence.path}: sequence {sequence.index}"
            raise TraceError(f"{where}: not all logits of steps {first} to {stop - 1} are recorded; record it again")
        return to_float(rows[:, :width], dtype)

    return read
