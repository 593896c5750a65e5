"""The parameters of the same module of another layer: a loader exchanged two of them, or counts layers from 1."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tracekit.auditing.operations import Result
from tracekit.auditing.recipe import Recipe
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, plainly

LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
"""The first number in a parameter's name."""
MOST_LAYERS = 256


def _layers(case: Case) -> Iterator[Hypothesis]:
    own = LAYER.search(case.recipe.parameters.get("weight", ""))
    if own is None:
        return
    for layer in sorted(set(range(MOST_LAYERS)) - {int(own[0])}, key=lambda other: abs(other - int(own[0]))):
        names = {role: LAYER.sub(str(layer), name, count=1) for role, name in case.recipe.parameters.items()}
        recipe = replace(case.recipe, parameters=names)
        if case.run.parameters.has(recipe):
            yield plainly(_with, case, recipe, layer=layer, found=names["weight"].removesuffix(".weight"))


def _with(case: Case, recipe: Recipe) -> Result | None:
    """The site computed with the other layer's parameters; None where shapes are others, or they hold the same."""
    checkpoint = case.run.parameters.checkpoint
    for role, name in recipe.parameters.items():
        found, own = checkpoint.find(name), checkpoint.find(case.recipe.parameters[role])
        if found is None or own is None or checkpoint.shape(found) != checkpoint.shape(own):
            return None
    made: Result = case.run.result(recipe, case.window, case.inputs)
    return None if np.array_equal(made.values, case.right.values) else made


ANOTHER_LAYER = SiteMistake(
    "another_layers_weight",
    "computed with the weight of layer {layer} ({found})",
    main="layer",
    at=("linear", "rms_norm", "layer_norm"),
    complexity=Complexity.ENTRY,
    hypotheses=_layers,
)
