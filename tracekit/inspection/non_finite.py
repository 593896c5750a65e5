"""Values that are no finite numbers: where they come from first, how many, and what went in there.

Raw logits of minus infinity are what a model or a program masks tokens with, and so are rows of zeros and minus
infinities: they are no fault and not reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import is_float, to_float
from tracekit.inspection.positions import prompt_length, step_of
from tracekit.inspection.site_rows import BLOCK_BYTES, row_bytes
from tracekit.trace import INPUT_SUFFIX, LOGITS, Sequence, Trace, resolve


@dataclass(frozen=True)
class NonFinite:
    """The first site of a trace, in the order of the computation, that holds NaN or an infinity."""

    sequence: int
    step: int
    position: int
    site: str
    nan: int  # elements of that position
    infinite: int
    width: int
    positions: int  # of that site in that sequence, that hold such elements
    of_positions: int
    source: str | None  # the site that went in, where it is recorded at this position
    source_largest: float | None  # its largest |value|; None where it is not recorded
    source_finite: bool | None


def first_non_finite(trace: Trace, stops: Mapping[int, int] | None = None) -> NonFinite | None:
    """The first such site, below the positions `stops` of the sequences; None where all recorded values are finite."""
    for sequence in trace.sequences:
        stop = (stops or {}).get(sequence.index, 1 << 62)
        found = min(_sites(trace, sequence, stop), default=None, key=lambda one: one[:3])
        if found is not None:
            step, _, _, site, positions = found
            return _described(trace, sequence, step, site, positions)
    return None


def _sites(trace: Trace, sequence: Sequence, stop: int) -> Iterator[tuple[int, int, int, str, list[int]]]:
    """(step, order, position, site, positions) of every site with such values."""
    prompt = prompt_length(sequence)
    for name, data in sequence.sites.items():
        if not is_float(data.dtype):
            continue
        found = [position for position, row in _rows(sequence, name, stop) if _counts(row, name)]
        if found:
            row = trace.sites.get(name) or trace.sites.get(name.removesuffix(INPUT_SUFFIX))
            yield step_of(found[0], prompt), 1 << 20 if row is None else row.order, found[0], name, found
    steps = [index for index in range(_steps_below(sequence, stop)) if _logits_count(sequence, index)]
    if steps:
        yield steps[0], 1 << 30, prompt - 1 + steps[0], LOGITS, [prompt - 1 + step for step in steps]


def _rows(sequence: Sequence, name: str, stop: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Rows that are suspected: their squares do not add up to a finite number."""
    data = sequence.sites[name]
    rows = max(1, BLOCK_BYTES // max(1, row_bytes(sequence, name)))
    noted = sequence.blocks(name)
    ranges = data.ranges
    if noted is not None and noted.finite.all():
        return
    if noted is not None:
        ranges = tuple(zip(noted.first[~noted.finite].tolist(), noted.stop[~noted.finite].tolist(), strict=True))
    for begin, end in ranges:
        for first in range(begin, min(end, stop), rows):
            block = to_float(sequence.read(name, first, min(end, stop, first + rows)), data.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                suspects = np.flatnonzero(~np.isfinite(np.vecdot(block, block)))
            for row in suspects:
                yield first + int(row), block[row]


def _counts(row: NDArray[Any], site: str) -> tuple[int, int] | None:
    """NaNs and infinities of a row; None where there are none, and of masks."""
    nan, infinite = int(np.isnan(row).sum()), int(np.isinf(row).sum())
    if not nan and infinite == int(np.isneginf(row).sum()):
        # Minus infinities alone: logits are masked with them, and a mask holds zeros besides.
        infinite = 0 if site == LOGITS or not np.any(row[np.isfinite(row)]) else infinite
    return (nan, infinite) if nan or infinite else None


def _steps_below(sequence: Sequence, stop: int) -> int:
    return min(sequence.step_count, max(0, stop - prompt_length(sequence) + 1)) if sequence.logits_dtype else 0


def _logits_count(sequence: Sequence, step: int) -> tuple[int, int] | None:
    row = _logits(sequence, step)
    return None if row is None else _counts(row, LOGITS)


def _logits(sequence: Sequence, step: int) -> NDArray[Any] | None:
    rows = sequence.logits(step, step + 1)
    return None if rows is None else to_float(rows[0], sequence.logits_dtype or "float32")


def _described(trace: Trace, sequence: Sequence, step: int, site: str, positions: list[int]) -> NonFinite:
    position = positions[0]
    if site == LOGITS:
        row, of_positions = _logits(sequence, step), sequence.step_count
    else:
        data = sequence.sites[site]
        row, of_positions = to_float(sequence.read(site, position, position + 1), data.dtype)[0], data.rows
    assert row is not None
    nan, infinite = _counts(row, site) or (0, 0)
    head = next((one.name for one in trace.sites.values() if one.recorded_as == LOGITS), None)
    asked = site if site != LOGITS else head
    source = None if asked is None else resolve(trace, asked + INPUT_SUFFIX)
    data_in = None if source is None else sequence.sites.get(source)
    largest = finite = None
    if source is not None and data_in is not None and source != site and data_in.covers(position, position + 1):
        given = to_float(sequence.read(source, position, position + 1), data_in.dtype)[0]
        finite = bool(np.isfinite(given).all())
        largest = float(np.abs(given[np.isfinite(given)]).max(initial=0.0))
    known = None if finite is None else source
    place, elements = (sequence.index, step, position, site), (nan, infinite, int(row.size))
    return NonFinite(*place, *elements, len(positions), of_positions, known, largest, finite)
