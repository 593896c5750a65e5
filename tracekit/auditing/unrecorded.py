"""Sites judged across modules that were not recorded, in the arithmetic that their engine states.

A recording of few sites has a layer's output and none of what leads to it. What lies between is computed recipe by
recipe from the last sites that are recorded: once exactly, and in runs with drawn roundings (`drawn_error`). In each
run every operation's inputs are rounded again as the engine states it, to blocks of 8 bits or to a cache's 16: a value
that lies next to a tie falls to either side, which is what two runs of one engine differ by there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias, cast

import numpy as np

from tracekit.auditing.drawn_error import drawn_result, judged
from tracekit.auditing.operations import Floats, Result
from tracekit.auditing.operations.embedding_table import Embedding
from tracekit.auditing.own_error import Own, common_width, tests_of
from tracekit.auditing.recipe import Recipe, recipes
from tracekit.auditing.recompute import Parameters, Recomputation, Window
from tracekit.auditing.rounding import unit
from tracekit.auditing.stated_arithmetic import Stated
from tracekit.trace import INPUT_SUFFIX, LOGITS, Sequence, Site, SiteData, Trace, resolve
from tracekit.trace_view import SequenceView, TraceView

DRAWS, CLOSE_DRAWS = 8, 64
"""Runs with drawn roundings; as many where a site looks wrong. Errors are of few values next to ties, each of which may
move one column by much: eight runs may miss it."""
MOST_POSITIONS = 512
"""Positions that are computed: what is between two sites is held of all runs at a time."""

Fits: TypeAlias = Callable[[Trace, Parameters, Recipe], bool]


@dataclass(frozen=True)
class Across:
    """A recorded site, and the recipes that lead to it from recorded ones, its own the last."""

    site: str
    recipes: tuple[Recipe, ...]


class Unrecorded:
    """The sites of a trace that only what is not recorded leads to."""

    def __init__(self, trace: Trace, parameters: Parameters, wiring: Trace | None, fits: Fits) -> None:
        """`fits`: whether a recipe's shapes are those of a trace."""
        self._trace, self._parameters, self._fits = trace, parameters, fits
        self._whole = _Whole(trace, parameters)
        self._wiring = wiring

    def judged(self, site: Across, index: int, stop: int, level: float) -> Own | None:
        """The own error of a site in the sequence of an index, below position `stop`; None where it is not recorded, or
        what leads to it is not recorded from position 0 on. `level`: as for `own_error`."""
        run = Recomputation(self._whole.sequences[index], self._parameters)
        for draws in (DRAWS, CLOSE_DRAWS):
            own = self._own(run, site, min(stop, MOST_POSITIONS), level, draws)
            if own is None or not own.wrong:
                break
        return own

    def _own(self, run: Recomputation, site: Across, stop: int, level: float, draws: int) -> Own | None:
        known = {recipe.stored for recipe in site.recipes}
        leaves = {name for recipe in site.recipes for name in recipe.inputs} - known
        rows = min([stop, run.sequence.positions, *(_from_start(run.sequence, name) for name in leaves)])
        ranges = [(first, min(last, rows)) for first, last in run.sequence.sites[site.site].ranges if first < rows]
        if rows < 1 or not ranges:
            return None
        window = Window(0, rows)
        values = {name: [run.recorded(name, window)] * (draws + 1) for name in leaves}
        for recipe in site.recipes:
            values[recipe.stored] = list(_computed(run, recipe, values, window, draws))
        places = np.concatenate([np.arange(first, last) for first, last in ranges])
        exact, *drawn = (each[places] for each in values[site.site])
        recorded = np.concatenate([run.recorded(site.site, Window(first, last)) for first, last in ranges])
        good = np.isfinite(exact).all(axis=1) & np.isfinite(recorded).all(axis=1)
        if not good.any():
            return None
        errors = np.stack([(each - exact)[good] for each in drawn]).astype(np.float32)
        stored = unit(run.dtype(site.site))
        result = drawn_result(exact[good], errors, stored)
        own = judged(site.site, places[good], recorded[good], result, level, stored)
        # One value that falls to the other side of a tie moves a whole row: its size is of few independent errors.
        moments = common_width(replace(result, reordered=lambda: tuple(errors)), level)
        width = {kind: max(own.width.get(kind, 1.0), factor) for kind, factor in moments.items()}
        return replace(own, width=width, limits=own.statistics.limits(level, width))

    @cached_property
    def sites(self) -> tuple[Across, ...]:
        """Them, in execution order; none of a trace that states no arithmetic but float32's."""
        if not Stated.of(self._trace).coarse:
            return ()
        found = recipes(self._whole, self._parameters.checkpoint, self._wiring).known
        by_site = {
            recipe.stored: recipe
            for recipe in found
            if self._parameters.has(recipe) and self._fits(cast(Trace, self._whole), self._parameters, recipe)
        }
        out = []
        for recipe in found:
            if recipe.site != recipe.stored or recipe.stored in self._whole.added or recipe.stored not in by_site:
                continue
            if recipe.stored == LOGITS:
                continue  # whose rows are steps
            if not any(name in self._whole.added for name in recipe.inputs):
                continue
            chain = self._chain(recipe, by_site)
            if chain is not None:
                out.append(Across(recipe.stored, chain))
        return tuple(out)

    def _chain(self, recipe: Recipe, by_site: Mapping[str, Recipe]) -> tuple[Recipe, ...] | None:
        """The recipes of what was not recorded, each after those that it reads; None where one has none."""
        done: dict[str, Recipe] = {}

        def visit(one: Recipe) -> bool:
            for name in one.inputs:
                if name not in self._whole.added or name in done:
                    continue
                before = by_site.get(name)
                if before is None or not visit(before):
                    return False
            done[one.stored] = one
            return True

        return tuple(done.values()) if visit(recipe) else None

    def tests(self, sequence: Sequence, stop: int, sites: Iterable[Across]) -> int:
        """How many tests are made of so many sites of a sequence."""
        count = 0
        for site in sites:
            data = sequence.sites.get(site.site)
            rows = 0 if data is None else sum(max(0, min(last, stop) - first) for first, last in data.ranges)
            count += tests_of(rows, data.width) if data is not None and rows else 0
        return count


def _computed(
    run: Recomputation, recipe: Recipe, values: Mapping[str, list[Floats]], window: Window, draws: int
) -> Iterator[Floats]:
    """A site's values exactly, then those of each run, [rows, width]."""
    result = run.result(recipe, window, _read(recipe, values, 0))
    yield result.values
    for index in range(1, draws + 1):
        given = run.given(recipe, window, _read(recipe, values, index))
        random = np.random.default_rng((index, *recipe.stored.encode()))
        yield _off(recipe.operation.values(given), result, random)


def _off(values: Floats, result: Result, random: np.random.Generator) -> Floats:
    """Values with errors drawn as an operation bounds them: of each value, of each row, and of all."""
    of_values = random.standard_normal(values.shape) * np.sqrt(result.variance) * result.excess
    shared = random.standard_normal((len(values), 1)) * result.shared + random.uniform(-1.0, 1.0) * result.bias
    return np.asarray(values * (1.0 + shared) + of_values)


def _read(recipe: Recipe, values: Mapping[str, list[Floats]], run: int) -> list[Floats]:
    """What an operation reads in one run, as its engine rounds it."""
    rows = [values[name][run] for name in recipe.inputs]
    cut = zip(rows, recipe.columns, strict=True) if recipe.columns else ()
    parts = [each if part is None else each[:, slice(*part)] for each, part in cut] or rows
    return recipe.operation.prepared(parts)


def _from_start(sequence: Sequence, site: str) -> int:
    return next((last for first, last in sequence.sites[site].ranges if first == 0), 0)


class _Whole(TraceView):
    """A trace as if every module with parameters and its input were recorded; nothing can be read of those in `added`
    that were not."""

    def __init__(self, trace: Trace, parameters: Parameters) -> None:
        rows: dict[str, Site] = dict(trace.sites)
        stored = {name for sequence in trace.sequences for name in sequence.sites}
        widths: dict[str, int] = {}
        for site in trace.sites.values():
            name = parameters.find(site.parameters.get("weight", ""))
            if name is None or site.same_as is not None or site.recorded_as is not None:
                continue
            shape = parameters.checkpoint.shape(name)
            if resolve(trace, site.name) not in stored:
                # A norm of heads has one head's weight and gives as many values as it is given.
                given = shape[-1] if site.module_class in Embedding.classes else shape[0]
                widths[site.name] = widths.get(site.input or "", given) if len(shape) == 1 else given
            source = site.name + INPUT_SUFFIX
            if site.input is None and resolve(trace, source) not in stored:
                rows.setdefault(source, Site(source, "input", site.order))
                widths[source] = shape[-1]
        super().__init__(trace, (_WholeSequence(each, widths) for each in trace.sequences))
        self.sites, self.added = rows, frozenset(widths)


class _WholeSequence(SequenceView):
    def __init__(self, inner: Sequence, widths: Mapping[str, int]) -> None:
        super().__init__(inner)
        dtype = next((data.dtype for data in inner.sites.values()), "float32")
        everywhere = ((0, inner.positions),)
        added = {name: SiteData(name, dtype, width, everywhere) for name, width in widths.items()}
        self.sites = {**inner.sites, **added}
