"""The audit: every site's own error, with no other run to compare with.

A site is recomputed in float64 from its recorded input and the checkpoint. What is left is the error that this module
made by itself: nothing is inherited from earlier layers, and every faulty module is found in one pass. The error is
judged in units of what correct arithmetic may be off (`operations`), as its size and as the simplest structured
statistics, which see in 16 bits what size cannot: a gain, the gain of a row, the offset and the gain of a column.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tracekit import operations
from tracekit.divergence import prompt_length, step_of
from tracekit.operations import Floats, Result
from tracekit.recipe import Recipe, order_of, recipes
from tracekit.recompute import Parameters, Recomputation, Window
from tracekit.settings import Difference, declared_differences
from tracekit.trace import Json, Trace
from tracekit.weights import Checkpoint

try:
    from threadpoolctl import threadpool_limits
except ImportError:
    threadpool_limits = None

BLOCK_ROWS, FEWEST_ROWS, BLOCK_VALUES = 1024, 64, 1 << 20
"""Positions recomputed at a time: as many as hold about a million values, whose memory the allocator gives out again
without asking the system for it."""
CACHED = 64 << 10
"""Elements whose statistics are taken at a time: their dozen arrays stay in the cache."""
CLOSELY = ("linear", "attention")
"""Kinds of sites with a cheap bound and a full one."""
WORKERS = min(4, os.cpu_count() or 1)
"""Sites recomputed at a time, each on one core, where threadpoolctl is installed: half of the work is not in
multiplications, and those of several sites at a time get into each other's way if each of them uses all cores."""
LARGEST = np.float32(1e15)
"""Error over its bound that stands for all larger ones, and for what is not finite; its square fits float32."""

SIZE_LIMIT = 5.0
"""Root mean square of a site's own error over its bound. Healthy sites of SmolLM2 stay below 1.9 in PyTorch and candle,
float32, bfloat16 and float16; a gain of 1.00001 in float32 gives 10."""
ROW_LIMIT = 8.0
"""The same of one row: healthy rows stay below 3.9."""
COLUMN_LIMIT = 8.0
"""The same of one column. Healthy columns stay below 5.7: where a massive activation runs through them, a column's
errors come from few rows."""
DEVIATIONS_LIMIT = 9.0
"""Standard deviations of a gain or an offset. Healthy sites stay below 4.5 over some 600,000 rows and columns tested at
once; of independent errors, 9 would be exceeded once in 1e18."""
GAIN_LIMIT = 5.0
"""Standard deviations of the gain of a whole site. There is one a site; healthy ones stay below 1.1, and below 2.3
where attention is emulated in 16 bits."""
ODD = 0.05
"""Error over its bound from which a value is another than the emulated one: in 16 bits the next number is 1 away."""
EXACT_PEERS = 0.02
"""Size of error below which an engine's 16-bit arithmetic is emulated exactly: what is left are sums that lay next to a
tie. Then a site that is off is off by itself, though its error be within the bound of other engines' arithmetic."""
INEXACT = 0.05
"""Size of error from which it is not."""
PEER_RATIO, PEER_FLOOR = 10.0, 0.2
"""How much larger than three quarters of its peers', and how large at least, the error of such a site is. SmolLM2's
sites in bfloat16, emulated, reach 0.04."""
PEERS = 4
"""Sites of the same name in other layers that it takes to speak of peers."""
ODD_COLUMN, ODD_ROWS = 0.15, 4
"""Share, and number, of rows in which a column of such a site differs. Of SmolLM2's half a million columns none
differs in more than 2 of 21; a weight that is 0.01 off shows in 8."""
STANDS_OUT = 4.0
"""Times the median that a row's error must be to say that the mistake is in such rows alone."""
BIAS_UNITS = 2.0
"""Roundoff units of the sums by which a row or a column may be off to one side: exp, rsqrt and tanh of real libraries
are good to one unit in the last place, not unbiased."""
GAIN_BIAS = 0.25
"""Share of it that is left over all rows and columns. Gains of healthy sites stay below 0.7 units; a function that is
off by a whole unit in the last place everywhere, two roundoff units, still is within the limit."""


class Tally:
    """Statistics of one site's own error, in units of its rounding bound, collected over blocks of rows."""

    def __init__(self, bias: float) -> None:
        self.bias = bias  # relative error that no average takes away
        self.rows: list[Floats] = []  # mean square of each row
        self.row_gains: list[Floats] = []
        self.row_spreads: list[Floats] = []
        self.columns: Floats = np.zeros(0)  # [squares, offsets, products, powers, weights, odd rows] of each column
        self.count = 0

    def add(self, recorded: Floats, result: Result) -> None:
        """One block of rows, [rows, width]."""
        gaps = [recorded - values for values in (result.values, *result.rounded)]
        gap = gaps[0] if len(gaps) == 1 else min(gaps, key=operations.typical)
        few = max(1, CACHED // gap.shape[1])
        for first in range(0, len(gap), few):
            rows = slice(first, first + few)
            self._add_few(gap[rows], result.values[rows], result.variance[rows], result.shared)

    def _add_few(self, gap: Floats, values: Floats, variance: Floats, shared: float) -> None:
        """As many rows as stay in the cache; statistics need no more than float32, and no more do their sums."""
        inverse = np.sqrt(variance)
        np.reciprocal(inverse, out=inverse)
        with np.errstate(invalid="ignore", over="ignore"):
            error = (gap * inverse).astype(np.float32)
            size = np.abs(error)
            np.copyto(error, LARGEST, where=~(size < LARGEST))
            signal = (values * inverse).astype(np.float32)
            np.clip(signal, -LARGEST, LARGEST, out=signal)
        squares, products, powers = np.square(error), error * signal, np.square(signal)
        power = _across(powers)
        safe, common = np.maximum(power, 1e-290), shared**2 + self.bias**2
        self.rows.append(_across(squares) / (error.shape[1] + common * power))
        self.row_gains.append(_across(products) / safe)
        self.row_spreads.append(np.sqrt(1.0 / safe + common))
        # A row's shared error is no column's fault.
        loose = np.float32(common) * powers
        loose += np.float32(1.0)
        np.reciprocal(loose, out=loose)
        for part in (squares, products, powers):
            part *= loose
        error *= loose
        odd = (size > np.float32(ODD)).astype(np.float32)
        block = np.stack([_down(part) for part in (squares, error, products, powers, loose, odd)])
        self.columns = block if not self.count else self.columns + block
        self.count += len(error)

    def statistics(self) -> Statistics:
        """What was collected, as numbers of standard deviations and ratios."""
        rows = np.sqrt(np.concatenate(self.rows))
        gains, spreads = np.concatenate(self.row_gains), np.concatenate(self.row_spreads)
        weights = 1.0 / np.maximum(np.square(spreads) - self.bias**2, 1e-290)
        gain = float((gains * weights).sum() / weights.sum())
        spread = float(np.sqrt(1.0 / weights.sum() + (GAIN_BIAS * self.bias) ** 2))
        squares, offsets, products, powers, loose, odd = self.columns
        column_spread = np.sqrt(np.maximum(powers, 1e-290) + np.square(self.bias * powers))
        return Statistics(
            size=float(np.sqrt(np.mean(np.square(rows)))),
            rows=rows,
            gain=gain,
            gain_deviations=gain / spread,
            row_gains=gains / spreads,
            columns=np.sqrt(squares / self.count),
            column_offsets=offsets / np.sqrt(np.maximum(loose, 1e-290) + np.square(self.bias) * powers * self.count),
            column_gains=products / column_spread,
            odd=odd / self.count,
        )


def _across(values: NDArray[np.float32]) -> Floats:
    """Sum of each row: a product with ones, several times as fast as numpy's own sum."""
    return (values @ np.ones(values.shape[1], np.float32)).astype(np.float64)


def _down(values: NDArray[np.float32]) -> Floats:
    """Sum of each column."""
    return (np.ones(values.shape[0], np.float32) @ values).astype(np.float64)


@dataclass(frozen=True)
class Statistics:
    """A site's own error. Sizes are ratios to the rounding bound, the rest numbers of standard deviations."""

    size: float  # root mean square over all rows
    rows: Floats  # [rows]
    gain: float  # fitted, 0 where correct
    gain_deviations: float
    row_gains: Floats  # [rows]
    columns: Floats  # [width]
    column_offsets: Floats  # [width]
    column_gains: Floats  # [width]
    odd: Floats  # [width], share of rows that are not the emulated value

    def peaks(self) -> dict[str, float]:
        """The largest of each kind."""
        return {
            "size": self.size,
            "row": float(self.rows.max(initial=0.0)),
            "column": float(self.columns.max(initial=0.0)),
            "gain": abs(self.gain_deviations),
            "row gain": float(np.abs(self.row_gains).max(initial=0.0)),
            "column offset": float(np.abs(self.column_offsets).max(initial=0.0)),
            "column gain": float(np.abs(self.column_gains).max(initial=0.0)),
        }

    def over(self, width: Mapping[str, float]) -> dict[str, float]:
        """Each peak over its limit, widened where drawn rounding errors spread more; above 1 is wrong."""
        return {kind: value / (LIMITS[kind] * max(1.0, width.get(kind, 1.0))) for kind, value in self.peaks().items()}


LIMITS = {
    "size": SIZE_LIMIT,
    "row": ROW_LIMIT,
    "column": COLUMN_LIMIT,
    "gain": GAIN_LIMIT,
    "row gain": DEVIATIONS_LIMIT,
    "column offset": DEVIATIONS_LIMIT,
    "column gain": DEVIATIONS_LIMIT,
}
INDEPENDENT_PEAK = 2.0
"""What the largest of some hundred independent errors is at least, in standard deviations. Rounding errors that share a
cause (a rotary table, a score) peak higher; how much is measured on drawn ones, and the limits widen by that. Attention
written out by hand peaks at 10 where the drawn ones peak at 3."""


@dataclass(frozen=True)
class Own:
    """A site's own error in one sequence, judged."""

    recipe: Recipe
    windows: tuple[Window, ...]
    statistics: Statistics
    over: Mapping[str, float]  # each statistic over its limit
    width: Mapping[str, float]  # how much wider than independent errors the drawn ones spread
    beside: str | None = None  # what tells it from its peers, where its error is within its bound

    @property
    def wrong(self) -> bool:
        return self.beside is not None or max(self.over.values()) > 1.0

    @property
    def statistic(self) -> str:
        """The statistic furthest beyond its limit; size where it is beyond its own."""
        return "size" if self.over["size"] > 1.0 else max(self.over, key=lambda kind: self.over[kind])

    def wrong_rows(self) -> NDArray[np.bool_]:
        """Rows that are wrong by themselves; where only an average over all of them is, every row."""
        rows = self.statistics.rows
        if self.beside is not None:
            return np.asarray(rows > ODD if (rows > ODD).any() else np.ones(len(rows), dtype=bool))
        limit = SIZE_LIMIT if self.over["size"] > 1.0 else ROW_LIMIT
        deviations = DEVIATIONS_LIMIT * max(1.0, self.width.get("row gain", 1.0))
        wrong = (rows > limit) | (np.abs(self.statistics.row_gains) > deviations)
        if wrong.any():
            return np.asarray(wrong)
        top = float(rows.max(initial=0.0))
        late = top > STANDS_OUT * float(np.median(rows))
        return np.asarray(rows > top / 2.0 if late else np.ones_like(wrong))


@dataclass(frozen=True)
class Culprit:
    """A site whose own error is beyond its rounding bound."""

    sequence: int
    step: int
    position: int
    site: str
    order: int
    own: Own
    explanation: Json | None = None

    def to_json(self) -> Json:
        statistics = self.own.statistics
        return {
            "side": "candidate",
            "sequence": self.sequence,
            "step": self.step,
            "position": self.position,
            "site": self.site,
            "own": statistics.size,
            "statistic": self.own.statistic,
            "gain": 1.0 + statistics.gain,
            "explanation": self.explanation,
        }

    def evidence(self) -> str:
        """One line: how far beyond its bound, and by what."""
        statistics, kind = self.own.statistics, self.own.statistic
        wrong, rows = int(self.own.wrong_rows().sum()), len(statistics.rows)
        where = "" if wrong == rows else f", at {wrong} of {rows} positions"
        if self.own.beside is not None:
            return self.own.beside
        if kind == "size":
            return f"own error {statistics.size:.3g}x its rounding bound{where}"
        if kind == "row":
            return f"own error {statistics.rows.max():.3g}x its rounding bound{where}"
        if kind == "column":
            column = int(statistics.columns.argmax())
            return f"own error of column {column}: {statistics.columns[column]:.3g}x its rounding bound"
        if kind == "gain":
            deviations = abs(statistics.gain_deviations)
            return f"own gain {1.0 + statistics.gain:.6g}, {deviations:.0f} standard deviations from 1"
        deviations = statistics.peaks()[kind]
        return f"own {kind}, {deviations:.0f} standard deviations from what rounding does{where}"


@dataclass(frozen=True)
class Audit:
    """One trace against its checkpoint."""

    culprits: tuple[Culprit, ...]  # in the order of the computation
    clean: frozenset[str]  # sites that were audited and are within their bounds
    unknown: Mapping[str, str]  # sites that were not audited, and why
    weights: tuple[str, ...]  # parameters whose bytes are not the checkpoint's
    differences: tuple[Difference, ...]  # what the checkpoint declares and the engine says it used
    values: int  # values recomputed
    inexact: tuple[tuple[Culprit, ...], ...] = ()
    """16-bit sites of the same name in every layer, within their bounds, whose engine's arithmetic is not emulated: it
    is another one, or each of them makes the same mistake. Only an explanation that leaves nothing tells."""

    @property
    def exit_code(self) -> int:
        """As diff(1): 0 within bounds, 1 not."""
        return 1 if self.culprits or self.weights or self.differences else 0


def audit(
    trace: Trace,
    checkpoint: Checkpoint,
    *,
    stops: Mapping[int, int] | None = None,
    only: Collection[str] | None = None,
    wiring: Trace | None = None,
    progress: Callable[[str], None] = lambda site: None,
) -> Audit:
    """Recompute every site that a recipe covers. `stops`: the position, by sequence index, before which to stop;
    `only`: these sites alone; `wiring`: a trace whose site table says what feeds what where this one's does not.
    """
    found = recipes(trace, checkpoint.config, wiring)
    parameters = Parameters(trace, checkpoint)
    unknown, known = dict(found.unknown), []
    for recipe in found.known:
        if not parameters.has(recipe):
            unknown[recipe.site] = "the checkpoint has no parameter of that name"
        elif not _fits(trace, parameters, recipe):
            unknown[recipe.site] = "its shape is not that of the checkpoint's parameter"
        elif only is None or recipe.site in only:
            known.append(recipe)
    culprits: dict[str, Culprit] = {}
    seen: set[str] = set()
    peers = _Peers()
    values = 0
    runs = [Recomputation(sequence, parameters) for sequence in trace.sequences]
    for recipe, results in _own_errors(known, runs, stops or {}):
        progress(recipe.site)
        for run, own in results:
            seen.add(recipe.site)
            values += sum(window.stop - window.first for window in own.windows) * len(own.statistics.columns)
            if own.wrong and recipe.site not in culprits:
                culprits[recipe.site] = _culprit(trace, run, own)
            peers.add(run, own)
    for run, own in peers.outliers():
        culprits.setdefault(own.recipe.site, _culprit(trace, run, own))
    for recipe in known:
        if recipe.site not in seen:
            unknown[recipe.site] = "its inputs are not recorded at the same positions"
    ranked = sorted(culprits.values(), key=lambda culprit: (culprit.sequence, culprit.step, culprit.order))
    return Audit(
        tuple(ranked),
        frozenset(seen - culprits.keys()),
        unknown,
        tuple(changed_weights(trace, checkpoint)) if only is None else (),
        tuple(declared_differences(checkpoint.config, trace)),
        values,
        tuple(tuple(_culprit(trace, run, own) for run, own in group) for group in peers.inexact()),
    )


def _own_errors(
    known: list[Recipe], runs: list[Recomputation], stops: Mapping[int, int]
) -> Iterator[tuple[Recipe, list[tuple[Recomputation, Own]]]]:
    """Each recipe with the own errors of its sequences, in the order of the recipes, several worked out at a time."""

    def examined(recipe: Recipe) -> list[tuple[Recomputation, Own]]:
        # Sites outside, sequences inside: a matrix is made once.
        owns = [(run, own_error(run, recipe, stops.get(run.sequence.index, 1 << 62))) for run in runs]
        return [(run, own) for run, own in owns if own is not None]

    if threadpool_limits is None or WORKERS == 1:
        yield from ((recipe, examined(recipe)) for recipe in known)
        return
    # The head is the last of them and the most work: begun last, it would be worked on alone.
    order = sorted(known, key=lambda recipe: -max((run.width(recipe) for run in runs), default=0))
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(WORKERS) as pool:
        pending = {recipe.site: pool.submit(examined, recipe) for recipe in order[:WORKERS]}
        pending |= {recipe.site: pool.submit(examined, recipe) for recipe in known if recipe.site not in pending}
        yield from ((recipe, pending[recipe.site].result()) for recipe in known)


def _fits(trace: Trace, parameters: Parameters, recipe: Recipe) -> bool:
    """Whether what is recorded has the shape that the recipe wants."""
    for sequence in trace.sequences:
        sites = sequence.sites
        widths = [sites[name].width for name in recipe.inputs if name in sites]
        if recipe.stored == "logits" or recipe.stored not in sites:
            continue
        width = sites[recipe.stored].width
        if recipe.parameters and not parameters.fits(recipe, width, widths[0] if widths else width):
            return False
        if recipe.kind in ("residual", "gate", "identity") and any(other != width for other in widths):
            return False
        if recipe.core is not None:
            core = recipe.core
            wanted = [core.heads * core.head_dim, *[core.kv_heads * core.head_dim] * 2]
            if widths != wanted or width != wanted[0]:
                return False
    return True


class _Peers:
    """Sites of the same name in every layer, of a run whose 16-bit arithmetic may be emulated exactly."""

    def __init__(self) -> None:
        self._by_role: dict[str, list[tuple[Recomputation, Own]]] = {}

    def add(self, run: Recomputation, own: Own) -> None:
        if operations.unit(run.computed_in(own.recipe)) <= operations.ACCUMULATOR:
            return
        role = re.sub(r"\d+", "*", own.recipe.site)
        self._by_role.setdefault(f"{run.sequence.index}:{role}", []).append((run, own))

    def inexact(self) -> list[list[tuple[Recomputation, Own]]]:
        """Groups of which none is wrong and none is exact."""
        groups = []
        for peers in self._by_role.values():
            sound = [(run, own) for run, own in peers if not own.wrong and own.statistics.size > INEXACT]
            if len(sound) >= PEERS and len(sound) > len(peers) / 2:
                groups.append(sound)
        return groups

    def outliers(self) -> list[tuple[Recomputation, Own]]:
        """Those that are off where their peers are exact."""
        out = []
        for peers in self._by_role.values():
            sizes = np.array([own.statistics.size for _, own in peers])
            usual = float(np.quantile(sizes, 0.75))
            if len(peers) < PEERS or usual > EXACT_PEERS:
                continue
            out += [(run, replace(own, beside=said)) for run, own in peers if (said := _outlier(own, usual))]
        return out


def _outlier(own: Own, usual: float) -> str | None:
    statistics = own.statistics
    odd = np.flatnonzero((statistics.odd >= ODD_COLUMN) & (statistics.odd * len(statistics.rows) >= ODD_ROWS))
    if statistics.size > max(PEER_FLOOR, PEER_RATIO * usual):
        return f"own error {statistics.size:.2g}x its rounding bound, where the same site of other layers is exact"
    if odd.size and statistics.size <= EXACT_PEERS + float(np.sqrt(odd.size / len(statistics.odd))):
        more = f" and {odd.size - 1} more" if odd.size > 1 else ""
        share = statistics.odd[odd[0]]
        return f"column {odd[0]}{more} is off at {share:.0%} of the positions, where the rest of the site is exact"
    return None


def own_error(run: Recomputation, recipe: Recipe, stop: int = 1 << 62) -> Own | None:
    """A site's own error in one sequence, below position `stop`; None where it was not recorded with its inputs."""
    if recipe.site != "logits" and recipe.stored not in run.sequence.sites:
        return None
    width = run.width(recipe)
    windows = [part for window in run.windows(recipe, stop) for part in _blocks(window, width)]
    if not windows:
        return None
    own = _judged(run, recipe, windows, closely=False)
    # The cheap bounds take a product's sizes as spread evenly, and the core's errors as alike between the rows where
    # they were drawn; judge by the full ones.
    return _judged(run, recipe, windows, closely=True) if own.wrong and recipe.kind in CLOSELY else own


def _blocks(window: Window, width: int) -> list[Window]:
    rows = min(BLOCK_ROWS, max(FEWEST_ROWS, BLOCK_VALUES // width))
    return [Window(first, min(first + rows, window.stop)) for first in range(window.first, window.stop, rows)]


def _judged(run: Recomputation, recipe: Recipe, windows: list[Window], closely: bool) -> Own:
    bias = BIAS_UNITS * operations.accumulator(run.computed_in(recipe))
    tally = Tally(bias)
    width: dict[str, float] = {}
    for window in windows:
        recorded = run.recorded(recipe.stored, window)
        result = run.result(recipe, window, run.inputs(recipe, window), closely).closest(recorded)
        tally.add(recorded, result)
        for kind, factor in drawn_width(result, bias).items():
            width[kind] = max(width.get(kind, 1.0), factor)
    statistics = tally.statistics()
    return Own(recipe, tuple(windows), statistics, statistics.over(width), width)


def drawn_width(result: Result, bias: float) -> dict[str, float]:
    """How much wider than independent errors the drawn ones spread, by statistic."""
    out: dict[str, float] = {}
    rows = result.drawn_rows
    for error in result.draws:
        part = Result(result.values[rows], result.variance[rows], result.shared)
        tally = Tally(bias)
        tally.add(part.values + error, part)
        for kind, peak in tally.statistics().peaks().items():
            out[kind] = max(out.get(kind, 1.0), peak / INDEPENDENT_PEAK)
    return out


def _culprit(trace: Trace, run: Recomputation, own: Own) -> Culprit:
    recipe, sequence = own.recipe, run.sequence
    rows = np.concatenate([window.rows for window in own.windows])
    row = int(rows[int(own.wrong_rows().argmax())])
    position = row + run.first_step if recipe.site == "logits" else row
    step = step_of(position, prompt_length(sequence))
    return Culprit(sequence.index, step, position, recipe.site, order_of(trace, recipe.site), own)


def explained(culprit: Culprit, explanation: Json | None) -> Culprit:
    """The culprit with what its mistake is."""
    return replace(culprit, explanation=explanation)


def changed_weights(trace: Trace, checkpoint: Checkpoint) -> list[str]:
    """Parameters that the engine held with other bytes than the checkpoint has in that dtype."""
    out = []
    for name, weight in trace.weights.items():
        found = checkpoint.find(name)
        if found is None or weight.digest is None or checkpoint.shape(found) != weight.shape:
            continue
        if weight.dtype not in operations.SMALLEST:
            continue
        if checkpoint.digest(found, weight.dtype) != weight.digest:
            out.append(name)
    return out
