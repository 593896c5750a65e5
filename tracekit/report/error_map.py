"""Errors by site and step, small enough for a page: the error over its yardstick, and the own error over its bound."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.align.sites import Alignment, SequencePair, SitePair, names
from tracekit.auditing.audit import own_errors
from tracekit.auditing.evidence import Statistic
from tracekit.auditing.own_error import Own
from tracekit.auditing.recompute import Recomputation
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.compare.metrics import Detail, detail
from tracekit.compare.search import common_ranges, compared_positions, first_token_difference
from tracekit.compare.yardstick import POSITION_LIMIT, SITE_LIMIT, Judged, Yardstick, logits_readers
from tracekit.inspection.positions import prompt_length
from tracekit.inspection.site_rows import site_reader
from tracekit.trace import LOGITS, Sequence, Trace

Floats = NDArray[np.float64]
Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Worst:
    """The position at which a site is furthest off, closely looked at."""

    step: int
    position: int
    detail: Detail


@dataclass(frozen=True)
class SiteErrors:
    """One site's error against the reference."""

    ratio: Floats  # [steps], largest error over yardstick of the step's positions; NaN where not compared
    worst: Worst | None  # None where every value is equal


@dataclass(frozen=True)
class OwnErrors:
    """One site's own error."""

    ratio: Floats  # [steps], largest own error over rounding bound of the step's positions; NaN where not audited
    size: float  # root mean square over all rows
    statistic: Statistic  # that is furthest beyond its limit
    over: float  # that statistic over its limit: above 1 is wrong


def compared_steps(pair: SequencePair) -> int:
    """Steps that both sides computed from the same tokens; 1 for a pair without steps that has positions."""
    if compared_positions(pair) == 0:
        return 0
    one, other = pair.reference, pair.candidate
    split = first_token_difference(one, other)
    return max(1, min(one.step_count, other.step_count) if split is None else split + 1)


def limits_of(calibration: str) -> tuple[float, float]:
    """Ratios from which a site is wrong on average, and a position by itself: see `tracekit.compare.yardstick`."""
    return (1.0, 1.0) if calibration == "uncalibrated" else (SITE_LIMIT, POSITION_LIMIT)


def site_errors(pair: SequencePair, alignment: Alignment, yardstick: Yardstick) -> dict[str, SiteErrors]:
    """Errors of every compared site by the reference's name, in execution order, the logits last.

    Values are read and compared in blocks; what is kept is a number a site and step.
    """
    stop, steps = compared_positions(pair), compared_steps(pair)
    prompt = prompt_length(pair.reference)
    out: dict[str, SiteErrors] = {}
    for site in alignment.pairs:
        found = _site(pair, site, yardstick, stop, steps, prompt)
        if found is not None and (site.name not in out or _peak(found) > _peak(out[site.name])):
            out[site.name] = found
    readers = logits_readers(pair, steps)
    if readers is not None:
        judged = yardstick.judge_logits(pair, steps)
        if judged is not None:
            worst = _worst(judged, 0, readers[:2], lambda row: (row, prompt - 1 + row))
            out[LOGITS] = SiteErrors(np.asarray(judged.ratio[:steps]), worst)
    return out


def _site(
    pair: SequencePair, site: SitePair, yardstick: Yardstick, stop: int, steps: int, prompt: int
) -> SiteErrors | None:
    ratio = np.full(steps, np.nan)
    worst: tuple[float, Worst | None] = (0.0, None)
    for first, last in common_ranges(pair, site, stop):
        readers = site_reader(pair.reference, site.name), site_reader(pair.candidate, site.candidate)
        judged = yardstick.judge(pair, site, first, last)
        if judged is None:
            continue
        at = np.maximum(0, np.arange(first, last) - (prompt - 1))
        shown = at < steps  # a row may be computed for a step that was never taken
        np.fmax.at(ratio, at[shown], judged.ratio[shown])
        top = float(np.nanmax(judged.ratio))
        if top > worst[0]:
            worst = top, _worst(judged, first, readers, lambda row: (max(0, row - (prompt - 1)), row))
    return None if np.isnan(ratio).all() else SiteErrors(ratio, worst[1])


def _worst(
    judged: Judged,
    first: int,
    readers: tuple[Callable[[int, int], NDArray[np.generic]], Callable[[int, int], NDArray[np.generic]]],
    place: Callable[[int], tuple[int, int]],
) -> Worst | None:
    if not judged.ratio.any():
        return None
    row = first + int(np.nanargmax(judged.ratio))
    return Worst(*place(row), detail(readers[0](row, row + 1), readers[1](row, row + 1)))


def _peak(errors: SiteErrors) -> float:
    return float(np.nanmax(errors.ratio))


def own_errors_of_pair(
    pair: SequencePair, candidate: Trace, reference: Trace, alignment: Alignment, checkpoint: Checkpoint
) -> dict[str, OwnErrors]:
    """The candidate's own errors over what was compared, by the reference's names."""
    called = {site.candidate: site.name for site in alignment.pairs} | {name: name for name in names(reference)}
    stops = dict.fromkeys((sequence.index for sequence in candidate.sequences), 0)
    stops[pair.candidate.index] = compared_positions(pair)
    found = own_errors(candidate, checkpoint, stops=stops, wiring=reference)
    return _by_site(found, pair.candidate, compared_steps(pair), called)


def own_errors_of_trace(trace: Trace, sequence: Sequence, checkpoint: Checkpoint) -> dict[str, OwnErrors]:
    """Own errors of one sequence of a trace, by site."""
    stops = {other.index: 0 for other in trace.sequences if other.index != sequence.index}
    return _by_site(own_errors(trace, checkpoint, stops=stops), sequence, max(1, sequence.step_count), {})


def _by_site(
    found: Iterable[tuple[Recomputation, Own]], sequence: Sequence, steps: int, called: Mapping[str, str]
) -> dict[str, OwnErrors]:
    prompt = prompt_length(sequence)
    out: dict[str, OwnErrors] = {}
    for run, own in found:
        recipe = own.recipe
        # A tensor that is passed on stands under the site that made it.
        if run.sequence.index != sequence.index or (recipe.site != recipe.stored and recipe.stored in out):
            continue
        rows = np.concatenate([window.rows for window in own.windows])
        at = rows if recipe.site == LOGITS else np.maximum(0, rows - (prompt - 1))
        ratio = np.full(steps, np.nan)
        np.fmax.at(ratio, at[at < steps], own.statistics.rows[at < steps])
        name = called.get(recipe.stored, recipe.stored)
        out[name] = OwnErrors(ratio, own.statistics.size, own.statistic, max(own.over.values()))
    return out


# -------------------------------------------------------------------- a byte a number

NOT_COMPARED, EQUAL, FIRST_LEVEL, LAST_LEVEL, INFINITE = 0, 1, 2, 254, 255
LOWEST, HIGHEST = -2, 12
"""Powers of ten between which ratios are told apart."""


@dataclass(frozen=True)
class Levels:
    """Ratios as bytes on a logarithmic scale: code 2 is 10**low, code 254 is 10**high; 0 is not compared, 1 equal,
    255 not finite. One code to the next is a factor of 10**((high - low) / 252): 14 % over fourteen powers of ten.
    """

    low: float
    high: float
    codes: Codes  # [sites, bins]
    steps_a_bin: int  # the largest of so many steps is shown

    def to_json(self) -> dict[str, object]:
        """Row after row in base64."""
        rows, columns = self.codes.shape
        shown = {"low": self.low, "high": self.high, "rows": rows, "columns": columns, "bin": self.steps_a_bin}
        return shown | {"codes": base64.b64encode(np.ascontiguousarray(self.codes).tobytes()).decode()}

    def fraction(self, ratio: float) -> float:
        """Where a ratio stands on the scale of all codes, 0 to 1."""
        level = (np.log10(ratio) - self.low) / (self.high - self.low)
        return float(np.clip(FIRST_LEVEL + level * (LAST_LEVEL - FIRST_LEVEL), FIRST_LEVEL, LAST_LEVEL)) / INFINITE


def levels(rows: Iterable[Floats], steps: int, cells: int) -> Levels:
    """Ratios [sites][steps] as bytes, in `cells` of them at most: of more steps than fit, some share a column."""
    table = np.array(list(rows), dtype=np.float64).reshape(-1, steps)
    per_bin = max(1, -(-table.size // max(1, cells)))
    table = _largest_of(table, per_bin)
    finite = table[np.isfinite(table) & (table > 0)]
    low, high = _range(finite)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = FIRST_LEVEL + (np.log10(table) - low) / (high - low) * (LAST_LEVEL - FIRST_LEVEL)
    codes = np.clip(np.nan_to_num(np.rint(level), nan=0, posinf=0, neginf=0), FIRST_LEVEL, LAST_LEVEL).astype(np.uint8)
    codes[table == 0] = EQUAL
    codes[np.isinf(table)] = INFINITE
    codes[np.isnan(table)] = NOT_COMPARED
    return Levels(low, high, codes, per_bin)


def _largest_of(table: Floats, per_bin: int) -> Floats:
    """The largest of each `per_bin` columns; NaN where all are."""
    if per_bin == 1:
        return table
    missing = -table.shape[1] % per_bin
    padded = np.pad(table, ((0, 0), (0, missing)), constant_values=np.nan).reshape(table.shape[0], -1, per_bin)
    return np.asarray(np.fmax.reduce(padded, axis=2))


def _range(values: Floats) -> tuple[float, float]:
    """Powers of ten around values; one power at least, and 1 within."""
    if not values.size:
        return -1.0, 1.0
    low = max(LOWEST, min(-1.0, float(np.floor(np.log10(values.min())))))
    return low, min(HIGHEST, max(1.0, float(np.ceil(np.log10(values.max())))))
