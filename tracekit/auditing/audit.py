"""The audit: every site's own error, with no other run to compare with.

A site is recomputed in float64 from its recorded input and the checkpoint. What is left is the error that this module
made by itself: nothing is inherited from earlier layers, and every faulty module is found in one pass. The error is
judged in units of what correct arithmetic may be off (`operations`), as its size and as the simplest structured
statistics, which see in 16 bits what size cannot: a gain, the gain of a row, the offset and the gain of a column.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from tracekit.auditing.declared_eps import not_declared
from tracekit.auditing.elsewhere import FactorElsewhere
from tracekit.auditing.evidence import (
    ColumnTooLarge,
    ErrorEvidence,
    ErrorTooLarge,
    GainOff,
    Statistic,
    StatisticOff,
)
from tracekit.auditing.measured import meant, measured
from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.auditing.operations.norms import Norm
from tracekit.auditing.outliers import Peers
from tracekit.auditing.own_error import FALSE_ALARMS, Own, own_error, site_windows, tests_of
from tracekit.auditing.recipe import Recipe, order_of, recipes
from tracekit.auditing.recompute import Parameters, Recomputation
from tracekit.auditing.routing import OtherExperts
from tracekit.auditing.unrecorded import Unrecorded
from tracekit.checkpoints import parameters as stored
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.stated import find_checkpoint
from tracekit.checkpoints.widened import narrowed
from tracekit.dtypes import SMALLEST
from tracekit.exit_codes import ExitCode
from tracekit.inspection.known_positions import known_positions, not_known
from tracekit.inspection.losses import Loss, losses
from tracekit.inspection.non_finite import NonFinite, first_non_finite
from tracekit.inspection.positions import prompt_length, step_of
from tracekit.inspection.sanity import uncached
from tracekit.inspection.settings import Difference, declared_differences, other_sizes
from tracekit.inspection.site_rows import logits_width
from tracekit.trace import LOGITS, Sequence, Trace, TraceError

try:
    from threadpoolctl import threadpool_limits
except ImportError:
    threadpool_limits = None

WORKERS = min(4, os.cpu_count() or 1)
"""Sites recomputed at a time, each on one core, where threadpoolctl is installed: half of the work is not in
multiplications, and those of several sites at a time get into each other's way if each of them uses all cores."""


@dataclass(frozen=True)
class Culprit:
    """A site whose own error is beyond its rounding bound."""

    sequence: int
    step: int
    position: int
    site: str
    order: int
    own: Own

    @property
    def evidence(self) -> ErrorEvidence:
        """What speaks against it."""
        own, statistics = self.own, self.own.statistics
        if own.beside is not None:
            return own.beside
        wrong, rows = int(own.wrong_rows().sum()), len(statistics.rows)
        match own.statistic:
            case Statistic.SIZE:
                return ErrorTooLarge(statistics.size, wrong, rows)
            case Statistic.ROW:
                return ErrorTooLarge(float(statistics.rows.max()), wrong, rows)
            case Statistic.COLUMN:
                column = statistics.worst_column
                return ColumnTooLarge(column, float(statistics.columns[column]))
            case Statistic.GAIN:
                return GainOff(1.0 + statistics.gain, abs(statistics.gain_deviations))
            case other:
                return StatisticOff(other, statistics.peaks()[other], wrong, rows)


@dataclass(frozen=True)
class Audit:
    """One trace against its checkpoint."""

    culprits: tuple[Culprit, ...]  # in the order of the computation
    clean: frozenset[str]  # sites that were audited and are within their bounds
    unknown: Mapping[str, NotAudited]  # sites that were not audited, and why
    weights: tuple[str, ...]  # parameters whose bytes are not the checkpoint's
    differences: tuple[Difference, ...]  # what the checkpoint declares and the engine says it used
    values: int  # values recomputed
    inexact: tuple[tuple[Culprit, ...], ...] = ()
    """16-bit sites of the same name in every layer, within their bounds, whose engine's arithmetic is not emulated: it
    is another one, or each of them makes the same mistake. Only an explanation that leaves nothing tells."""
    non_finite: NonFinite | None = None
    """Where the first value that is no finite number is. What is computed from one is not judged."""
    notes: tuple[object, ...] = ()
    """Differences from the checkpoint that are known to be none: another order of rows."""
    tests: int = 0
    """Statistics of rows, columns and sites that were judged, at a false alarm of `FALSE_ALARMS` for all together."""

    peak: float = 0.0
    """The largest statistic of any site, in units of its limit: above 1 there is a culprit."""
    elsewhere: tuple[FactorElsewhere, ...] = ()
    """Sites that hold a multiple of the reference's values, which the candidate makes up for later."""
    routed: tuple[OtherExperts, ...] = ()
    """Where a router chose other experts than the reference's scores say."""
    lost: tuple[Loss, ...] = ()
    """What the trace should hold and does not: nobody can say that it is within its bounds."""

    @property
    def departs(self) -> bool:
        """Whether something is beyond its bounds, or other than the checkpoint says."""
        return bool(self.culprits or self.weights or self.differences)

    @property
    def exit_code(self) -> ExitCode:
        """What `tracekit audit` exits with: `TROUBLE` where what is within bounds is not all there should be, or values
        that are not finite leave sites unjudged."""
        if self.departs:
            return ExitCode.DIFFER
        return ExitCode.TROUBLE if self.lost or self.non_finite is not None else ExitCode.AGREE


Auditor: TypeAlias = Callable[[Trace, Checkpoint], Audit]
"""What judges every recorded site of a trace against a checkpoint."""


@runtime_checkable
class HoldsParameters(Protocol):
    """An auditor that holds parameters itself: a trace needs no checkpoint to be judged by it."""

    def parameters(self, trace: Trace) -> stored.Parameters:
        """Those that a trace is judged with. Raises TraceError."""


def audit(
    trace: Trace,
    checkpoint: Checkpoint,
    *,
    stops: Mapping[int, int] | None = None,
    only: Collection[str] | None = None,
    wiring: Trace | None = None,
    finest: str = "float64",
    progress: Callable[[str], None] = lambda site: None,
) -> Audit:
    """Recompute every site that a recipe covers. `stops`: the position, by sequence index, before which to stop;
    `only`: these sites alone; `wiring`: a trace whose site table says what feeds what where this one's does not;
    `finest`: the precision that sites of a finer one are judged in.
    Raises TraceError where the checkpoint is of another model.
    """
    apart = other_model(trace, checkpoint)
    if apart is not None:
        stated = " (which the trace states)" if checkpoint.path == find_checkpoint(trace) else ""
        said = f"{checkpoint.path}{stated}: is of another model than {trace.path}: {apart}"
        raise TraceError(f"{said}; give the one it ran with: --weights")
    stops = _as_known(trace, stops)
    parameters = Parameters(trace, checkpoint, finest)
    known, unknown = auditable(trace, checkpoint, parameters, wiring)
    known = [recipe for recipe in known if only is None or recipe.site in only]
    culprits: dict[str, Culprit] = {}
    seen: set[str] = set()
    peers = Peers()
    values, peak = 0, 0.0
    runs = [Recomputation(sequence, parameters) for sequence in trace.sequences]
    unrecorded = Unrecorded(trace, parameters, wiring, fits)
    across = [site for site in unrecorded.sites if site.site in unknown and (only is None or site.site in only)]
    ends = {run.sequence.index: (stops or {}).get(run.sequence.index, 1 << 62) for run in runs}
    tests = _tests(known, runs, stops or {})
    tests += sum(unrecorded.tests(run.sequence, ends[run.sequence.index], across) for run in runs)
    for recipe, results in _own_errors(known, runs, stops or {}, FALSE_ALARMS / tests):
        progress(recipe.site)
        for run, own in results:
            seen.add(recipe.site)
            values += sum(window.stop - window.first for window in own.windows) * len(own.statistics.columns)
            peak = max(peak, *own.over.values())
            if own.wrong and recipe.site not in culprits:
                culprits[recipe.site] = culprit_of(trace, run.sequence, own)
            peers.add(run, own)
    for site in across:
        progress(site.site)
        for run in runs:
            with np.errstate(all="ignore"):
                found = unrecorded.judged(site, run.sequence.index, ends[run.sequence.index], FALSE_ALARMS / tests)
            if found is None:
                continue
            seen.add(site.site)
            unknown.pop(site.site, None)
            values += len(found.statistics.rows) * len(found.statistics.columns)
            peak = max(peak, *found.over.values())
            if found.wrong and site.site not in culprits:
                culprits[site.site] = culprit_of(trace, run.sequence, found)
    for run, own in peers.outliers():
        culprits.setdefault(own.recipe.site, culprit_of(trace, run.sequence, own))
    for recipe in known:
        if recipe.site not in seen:
            blind = any(recipe.site in run.blind for run in runs)
            again = any(run.reads_others(recipe) for run in runs)
            unknown[recipe.site] = NotAudited(
                Lacks.FINITE if blind else Lacks.CACHED if again else Lacks.SAME_POSITIONS
            )
    ranked = sorted(culprits.values(), key=lambda culprit: (culprit.sequence, culprit.step, culprit.order))
    return Audit(
        tuple(ranked),
        frozenset(seen - culprits.keys()),
        unknown,
        tuple(changed_weights(trace, checkpoint)) if only is None else (),
        tuple(declared_differences(checkpoint.config, trace)),
        values,
        tuple(tuple(culprit_of(trace, run.sequence, own) for run, own in group) for group in peers.inexact()),
        non_finite=first_non_finite(trace, stops) if only is None else None,
        tests=tests,
        peak=peak,
        lost=(*losses(trace), *not_known(trace)),
        notes=(
            *(uncached(trace) if any(run.reads_others(recipe) for recipe in known for run in runs) else ()),
            *not_declared(checkpoint.config, [each.site for each in known if isinstance(each.operation, Norm)]),
        ),
    )


def own_errors(
    trace: Trace, checkpoint: Checkpoint, *, stops: Mapping[int, int] | None = None, wiring: Trace | None = None
) -> Iterator[tuple[Recomputation, Own]]:
    """The own error of every site that a recipe covers, right or wrong, site by site; the arguments are `audit`'s."""
    stops = _as_known(trace, stops)
    parameters = Parameters(trace, checkpoint)
    known, _ = auditable(trace, checkpoint, parameters, wiring)
    runs = [Recomputation(sequence, parameters) for sequence in trace.sequences]
    level = FALSE_ALARMS / _tests(known, runs, stops or {})
    for _, results in _own_errors(known, runs, stops or {}, level):
        yield from results


def _as_known(trace: Trace, stops: Mapping[int, int] | None) -> dict[int, int]:
    """`stops`, of each sequence no later than the first position whose mask or weights are not known."""
    known = {each.index: count for each in trace.sequences if (count := known_positions(each)) < each.positions}
    return {**(stops or {}), **{index: min(stop, (stops or {}).get(index, stop)) for index, stop in known.items()}}


def auditable(
    trace: Trace, checkpoint: Checkpoint, parameters: Parameters, wiring: Trace | None
) -> tuple[list[Recipe], dict[str, NotAudited]]:
    """Recipes that can be followed, in execution order; and the other sites, with the reason."""
    found = recipes(trace, checkpoint, wiring)
    unknown, known = dict(found.unknown), []
    meanings = measured(trace, checkpoint, wiring, found.known)
    for each in found.known:
        recipe = meant(each, meanings)
        if isinstance(recipe, NotAudited):
            unknown[each.site] = recipe
            continue
        if not parameters.has(recipe):
            unknown[recipe.site] = NotAudited(Lacks.PARAMETER)
        elif parameters.may_be_tied(recipe):
            unknown[recipe.site] = NotAudited(Lacks.TIED_HEAD, (str(checkpoint.config.get("model_type")),))
        elif not fits(trace, parameters, recipe):
            unknown[recipe.site] = NotAudited(Lacks.SHAPE)
        else:
            known.append(recipe)
    return known, unknown


def _tests(known: list[Recipe], runs: list[Recomputation], stops: Mapping[int, int]) -> int:
    """How many tests the audit makes: the fewer, the less each of them has to let pass."""
    count = 0
    for run in runs:
        for recipe in known:
            rows = sum(len(window.rows) for window in site_windows(run, recipe, stops.get(run.sequence.index, 1 << 62)))
            count += tests_of(rows, run.width(recipe)) if rows else 0
    return max(count, 1)


def _own_errors(
    known: list[Recipe], runs: list[Recomputation], stops: Mapping[int, int], level: float
) -> Iterator[tuple[Recipe, list[tuple[Recomputation, Own]]]]:
    """Each recipe with the own errors of its sequences, in the order of the recipes, several worked out at a time."""

    def examined(recipe: Recipe) -> list[tuple[Recomputation, Own]]:
        # Sites outside, sequences inside: a matrix is made once.
        # What is too large, or not finite, is judged as such; numpy need not warn of it. Each thread asks for that.
        with np.errstate(all="ignore"):
            owns = [(run, own_error(run, recipe, stops.get(run.sequence.index, 1 << 62), level)) for run in runs]
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


def fits(trace: Trace, parameters: Parameters, recipe: Recipe) -> bool:
    """Whether what is recorded has the shape that the recipe wants."""
    shapes = parameters.shapes(recipe)
    for sequence in trace.sequences:
        sites = sequence.sites
        widths = [sites[name].width for name in recipe.inputs if name in sites]
        if recipe.columns and len(widths) == len(recipe.inputs):
            parts = [part or (0, wide) for part, wide in zip(recipe.columns, widths, strict=True)]
            if max(stop for _, stop in parts) != widths[0]:
                return False
            widths = [stop - first for first, stop in parts]
        if recipe.stored == LOGITS:
            width = logits_width(sequence)
        elif recipe.stored in sites:
            width = sites[recipe.stored].width
        else:
            continue
        if width is None:
            continue
        if not recipe.operation.fits(shapes, widths, width):
            return False
    return True


def culprit_of(trace: Trace, sequence: Sequence, own: Own) -> Culprit:
    """A site of a sequence that is beyond its bound, at its first wrong row."""
    recipe = own.recipe
    rows = np.concatenate([window.rows for window in own.windows])
    row = int(rows[int(own.wrong_rows().argmax())])
    position = sequence.step(row).position if recipe.site == LOGITS else row
    data = sequence.sites.get(recipe.stored)
    step = step_of(position, prompt_length(sequence)) if data is None or data.axis is None else 0
    return Culprit(sequence.index, step, position, recipe.site, order_of(trace, recipe.site), own)


def other_model(trace: Trace, checkpoint: Checkpoint) -> str | None:
    """How a checkpoint is of another model than the one that ran, by its sizes; None where nothing says so."""
    stated = other_sizes(checkpoint.config, trace)
    if stated is not None:
        return stated
    shapes = [(name, weight.shape, checkpoint.find(name)) for name, weight in trace.weights.items()]
    known = [(name, shape, checkpoint.shape(found)) for name, shape, found in shapes if found is not None]
    if not known or any(shape == other for _, shape, other in known):
        return None
    name, shape, other = known[0]
    return f"{name} {list(other)}, not {list(shape)}"


def changed_weights(trace: Trace, checkpoint: Checkpoint) -> list[str]:
    """Parameters that the engine held with other bytes than the checkpoint has in that dtype."""
    out = []
    for name, weight in trace.weights.items():
        found = checkpoint.find(name)
        if found is None or weight.digest is None or checkpoint.shape(found) != weight.shape:
            continue
        if weight.dtype not in SMALLEST:
            continue
        # A tied head may be held under the name of the file's own table, which then is another parameter.
        options = [option for option in (found, checkpoint.other_head(name)) if option is not None]
        if any(checkpoint.may_hold(option, weight.dtype, weight.digest) for option in options):
            continue
        if all(narrowed(trace, checkpoint, name, option) is None for option in options):
            out.append(name)
    return out
