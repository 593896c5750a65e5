"""Is it wrong, or is it rounding? What the error of a site is measured against.

Three yardsticks, best first: an oracle (the reference in higher precision), the spread of several reference traces,
or, with neither, what the dtype and the depth of the site allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tracekit.align.sites import SequencePair, SitePair, same_prompt
from tracekit.compare.metrics import RowErrors, row_errors
from tracekit.compare.noted import noted_alike
from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.inspection.site_rows import Reader, logits_reader, logits_width, row_bytes, site_reader
from tracekit.trace import LOGITS, Sequence, Trace

Floats = NDArray[np.float64]

SITE_LIMIT = 5.0
"""Ratio to the oracle, root mean square over positions, from which a site is wrong. Benign rewrites of SmolLM2 in
float32 (eager, sdpa, chunked prefill, token by token, 1 and 2 threads, batched, candle) stay below 2.5 with the oracle;
a gain of 1.00001 gives 6.6 (`benchmarks/localise.py` prints both). Read off those runs: where recipes cover a site and
all before it, what is beyond is judged by their computed bounds (`Amplified`); elsewhere this decides."""

POSITION_LIMIT = 25.0
"""Ratio to the oracle from which a single position is wrong: one row scatters more than the mean of many (benign
maximum 6 for the same rewrites), and a stale cache row gives thousands."""

UNCALIBRATED_UNITS = 64.0
"""Roundoff units, times the square root of the site's depth, that a float32 row may be off without an oracle. Eager
against sdpa and candle against PyTorch stay below a third of that; a gain of 1.01 is beyond it at every depth."""

HALF_UNITS = 6.0
HALF_UNITS_LIMIT = 40.0
"""The same for 16-bit formats, whose sums are kept in float32: errors grow slower with depth, and not for ever. Eager
against sdpa and candle against PyTorch in bfloat16 reach 1.4 units times the square root, and 15 units in all."""

REFERENCE_UNITS = 2.0
"""An oracle's ratio never divides by less than this many roundoff units of the row. A reference that happens to be
nearly exact proves nothing about how far a correct candidate may be off: torch sums the squares of a norm pairwise,
candle one after the other, and is 2.5 units off where torch is half a unit off (SmolLM2, layer 0)."""


@dataclass(frozen=True)
class Judged:
    """Error of a site over what is allowed: 1-D per position, and whether it is beyond the limit."""

    ratio: Floats  # [positions], error over yardstick
    site_ratio: float  # root mean square over the positions
    wrong: NDArray[np.bool_]  # [positions]
    error: Floats  # [positions], relative error against the reference


class Yardstick(Protocol):
    """Judges the error of one site of one pair of sequences over positions [0, stop)."""

    calibration: str

    def judge(self, pair: SequencePair, site: SitePair, first: int, stop: int) -> Judged | None: ...

    def judge_logits(self, pair: SequencePair, stop: int) -> Judged | None: ...


def _apart(pair: SequencePair, site: SitePair, first: int, stop: int, bytes_a_row: int) -> RowErrors:
    """Errors of the candidate's rows against the reference's; values whose digests are equal are not read, and have no
    norm."""
    if noted_alike(pair, site, first, stop):
        return RowErrors(np.zeros(stop - first), np.zeros(stop - first))
    readers = site_reader(pair.reference, site.name), site_reader(pair.candidate, site.candidate)
    return row_errors(*readers, first, stop, bytes_a_row)


def _exact(error: RowErrors) -> Judged | None:
    """All equal: nothing to judge."""
    if error.difference.any():
        return None
    zeros = np.zeros_like(error.difference)
    return Judged(zeros, 0.0, zeros.astype(bool), zeros)


def logits_readers(pair: SequencePair, stop: int) -> tuple[Reader, Reader, int] | None:
    """Both sides' logits of the tokens that both have, and how many tokens these are; None where a side has no logits,
    or `stop` leaves no step."""
    one, other = pair.reference, pair.candidate
    widths = logits_width(one), logits_width(other)
    if widths[0] is None or widths[1] is None or stop == 0:
        return None
    width = min(widths[0], widths[1])
    return logits_reader(one, width), logits_reader(other, width), width


def allowed_units(unit: float, order: int) -> float:
    """Roundoff units that a row of a site at this depth may be off without an oracle."""
    depth = float(np.sqrt(max(order, 0) + 1.0))
    if unit > UNIT_ROUNDOFF["float32"]:
        return min(HALF_UNITS * depth, HALF_UNITS_LIMIT)
    return UNCALIBRATED_UNITS * depth


def _roundoff(*dtypes: str) -> float:
    """Of the coarsest of these dtypes: a candidate of lower precision is judged by its own."""
    return max(UNIT_ROUNDOFF.get(dtype, 0.0) for dtype in dtypes)


LOGITS_ORDER = 1000
"""Depth of the logits, after every site."""


def _computed_in(sequence: Sequence) -> str:
    """The coarsest float format of a sequence's sites: logits are often handed over in a wider one."""
    floats = {data.dtype for data in sequence.sites.values()} & set(UNIT_ROUNDOFF)
    return max(floats or {sequence.logits_dtype or "float32"}, key=lambda dtype: UNIT_ROUNDOFF.get(dtype, 0.0))


class OwnDifference(Protocol):
    """What a site's inputs do not account for of its difference, over what rounding makes of it, of the rows
    [first, stop); None where nobody knows what the site computes. See `auditing.estimated`."""

    def __call__(
        self, sides: tuple[Sequence, Sequence], names: Mapping[str, str], site: str, rows: tuple[int, int], tests: int
    ) -> Floats | None: ...


@dataclass
class _Before:
    """What was judged of a pair of sequences before a site."""

    names: dict[str, str] = field(default_factory=dict)  # the candidate's name of each stored site
    differing: list[tuple[str, int, int]] = field(default_factory=list)  # site, first, stop
    wrong: bool = False
    checked: int = 0  # how many of `differing` are known to add no more than rounding


class Amplified:
    """Whether what is beyond a limit is rounding, amplified: no site up to it adds more than its own rounding to what
    its inputs hand on. One of them is told of the sites of a pair in the order of the computation."""

    def __init__(self, own: OwnDifference | None = None) -> None:
        self._own = own
        self._pairs: dict[int, _Before] = {}

    def called(self, pair: SequencePair, site: str, candidate: str) -> None:
        """Tell of a site's name on both sides, whether it differs or not."""
        self._pairs.setdefault(pair.index, _Before()).names[site] = candidate

    def judged(self, pair: SequencePair, site: str, first: int, stop: int, judged: Judged) -> Judged:
        """What is beyond the limit, judged by what the site itself adds: where that is rounding, at it and at every
        site before it, all of it is."""
        before = self._pairs[pair.index]
        before.differing.append((site, first, stop))
        if self._own is None or before.wrong or not judged.wrong.any():
            return judged
        before.wrong = True
        beyond = self._beyond(self._own, pair, site, first, stop)
        if beyond is None:
            return judged
        left = np.where(judged.wrong, np.where(np.isnan(beyond), judged.ratio, beyond), judged.ratio)
        if not (left[judged.wrong] > 1.0).any() and self._only_rounding(self._own, pair, before):
            before.wrong = False
            return Judged(left, _root_mean_square(left), np.zeros_like(judged.wrong), judged.error)
        return judged

    def _only_rounding(self, own: OwnDifference, pair: SequencePair, before: _Before) -> bool:
        """Whether no site that differs so far adds more than its own rounding; not, where that is not known of one."""
        for site, first, stop in before.differing[before.checked :]:
            beyond = self._beyond(own, pair, site, first, stop)
            if beyond is None or not (beyond <= 1.0).all():
                return False
            before.checked += 1
        return True

    def _beyond(self, own: OwnDifference, pair: SequencePair, site: str, first: int, stop: int) -> Floats | None:
        one, other = pair.reference, pair.candidate
        tests = len(one.sites) * one.positions
        return own((one, other), self._pairs[pair.index].names, site, (first, stop), tests)


class _Conditions:
    """How much more than elsewhere the sites judged so far were off, by position. They come in the order of the
    computation, so that one running maximum stands for all of them but those of the last order."""

    def __init__(self) -> None:
        self._so_far = np.ones(0)  # over the sites of an order below `_order`
        self._last: list[tuple[int, Floats]] = []  # those of `_order`: first position, condition
        self._order = 0

    def add(self, order: int, first: int, condition: Floats) -> None:
        """What was judged of a site from position `first` on; `order` is that of the last one, or higher."""
        if order > self._order:
            self._take_in()
            self._order = order
        self._last.append((first, condition))

    def before(self, order: int, first: int, stop: int) -> Floats:
        """The largest condition of the sites below `order` at positions [first, stop): 1 or more."""
        if order > self._order:
            self._take_in()
        out = np.ones(stop - first)
        known = self._so_far[first:stop]
        out[: len(known)] = known
        return out

    def _take_in(self) -> None:
        for first, condition in self._last:
            end = first + len(condition)
            if end > len(self._so_far):
                more = max(end, 2 * len(self._so_far)) - len(self._so_far)
                self._so_far = np.concatenate([self._so_far, np.ones(more)])
            np.maximum(self._so_far[first:end], condition, out=self._so_far[first:end])
        self._last.clear()


class _Coarsest:
    """The coarsest format that a pair's sites were recorded in up to one: what a sum in float32 adds up may have been
    rounded to 16 bits on the way."""

    def __init__(self) -> None:
        self._sides: dict[int, tuple[_Roundoffs, _Roundoffs]] = {}  # by pair

    def up_to(self, pair: SequencePair, site: SitePair) -> tuple[float, float]:
        """Unit roundoff of the reference and of the candidate at a site."""
        if pair.index not in self._sides:
            self._sides[pair.index] = _Roundoffs(pair.reference), _Roundoffs(pair.candidate)
        one, other = self._sides[pair.index]
        return one.up_to(site.name), other.up_to(site.candidate)


class _Roundoffs:
    """Unit roundoffs of a sequence's sites in the order of the computation."""

    def __init__(self, sequence: Sequence) -> None:
        table = sequence.site_table
        self._own = {name: _roundoff(data.dtype) for name, data in sequence.sites.items()}
        self._order = {name: table[name].order for name in self._own if name in table}
        names = sorted(self._order, key=self._order.__getitem__)
        self._orders = np.array([self._order[name] for name in names])
        self._units = np.maximum.accumulate([self._own[name] for name in names] or [0.0])

    def up_to(self, name: str) -> float:
        """The coarsest one of the sites up to one; of a site that has no place in the order, its own."""
        if name not in self._order:
            return self._own[name]
        return float(self._units[int(np.searchsorted(self._orders, self._order[name], side="right")) - 1])


class Uncalibrated:
    """A floor from dtype and depth, raised at positions that earlier sites were already off at more than elsewhere; the
    verdict says that it is uncalibrated. One of them judges the sites of a pair in the order of the computation.

    Beyond the floor, `own` decides (`Amplified`).
    """

    calibration = "uncalibrated"

    def __init__(self, own: OwnDifference | None = None, coarse: float = 0.0) -> None:
        """`coarse`: unit roundoff of an arithmetic that both sides state, where it is coarser than their dtype's."""
        self.amplified = Amplified(own)
        self._coarse = coarse
        self.coarsest = _Coarsest()
        self._conditions: dict[int, _Conditions] = {}  # by pair

    def judge(self, pair: SequencePair, site: SitePair, first: int, stop: int) -> Judged | None:
        self.amplified.called(pair, site.name, site.candidate)
        error = _apart(pair, site, first, stop, row_bytes(pair.reference, site.name))
        unit = max(self._coarse, *self.coarsest.up_to(pair, site))
        exact = _exact(error)
        if exact is not None:
            return exact
        judged = self._measure(error, unit, site.order, self._condition(pair, site.order, first, stop))
        judged = self.amplified.judged(pair, site.name, first, stop, judged)
        # What is wrong excuses nothing that follows from it.
        condition = np.where(judged.wrong, 1.0, _relative_condition(error, unit))
        self._conditions.setdefault(pair.index, _Conditions()).add(site.order, first, condition)
        return judged

    def judge_logits(self, pair: SequencePair, stop: int) -> Judged | None:
        readers = logits_readers(pair, stop)
        if readers is None:
            return None
        error = row_errors(readers[0], readers[1], 0, stop, 8 * readers[2])
        unit = max(self._coarse, _roundoff(_computed_in(pair.reference), _computed_in(pair.candidate)))
        first = pair.reference.step(0).position
        condition = self._condition(pair, LOGITS_ORDER, first, first + stop)
        exact = _exact(error)
        if exact is not None:
            return exact
        judged = self._measure(error, unit, LOGITS_ORDER, condition)
        self.amplified.called(pair, LOGITS, LOGITS)
        return self.amplified.judged(pair, LOGITS, 0, stop, judged)

    def _condition(self, pair: SequencePair, order: int, first: int, stop: int) -> Floats:
        """How much more than elsewhere the sites before this one were off, by position: 1 or more."""
        conditions = self._conditions.get(pair.index)
        return np.ones(stop - first) if conditions is None else conditions.before(order, first, stop)

    def _measure(self, error: RowErrors, unit: float, order: int, condition: Floats) -> Judged:
        allowed = allowed_units(unit, order) * unit
        relative = error.relative
        # Rows of small norm carry the absolute error of their larger neighbours (attention sinks, cancellation).
        typical = float(np.median(error.norm)) if error.norm.size else 0.0
        softened = error.difference / np.maximum(error.norm, 0.1 * typical) if typical else relative
        ratio = np.asarray(softened / (allowed * condition))
        return Judged(ratio, _root_mean_square(ratio), ratio > 1.0, relative)


def _relative_condition(error: RowErrors, unit: float) -> Floats:
    """Each row's relative error over the median row's, which a mistake that all rows share leaves as it is."""
    relative = error.relative
    finite = relative[np.isfinite(relative)]
    typical = max(float(np.median(finite)) if finite.size else 0.0, unit)
    return np.where(np.isfinite(relative), relative / typical, 1.0)


class Fallback:
    """What a yardstick does not measure is judged without calibration, and counted. What it finds beyond its limit, it
    hands to `Amplified` as well: how much a site amplifies what it is given, a yardstick of few rows does not say."""

    def __init__(self, own: OwnDifference | None = None) -> None:
        self._rest = Uncalibrated(own)
        self.amplified = self._rest.amplified
        self.coarsest = self._rest.coarsest
        self.measured = False
        self.uncalibrated: dict[str, None] = {}  # sites, in the order in which they were judged

    def otherwise(self, pair: SequencePair, site: SitePair, first: int, stop: int) -> Judged | None:
        """A site that the yardstick does not hold."""
        judged = self._rest.judge(pair, site, first, stop)
        return self._counted(site.name, judged)

    def otherwise_logits(self, pair: SequencePair, stop: int) -> Judged | None:
        """Logits that it does not hold."""
        return self._counted(LOGITS, self._rest.judge_logits(pair, stop))

    def _counted(self, name: str, judged: Judged | None) -> Judged | None:
        if judged is not None and judged.error.any():
            self.uncalibrated[name] = None
        return judged


def used_calibration(yardstick: Yardstick) -> tuple[str, tuple[str, ...]]:
    """What was really measured with, `oracle`, `noise` or `uncalibrated`, and the sites that differ and were judged
    without calibration."""
    if not isinstance(yardstick, Fallback) or not yardstick.uncalibrated:
        return yardstick.calibration, ()
    return yardstick.calibration if yardstick.measured else "uncalibrated", tuple(yardstick.uncalibrated)


class Oracle(Fallback):
    """The reference recorded in higher precision, forced onto the same tokens."""

    calibration = "oracle"

    def __init__(self, trace: Trace, own: OwnDifference | None = None) -> None:
        super().__init__(own)
        self.trace = trace

    def judge(self, pair: SequencePair, site: SitePair, first: int, stop: int) -> Judged | None:
        units = self.coarsest.up_to(pair, site)
        oracle = self._sequence(pair)
        if oracle is None or site.name not in oracle.sites or not oracle.sites[site.name].covers(first, stop):
            return self.otherwise(pair, site, first, stop)
        one, other = pair.reference, pair.candidate
        self.amplified.called(pair, site.name, site.candidate)
        ours, theirs = site_reader(one, site.name), site_reader(other, site.candidate)
        bytes_a_row = row_bytes(oracle, site.name)
        # Identical values need no judge, whatever the oracle says.
        apart = _apart(pair, site, first, stop, bytes_a_row)
        exact = _exact(apart)
        if exact is not None:
            return exact
        truth = site_reader(oracle, site.name)
        noise = row_errors(truth, ours, first, stop, bytes_a_row)
        error = row_errors(truth, theirs, first, stop, bytes_a_row)
        judged = self._measure(apart, noise, error, units, site.order)
        return self.amplified.judged(pair, site.name, first, stop, judged)

    def judge_logits(self, pair: SequencePair, stop: int) -> Judged | None:
        oracle = self._sequence(pair)
        readers = logits_readers(pair, stop)
        if readers is None:
            return None
        if oracle is None or oracle.logits_dtype is None or oracle.step_count < stop:
            return self.otherwise_logits(pair, stop)
        ours, theirs, width = readers
        truth = logits_reader(oracle, width)
        apart = row_errors(ours, theirs, 0, stop, 8 * width)
        exact = _exact(apart)
        if exact is not None:
            return exact
        noise = row_errors(truth, ours, 0, stop, 8 * width)
        error = row_errors(truth, theirs, 0, stop, 8 * width)
        units = _roundoff(_computed_in(pair.reference)), _roundoff(_computed_in(pair.candidate))
        self.amplified.called(pair, LOGITS, LOGITS)
        return self.amplified.judged(pair, LOGITS, 0, stop, self._measure(apart, noise, error, units, LOGITS_ORDER))

    def _sequence(self, pair: SequencePair) -> Sequence | None:
        """The oracle's sequence of the same index and prompt."""
        if pair.index >= len(self.trace.sequences):
            return None
        oracle = self.trace.sequences[pair.index]
        return oracle if same_prompt(oracle, pair.reference) else None

    def _measure(
        self, apart: RowErrors, noise: RowErrors, error: RowErrors, units: tuple[float, float], order: int
    ) -> Judged:
        # A row's own noise, but never less than what is typical of the site: one lucky row proves nothing.
        relative = noise.relative
        typical = float(np.median(relative[np.isfinite(relative)])) if relative.size else 0.0
        least = REFERENCE_UNITS * units[0]
        if units[1] > units[0]:
            least = allowed_units(units[1], order) * units[1] / SITE_LIMIT
        allowed = np.maximum(noise.difference, max(typical, least) * noise.norm)
        self.measured = True
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(error.difference == 0, 0.0, error.difference / allowed)
        return Judged(ratio, _root_mean_square(ratio), _beyond(ratio), apart.relative)


class Noise(Fallback):
    """Several references under harmless variation: their largest distance from the first is the noise."""

    calibration = "noise"

    def __init__(self, traces: list[Trace], own: OwnDifference | None = None) -> None:
        super().__init__(own)
        self.traces = traces

    def judge(self, pair: SequencePair, site: SitePair, first: int, stop: int) -> Judged | None:
        one = pair.reference
        unit = max(self.coarsest.up_to(pair, site))
        self.amplified.called(pair, site.name, site.candidate)
        ours = site_reader(one, site.name)
        apart = _apart(pair, site, first, stop, row_bytes(one, site.name))
        exact = _exact(apart)
        if exact is not None:
            return exact
        spreads = []
        for other in self._sequences(pair):
            if site.name in other.sites and other.sites[site.name].covers(first, stop):
                spreads.append(row_errors(ours, site_reader(other, site.name), first, stop, row_bytes(one, site.name)))
        if not spreads:
            return self.otherwise(pair, site, first, stop)
        return self.amplified.judged(pair, site.name, first, stop, self._measure(apart, spreads, unit))

    def judge_logits(self, pair: SequencePair, stop: int) -> Judged | None:
        readers = logits_readers(pair, stop)
        if readers is None:
            return None
        ours, theirs, width = readers
        apart = row_errors(ours, theirs, 0, stop, 8 * width)
        exact = _exact(apart)
        if exact is not None:
            return exact
        spreads = []
        for other in self._sequences(pair):
            if other.logits_dtype is not None and other.step_count >= stop:
                spreads.append(row_errors(ours, logits_reader(other, width), 0, stop, 8 * width))
        if not spreads:
            return self.otherwise_logits(pair, stop)
        unit = _roundoff(_computed_in(pair.reference), _computed_in(pair.candidate))
        judged = self._measure(apart, spreads, unit)
        self.amplified.called(pair, LOGITS, LOGITS)
        return self.amplified.judged(pair, LOGITS, 0, stop, judged)

    def _sequences(self, pair: SequencePair) -> list[Sequence]:
        """The sequence of the pair in each trace that has it."""
        return [trace.sequences[pair.index] for trace in self.traces if pair.index < len(trace.sequences)]

    def _measure(self, apart: RowErrors, spreads: list[RowErrors], unit: float) -> Judged:
        """The distance over the largest one of the references, but never less than what is typical of the site."""
        self.measured = True
        spread = np.max([errors.difference for errors in spreads], axis=0)
        typical = float(np.median(spread / np.maximum(apart.norm, 1e-300))) if spread.size else 0.0
        allowed = np.maximum(spread, max(typical, unit) * apart.norm)
        ratio = apart.difference / np.maximum(allowed, 1e-300)
        return Judged(ratio, _root_mean_square(ratio), _beyond(ratio), apart.relative)


def _beyond(ratio: Floats) -> NDArray[np.bool_]:
    """Positions that are wrong. A small fault that is always there shows in the mean, one that starts late in its rows:
    the mean is taken over the rows before it, so that it does not drag sound rows along.
    """
    far = ratio > POSITION_LIMIT
    before = int(far.argmax()) if far.any() else len(ratio)
    return np.asarray(ratio > SITE_LIMIT) if _root_mean_square(ratio[:before]) > SITE_LIMIT else far


def _root_mean_square(ratio: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(ratio)))) if ratio.size else 0.0
