"""Digests of parameters as files hold them: 0 where none was taken (docs/format.md)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tracekit.trace import Array


def written_digests(digests: Iterable[int | None]) -> NDArray[np.uint64]:
    """u64 [parameters]."""
    return np.array([digest or 0 for digest in digests], dtype=np.uint64)


def read_digests(written: Array | None, count: int) -> list[int | None]:
    """Those of `count` parameters, None where there is none. Raises ValueError where a file has not as many."""
    if written is None:
        return [None] * count
    if written.shape != (count,):
        raise ValueError(f"{count} parameters have digests of shape {list(written.shape)}")
    return [int(digest) or None for digest in written]
