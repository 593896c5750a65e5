"""What rounding costs, layer by layer: that of the weights in a file, that of the arithmetic, and what an engine adds.

Each site is computed again from its recorded input, so nothing is inherited: with the weights of the original
checkpoint, with those of the file that ran, and with these in the arithmetic that the engine states. The distances from
one to the next are what the file, the arithmetic and the engine make of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from tracekit.auditing.audit import auditable
from tracekit.auditing.operations import Attention, Floats
from tracekit.auditing.operations.linear_layer import Linear
from tracekit.auditing.own_error import site_windows
from tracekit.auditing.recipe import Recipe
from tracekit.auditing.recompute import Parameters, Recomputation, Window
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.trace import Trace

LAYER = re.compile(r"^.*?\blayers\.\d+(?=\.|$)|^.*?\bh\.\d+(?=\.|$)")


@dataclass(frozen=True)
class LayerCost:
    """Relative errors (root mean square over sites) of one layer's sites, or of one module outside of the layers."""

    layer: str
    file: float | None
    """The file's weights against the original ones, both in float64, over the products; None where it has none."""
    arithmetic: float
    """The stated rounding of inputs and cache against float64, over the sites that it is stated of."""
    engine: float
    """What was recorded against the file's weights in the stated arithmetic, over all sites."""
    worst: str
    """The site that the engine is off most at."""


@dataclass
class _Collected:
    """Relative errors of a layer's sites."""

    file: list[float] = field(default_factory=list)
    arithmetic: list[float] = field(default_factory=list)
    engine: dict[str, float] = field(default_factory=dict)


@np.errstate(all="ignore")
def layer_costs(trace: Trace, held: Checkpoint, original: Checkpoint) -> tuple[LayerCost, ...]:
    """Of a trace that ran with `held`, which was made of `original`; in the order of the computation. Empty where no
    site was recorded with its inputs."""
    parameters, before = Parameters(trace, held), Parameters(trace, original)
    known, _ = auditable(trace, held, parameters, None)
    layers: dict[str, _Collected] = {}
    for recipe in known:
        if recipe.operation.reads_tokens:
            continue
        match = LAYER.match(recipe.site)
        into = layers.setdefault(match.group() if match else recipe.site, _Collected())
        sides: list[list[tuple[float, float]]] = [[], [], []]
        for sequence in trace.sequences:
            _measure(Recomputation(sequence, parameters), Recomputation(sequence, before), recipe, sides)
        file, arithmetic, engine = map(_relative, sides)
        into.file += [] if file is None else [file]
        into.arithmetic += [] if arithmetic is None else [arithmetic]
        if engine is not None:
            into.engine[recipe.site] = engine
    return tuple(_cost(name, each) for name, each in layers.items() if each.engine)


def _cost(name: str, found: _Collected) -> LayerCost:
    file = _together(found.file) if found.file else None
    worst = max(found.engine, key=lambda site: found.engine[site])
    return LayerCost(name, file, _together(found.arithmetic), _together(found.engine.values()), worst)


def _measure(run: Recomputation, before: Recomputation, recipe: Recipe, sides: list[list[tuple[float, float]]]) -> None:
    """The squared distances of a site's rows, and the squared size of what they are relative to."""
    plain = _plain(recipe)
    for window in site_windows(run, recipe, 1 << 62):
        stated = _values(run, recipe, window)
        recorded = run.recorded(recipe.stored, window)
        exact = stated if plain == recipe else _values(run, plain, window)
        if isinstance(recipe.operation, Linear) and before.parameters.has(recipe):
            sides[0].append(_apart(exact, _values(before, plain, window)))
        if plain != recipe:
            sides[1].append(_apart(stated, exact))
        sides[2].append(_apart(recorded, stated))


def _plain(recipe: Recipe) -> Recipe:
    """The recipe without the arithmetic that the engine states."""
    operation = recipe.operation
    if isinstance(operation, Linear):
        return replace(recipe, operation=replace(operation, inputs_as=None, minima=False))
    if isinstance(operation, Attention):
        return replace(recipe, operation=replace(operation, cache=None, added="float32"))
    return recipe


def _values(run: Recomputation, recipe: Recipe, window: Window) -> Floats:
    inputs = run.inputs(recipe, window)
    return recipe.operation.values(run.given(recipe, window, inputs))


def _apart(values: Floats, of: Floats) -> tuple[float, float]:
    good = np.isfinite(values).all(axis=1) & np.isfinite(of).all(axis=1)
    return float(np.square(values[good] - of[good]).sum()), float(np.square(of[good]).sum())


def _relative(parts: list[tuple[float, float]]) -> float | None:
    """The distance of all parts over their size; None where there is none."""
    apart, size = (sum(column) for column in zip(*parts, strict=True)) if parts else (0.0, 0.0)
    return float(np.sqrt(apart / size)) if size else None


def _together(errors: Iterable[float]) -> float:
    """Root mean square; 0 of none."""
    squares = np.square(np.array(list(errors)))
    return float(np.sqrt(squares.mean())) if squares.size else 0.0
