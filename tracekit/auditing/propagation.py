"""How far rounding alone moves a site: the errors that every site before it makes, carried through the recipes.

Each site of a trace gets a drawn error of its own, as large as correct arithmetic on two sides may make it, and hands
it on: the recipe of the next site is taken at the recorded inputs and at the moved ones, in float64. What arrives has
been amplified as this run amplifies: by a massive activation, a cancellation, a softmax between two equal scores.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from tracekit.auditing.audit import auditable
from tracekit.auditing.operations import Floats
from tracekit.auditing.own_error import FALSE_ALARMS, deviations
from tracekit.auditing.recipe import Recipe
from tracekit.auditing.recompute import Parameters, Recomputation, Window
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.trace import Trace

DRAWS = 8
"""Drawn errors of the whole run; what they spread by is known to a quarter, which `limit` takes into account."""
LONGEST = 512
"""Positions up to which errors are propagated: keys and values of all of them have to be moved."""


def limit(tests: int) -> float:
    """Times the root mean square of `DRAWS` drawn Gaussian errors that another one exceeds, over `tests` of them, with
    the probability `FALSE_ALARMS`: Student's t (Wallace 1959)."""
    beyond = deviations(FALSE_ALARMS / max(tests, 1)) * (8.0 * DRAWS + 3.0) / (8.0 * DRAWS + 1.0)
    return float(np.sqrt(DRAWS * np.expm1(beyond**2 / DRAWS)))


def rounding_that_adds_up(
    trace: Trace, checkpoint: Checkpoint, sequence: int, sites: Collection[str], stop: int, wiring: Trace | None = None
) -> dict[str, Floats]:
    """Root mean square length of the error of each row below position `stop`, [rows], by stored site; of the logits, of
    each step. A site that no recipe covers is left out, and all are where the run is too long."""
    parameters = Parameters(trace, checkpoint)
    known, _ = auditable(trace, checkpoint, parameters, wiring)
    asked = {recipe.stored for recipe in known if recipe.stored in sites}
    if not asked or stop > LONGEST:
        return {}
    run = Recomputation(trace.sequences[sequence], parameters)
    needed = _ancestors(known, asked)
    squares: dict[str, Floats] = {}
    for seed in range(DRAWS):
        moved = _Draw(run, stop, seed)
        for recipe in needed:
            moved.add(recipe)
        for site in asked & moved.errors.keys():
            error = moved.errors[site]
            squares[site] = squares.get(site, 0.0) + np.einsum("pc,pc->p", error, error)
    return {site: np.sqrt(square / DRAWS) for site, square in squares.items()}


def _ancestors(known: list[Recipe], sites: Collection[str]) -> list[Recipe]:
    """The recipes that these sites hang on, in order."""
    wanted, out = set(sites), []
    for recipe in reversed(known):
        if recipe.stored in wanted:
            wanted |= set(recipe.inputs)
            out.append(recipe)
    return out[::-1]


class _Draw:
    """One drawn error of every site, with what it inherits."""

    def __init__(self, run: Recomputation, stop: int, seed: int) -> None:
        self.run, self.stop = run, stop
        self.errors: dict[str, Floats] = {}  # by stored site, [positions, width]
        self._random = np.random.default_rng(seed)
        self._relative = np.zeros(stop)  # the largest so far, by position

    def add(self, recipe: Recipe) -> None:
        for window in self.run.windows(recipe, self.stop):
            inputs = self.run.inputs(recipe, window)
            result = self.run.result(recipe, window, inputs)
            base = result.values
            error = self._values(recipe, window, self._moved(recipe, window, inputs)) - base
            # Both sides make an error of their own, and share one along each row.
            error += np.sqrt(2.0 * result.variance) * self._random.standard_normal(base.shape)
            error += np.sqrt(2.0) * result.shared * base * self._random.standard_normal((len(base), 1))
            self._keep(recipe, window, error, base)

    def _keep(self, recipe: Recipe, window: Window, error: Floats, base: Floats) -> None:
        stored = self.errors.setdefault(recipe.stored, np.zeros((self.stop, base.shape[1])))
        stored[window.first : window.stop] = error
        if recipe.site != "logits":
            rows = slice(window.first, window.stop)
            found = np.linalg.norm(error, axis=1) / np.maximum(np.linalg.norm(base, axis=1), 1e-290)
            self._relative[rows] = np.maximum(self._relative[rows], found)

    def _values(self, recipe: Recipe, window: Window, inputs: list[Floats]) -> Floats:
        return recipe.operation.values(self.run.given(recipe, window, inputs))

    def _moved(self, recipe: Recipe, window: Window, inputs: list[Floats]) -> list[Floats]:
        out = []
        columns = recipe.columns or (None,) * len(inputs)
        for index, (name, values, part) in enumerate(zip(recipe.inputs, inputs, columns, strict=True)):
            first = window.first + (self.run.first_step if recipe.site == "logits" else 0)
            stop = window.stop + (self.run.first_step if recipe.site == "logits" else 0)
            first = 0 if recipe.operation.from_start(index) else first
            out.append(values + self._error_of(name, slice(first, stop), values, slice(*(part or (None,)))))
        return out

    def _error_of(self, name: str, rows: slice, values: Floats, columns: slice) -> Floats:
        if name in self.errors:
            return self.errors[name][rows, columns]
        # Nothing says how this one comes about: relative to its size it is off as much as the worst before it.
        size = np.linalg.norm(values, axis=1, keepdims=True) / np.sqrt(values.shape[1])
        return np.asarray(self._relative[rows, None] * size * self._random.standard_normal(values.shape))


def beyond_rounding(apart: Floats, added: Floats) -> float:
    """The largest length of a difference, [rows], over what rounding adds up to there, over its limit."""
    ratio = apart / np.maximum(added[: len(apart)], 1e-290)
    return float(ratio.max(initial=0.0)) / limit(len(apart))
