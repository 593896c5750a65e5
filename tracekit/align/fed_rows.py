"""Rows that were fed to a model, against the prompt entries that a trace tells of.

A program may put in a row that it does not tell (a speaker's embedding), or leave one out. How many rows were fed is
known from where the first step's logits stand. Which row is too many is read off the values: rows of two runs that are
fed the same prompt are equal up to rounding, in any site that computes each row by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.align.pair import Side
from tracekit.align.sites import Alignment, SequencePair
from tracekit.dtypes import UNIT_ROUNDOFF, is_float, to_float
from tracekit.trace import Array, Sequence

SAME_UNITS = 16.0
"""Roundoff units, of the coarser of two formats, within which two rows are one: an embedding, rounded and scaled."""


@dataclass(frozen=True)
class Fed:
    """Prompt entries told and rows fed, of the reference and of the candidate."""

    told: tuple[int, int]
    fed: tuple[int, int]


@dataclass(frozen=True)
class RowsWithoutEqual:
    """Rows fed to one side that have no equal among those of the other, in order."""

    side: Side
    rows: tuple[int, ...]


def fed_rows(sequence: Sequence) -> int | None:
    """Rows fed before the first token was chosen; None where that no site shows it, or the cache held some before."""
    if not sequence.step_count or sequence.prompt_ids is None:
        return None
    fed = sequence.step(0).position + 1
    starts = [data.ranges[0] for data in sequence.sites.values() if data.ranges]
    return fed if any(first == 0 and stop >= fed for first, stop in starts) else None


def fed_apart(pair: SequencePair) -> Fed | None:
    """Where two sequences tell the same number of prompt entries and were not fed the same number of rows."""
    one, other = pair.reference, pair.candidate
    if one.prompt_ids is None or other.prompt_ids is None or len(one.prompt_ids) != len(other.prompt_ids):
        return None
    fed = fed_rows(one), fed_rows(other)
    if fed[0] is None or fed[1] is None or fed[0] == fed[1]:
        return None
    return Fed((len(one.prompt_ids), len(other.prompt_ids)), (fed[0], fed[1]))


def unmatched_rows(pair: SequencePair, alignment: Alignment, fed: Fed) -> RowsWithoutEqual | None:
    """Which rows of the side that was fed more have no equal among the other's; None where no site shows it."""
    more = int(fed.fed[1] > fed.fed[0])
    for site in alignment.pairs:
        names = (site.name, site.candidate)
        long, short = (
            _rows(sequence, name, count)
            for sequence, name, count in (
                ((pair.reference, pair.candidate)[side], names[side], fed.fed[side]) for side in (more, 1 - more)
            )
        )
        if long is None or short is None or long[0].shape[1] != short[0].shape[1]:
            continue
        extra = _extra(long[0], short[0], SAME_UNITS * max(long[1], short[1]))
        return RowsWithoutEqual(tuple(Side)[more], tuple(extra)) if len(extra) == abs(fed.fed[1] - fed.fed[0]) else None
    return None


def _rows(sequence: Sequence, site: str, count: int) -> tuple[Array, float] | None:
    """Rows [count, width] of a site from position 0 on, and their unit roundoff."""
    data = sequence.sites.get(site)
    if data is None or not data.ranges or not is_float(data.dtype):
        return None
    first, stop = data.ranges[0]
    if first != 0 or stop < count:
        return None
    return to_float(sequence.read(site, 0, count), data.dtype).astype(np.float64), UNIT_ROUNDOFF[data.dtype]


def _extra(long: Array, short: Array, tolerance: float) -> list[int]:
    """Indices of the rows of `long` [n, width] that are left when those of `short` are found in it in order."""
    out, at = [], 0
    for index, row in enumerate(long):
        if at < len(short) and np.linalg.norm(row - short[at]) <= tolerance * np.linalg.norm(short[at]):
            at += 1
        else:
            out.append(index)
    return out
