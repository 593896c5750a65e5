"""Two runs without their checkpoint: how much of a site's difference its inputs' difference accounts for.

Parameters are estimated from the reference's recorded rows. In the directions that its inputs span, a weight W follows
from x and y = W x; in all others its gain is taken to be what it is in those. A norm's weight is the ratio of its
output to its normalised input. The model's numbers are those that the reference itself states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.audit import auditable, fits
from tracekit.auditing.evidence import Statistic
from tracekit.auditing.matrix import Matrix
from tracekit.auditing.operations.linear_layer import Linear
from tracekit.auditing.operations.norms import Norm
from tracekit.auditing.operations.operation import Effort
from tracekit.auditing.operations.unmeasured import Unmeasured
from tracekit.auditing.own_error import FALSE_ALARMS, common_width, root_mean_square, site_windows, spread_width
from tracekit.auditing.recipe import Recipe, recipes
from tracekit.auditing.recompute import Parameters, Recomputation, Window
from tracekit.auditing.rounding import Floats, Result, independent_errors
from tracekit.auditing.rounding import unit as unit_of
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.parameters import Parameters as StoredParameters
from tracekit.inspection.site_rows import logits_width
from tracekit.trace import LOGITS, Sequence, Trace

ROWS = 512
"""Most rows of a site that its parameters are estimated from."""
CLEAR = 10.0
"""Times the rounding of the outputs that a direction of the inputs must show through it to be counted as seen."""


class OwnDifferences:
    """Of two runs' difference at a site, what its inputs' difference does not account for.

    The site's recipe is taken at the inputs that each side recorded. What is left between the two sides is what they
    made of them themselves, and rounding bounds it; how much the earlier difference was amplified does not matter.
    """

    def __init__(self, reference: Trace, checkpoint: Checkpoint | None = None) -> None:
        """`checkpoint`: the parameters that both sides run with, which are estimated without it."""
        self._reference = reference
        self._checkpoint = checkpoint
        self._stated = Stated(reference)
        self._known: dict[str, Recipe] | None = None
        self._parameters: dict[int, Parameters] = {}

    def __call__(
        self, sides: tuple[Sequence, Sequence], names: Mapping[str, str], site: str, rows: tuple[int, int], tests: int
    ) -> Floats | None:
        """Length of each row [first, stop) of that rest over the longest that rounding makes it, [rows]; over `tests`
        rows it is above 1 with the probability `FALSE_ALARMS` where both sides compute right. None where no recipe
        covers the site. `names`: the candidate's names of stored sites."""
        first, stop = rows
        parameters = self._parameters_of(sides[0])
        if site == LOGITS and logits_width(sides[0]) != logits_width(sides[1]):
            return None  # of other numbers of tokens: no recipe is of both
        recipe = self._recipes(parameters).get(site)
        if recipe is None or any(name not in names for name in recipe.inputs):
            return None
        if not recipe.inputs and self._checkpoint is None:
            return None  # a table, of which some rows were seen
        theirs = replace(recipe, stored=names.get(site, site), inputs=tuple(names[name] for name in recipe.inputs))
        ours, other = (Recomputation(side, parameters) for side in sides)
        out = np.full(stop - first, np.nan)
        with np.errstate(all="ignore"):
            for window in site_windows(ours, recipe, 1 << 62):
                part = Window(max(first, window.first), min(stop, window.stop))
                if part.first >= part.stop or not covered(other, theirs, part):
                    continue
                out[part.first - first : part.stop - first] = _beyond(ours, recipe, other, theirs, part, tests)
        return None if np.isnan(out).all() else out

    def _parameters_of(self, sequence: Sequence) -> Parameters:
        if self._checkpoint is not None:
            return self._parameters.setdefault(0, Parameters(self._reference, self._checkpoint))
        if sequence.index not in self._parameters:
            self._parameters[sequence.index] = Estimated(self._reference, self._stated, sequence)
        return self._parameters[sequence.index]

    def _recipes(self, parameters: Parameters) -> dict[str, Recipe]:
        """Recipes by stored site."""
        if self._known is None and self._checkpoint is not None:
            followed, _ = auditable(self._reference, self._checkpoint, parameters, None)
            self._known = {one.stored: one for one in followed}
        if self._known is None:
            found = recipes(self._reference, self._stated).known
            usable = (
                recipe for recipe in found if not isinstance(recipe.operation, Unmeasured) and parameters.has(recipe)
            )
            self._known = {one.stored: one for one in usable if fits(self._reference, parameters, one)}
        return self._known


def covered(run: Recomputation, recipe: Recipe, window: Window) -> bool:
    """Whether a run recorded a recipe's site and inputs over these rows."""
    if recipe.stored != LOGITS and recipe.stored not in run.sequence.sites:
        return False
    return any(one.first <= window.first and window.stop <= one.stop for one in run.windows(recipe, 1 << 62))


def _beyond(
    ours: Recomputation, recipe: Recipe, other: Recomputation, theirs: Recipe, part: Window, tests: int
) -> Floats:
    inputs, moved = ours.inputs(recipe, part), other.inputs(theirs, part)
    dtype = max((ours.computed_in(recipe), other.computed_in(theirs)), key=unit_of)
    result = _result(ours, recipe, part, inputs, dtype, Effort.FULL)
    predicted = _result(ours, recipe, part, moved, dtype).values
    gap = (other.recorded(theirs.stored, part) - ours.recorded(recipe.stored, part)) - (predicted - result.values)
    level = FALSE_ALARMS / max(tests, 1)
    # Of either side. What a row shares is one error, however many values it moves.
    alone = 2.0 * np.max([option.variance for option in (result, *result.others)], axis=0) * result.excess**2
    shared = 2.0 * (result.shared**2 + result.bias**2) * np.square(result.values).sum(axis=1)
    for option in result.others:
        shared += np.square(option.values - result.values).sum(axis=1)
    parameters, total = ours.parameters, alone.sum(axis=1)
    if isinstance(recipe.operation, Linear) and isinstance(parameters, Estimated):
        apart = moved[0] - inputs[0]
        shared += parameters.unseen(recipe, apart) + parameters.leverage(recipe, apart) * total
    squared = np.square(alone).sum(axis=1)
    for option in (result, *result.others):
        if option.draws and option.drawn_rows is not None:
            independent = np.interp(np.arange(len(total)), option.drawn_rows, independent_errors(option.draws))
            squared = np.maximum(squared, np.square(total) / independent)
    freedom = np.square(total + shared) / (squared + np.square(shared) + 1e-290)
    width = max(spread_width(result).get(Statistic.ROW, 1.0), common_width(result, level).get(Statistic.ROW, 1.0))
    longest = np.array([root_mean_square(each, level) for each in freedom]) * max(width, 1.0)
    return np.asarray(np.linalg.norm(gap, axis=1) / (longest * np.sqrt(total + shared)))


def _result(
    run: Recomputation, recipe: Recipe, window: Window, inputs: list[Floats], dtype: str, effort: Effort = Effort.QUICK
) -> Result:
    return recipe.operation.result(replace(run.given(recipe, window, inputs, effort), dtype=dtype))


@dataclass(frozen=True)
class _Unseen:
    """A parameter of which only the trace's record is at hand."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bits(self) -> NDArray[Any]:
        """Never. Raises KeyError."""
        raise KeyError("the trace has no values")


class Stated(Checkpoint):
    """What a trace says of its checkpoint: the model's numbers, and its parameters' names and shapes; no values."""

    def __init__(self, trace: Trace) -> None:
        said = trace.config.get("model")
        held = {name: _Unseen(weight.dtype, weight.shape) for name, weight in trace.weights.items()}
        super().__init__(StoredParameters(str(trace.path), held, dict(said) if isinstance(said, dict) else {}))


class Estimated(Parameters):
    """Parameters that a sequence's recorded rows show."""

    def __init__(self, trace: Trace, stated: Stated, sequence: Sequence) -> None:
        super().__init__(trace, stated)
        self._run = Recomputation(sequence, self)

    def matrix(self, recipe: Recipe) -> Matrix:
        return self._seen(recipe).matrix

    def unseen(self, recipe: Recipe, moved: Floats) -> Floats:
        """Expected squared length [rows] of what a linear layer makes of the parts of `moved` [rows, inputs] in
        directions that no recorded row shows."""
        seen = self._seen(recipe)
        across = moved - (moved @ seen.directions.T) @ seen.directions
        return np.asarray(np.square(across).sum(axis=1) * seen.power)

    def leverage(self, recipe: Recipe, moved: Floats) -> Floats:
        """What rounding of the rows that a weight was estimated from does to the output of `moved` [rows, inputs], over
        the variance of such a row: [rows]."""
        seen = self._seen(recipe)
        return np.asarray(np.square((moved @ seen.directions.T) / seen.sizes).sum(axis=1))

    def _seen(self, recipe: Recipe) -> Seen:
        key = (recipe.site, recipe.stored)
        if getattr(self._last, "key", None) != key:
            unit = unit_of(self._run.computed_in(recipe))
            self._last.matrix = estimated_matrix(*self._rows(recipe), unit, "bias" in recipe.parameters)
            self._last.key = key
        found: Seen = self._last.matrix
        return found

    def vector(self, recipe: Recipe, role: str) -> Floats | None:
        """A norm's weight and bias, by column."""
        if role not in recipe.parameters:
            return None
        x, y = self._rows(recipe)
        name = self.find(recipe.parameters["weight"])
        width = y.shape[1] if name is None else self.checkpoint.shape(name)[0]  # of a head's norm, a head
        x, y = x.reshape(-1, width), y.reshape(-1, width)
        if isinstance(recipe.operation, Norm):
            plain = replace(recipe, operation=replace(recipe.operation, plus_one=False), parameters={})
            x = self._run.result(plain, Window(0, len(x)), [x]).values
        weight, bias = _line(x, y, "bias" in recipe.parameters)
        plus_one = isinstance(recipe.operation, Norm) and recipe.operation.plus_one
        return weight - float(plus_one) if role == "weight" else bias

    def _rows(self, recipe: Recipe) -> tuple[Floats, Floats]:
        """Recorded inputs and outputs of a module, [rows, width] each."""
        parts = self._run.windows(recipe, 1 << 62)
        x = np.concatenate([self._run.inputs(recipe, window)[0] for window in parts])[-ROWS:]
        y = np.concatenate([self._run.recorded(recipe.stored, window) for window in parts])[-ROWS:]
        good = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        return x[good], y[good]


def _line(x: Floats, y: Floats, shifted: bool) -> tuple[Floats, Floats]:
    """Slope and offset of y over x in each column, by least squares."""
    mean = (x.mean(axis=0), y.mean(axis=0)) if shifted and len(x) > 1 else (np.zeros(x.shape[1]),) * 2
    around = x - mean[0]
    slope = (around * (y - mean[1])).sum(axis=0) / np.maximum(np.square(around).sum(axis=0), 1e-290)
    return slope, mean[1] - slope * mean[0]


@dataclass(frozen=True)
class Seen:
    """What recorded rows show of a linear layer."""

    matrix: Matrix  # 0 in the directions that no row shows
    directions: Floats  # [seen, inputs], orthonormal
    sizes: Floats  # [seen], root of the sum of squares of the rows along each
    power: float  # mean squared length of the output of a unit input, over the directions seen


def estimated_matrix(x: Floats, y: Floats, unit: float, shifted: bool = False) -> Seen:
    """The weight [outputs, inputs] and bias that give rows y [rows, outputs] of rows x [rows, inputs], rounded by
    `unit`, where x shows it. In other directions its gain is best guessed by that in these."""
    centred = shifted and len(x) > 1
    offset = (x.mean(axis=0), y.mean(axis=0)) if centred else (np.zeros(x.shape[1]), np.zeros(y.shape[1]))
    left, sizes, right = np.linalg.svd(x - offset[0], full_matrices=False)
    clear = sizes > CLEAR * unit * float(np.linalg.norm(sizes)) / np.sqrt(max(len(x), 1))
    seen = (left[:, clear].T @ (y - offset[1])) / np.maximum(sizes[clear, None], 1e-290)
    weight = seen.T @ right[clear]
    bias = offset[1] - weight @ offset[0] if shifted else None
    return Seen(Matrix(weight, bias), right[clear], sizes[clear], float(np.square(seen).sum() / max(len(seen), 1)))
