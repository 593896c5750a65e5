"""Errors between two recordings of a site, per position, in one pass over blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.inspection.site_rows import BLOCK_BYTES, Reader

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RowErrors:
    """Per position: L2 norm of the difference and of the base, f64 [positions] each."""

    difference: Floats
    norm: Floats

    @property
    def relative(self) -> Floats:
        """|difference| / |base|; 0 where both are 0, infinite where only the base is."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.difference / self.norm
        return np.where(self.difference == 0, 0.0, ratio)


@dataclass(frozen=True)
class Detail:
    """One row of a site, closely looked at: what a report shows."""

    relative: float
    max_abs: float
    max_index: int
    cosine: float
    norm_ratio: float
    non_finite: int  # elements that are finite on one side only


def row_errors(base: Reader, other: Reader, first: int, stop: int, bytes_a_row: int) -> RowErrors:
    """Errors of positions [first, stop). Elements that are not finite and alike on both sides count as equal; those
    that differ make the row's error infinite.
    """
    difference = np.empty(stop - first)
    norm = np.empty(stop - first)
    scratch: list[NDArray[Any]] = []
    with np.errstate(over="ignore", invalid="ignore"):
        for begin, end in _blocks(first, stop, bytes_a_row):
            rows = slice(begin - first, end - first)
            difference[rows], norm[rows] = _squares(base(begin, end), other(begin, end), scratch)
        sound = np.isfinite(difference) & np.isfinite(norm)
        np.sqrt(difference, out=difference)
        np.sqrt(norm, out=norm)
    if not sound.all():
        for begin, end in _blocks(first, stop, bytes_a_row):
            rows = slice(begin - first, end - first)
            if not sound[rows].all():
                ours, theirs = base(begin, end).astype(np.float64), other(begin, end).astype(np.float64)
                difference[rows], norm[rows] = _careful_block(ours, theirs)
    return RowErrors(difference, norm)


def _blocks(first: int, stop: int, bytes_a_row: int) -> Iterator[tuple[int, int]]:
    rows = max(1, BLOCK_BYTES // max(1, bytes_a_row))
    for begin in range(first, stop, rows):
        yield begin, min(stop, begin + rows)


def _squares(base: NDArray[Any], other: NDArray[Any], scratch: list[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Squared L2 norms of the difference and of the base, a row each. `scratch` keeps the memory of the difference from
    block to block: fresh pages cost more than the subtraction."""
    if base.dtype != other.dtype:
        base, other = base.astype(np.float64), other.astype(np.float64)
    if not scratch or scratch[0].shape[0] < len(base) or scratch[0].dtype != base.dtype:
        scratch[:] = [np.empty_like(base)]
    gap = np.subtract(other, base, out=scratch[0][: len(base)])
    return np.vecdot(gap, gap), np.vecdot(base, base)


def _careful_block(base: Floats, other: Floats) -> tuple[Floats, Floats]:
    """The same where something is not finite, or too large to be squared in float32."""
    alike = (base == other) | (np.isnan(base) & np.isnan(other))
    with np.errstate(over="ignore", invalid="ignore"):
        gap = np.where(alike, 0.0, other - base)
    gap = np.where(np.isfinite(gap), gap, np.inf)
    finite = np.where(np.isfinite(base), base, 0.0)
    with np.errstate(over="ignore"):
        return np.linalg.norm(gap, axis=1), np.linalg.norm(finite, axis=1)


def detail(base: NDArray[Any], other: NDArray[Any]) -> Detail:
    """Everything about one row, [width] each."""
    one, two = base.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    finite = np.isfinite(one) & np.isfinite(two)
    mismatched = int(np.sum(np.isfinite(one) != np.isfinite(two)))
    one, two = np.where(finite, one, 0.0), np.where(finite, two, 0.0)
    gap = np.abs(two - one)
    norm, other_norm = float(np.linalg.norm(one)), float(np.linalg.norm(two))
    product = norm * other_norm
    return Detail(
        relative=float(np.linalg.norm(gap)) / norm if norm else (0.0 if not gap.any() else float("inf")),
        max_abs=float(gap.max(initial=0.0)),
        max_index=int(gap.argmax()) if gap.size else 0,
        cosine=float(one @ two) / product if product else (1.0 if norm == other_norm else 0.0),
        norm_ratio=other_norm / norm if norm else (1.0 if not other_norm else float("inf")),
        non_finite=mismatched,
    )
