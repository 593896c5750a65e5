"""A parameter of a sibling of the same shape: a loader mixed up two names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from tracekit.auditing.operations import Result
from tracekit.auditing.recipe import Recipe
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, plainly

SIBLINGS = {
    "q_proj": ("k_proj", "v_proj", "o_proj"),
    "k_proj": ("v_proj", "q_proj"),
    "v_proj": ("k_proj", "q_proj"),
    "o_proj": ("q_proj",),
    "gate_proj": ("up_proj",),
    "up_proj": ("gate_proj",),
    "input_layernorm": ("post_attention_layernorm",),
    "post_attention_layernorm": ("input_layernorm",),
}


def _siblings(case: Case) -> Iterator[Hypothesis]:
    for own, others in SIBLINGS.items():
        for other in others:
            names = {role: _exchanged(name, own, other) for role, name in case.recipe.parameters.items()}
            recipe = replace(case.recipe, parameters=names)
            if names == dict(case.recipe.parameters) or not case.run.parameters.has(recipe):
                continue
            yield plainly(_with, case, recipe, found=names["weight"].removesuffix(".weight"))


def _exchanged(name: str, own: str, other: str) -> str:
    return re.sub(rf"(^|\.){own}(\.|$)", rf"\g<1>{other}\g<2>", name)


def _with(case: Case, recipe: Recipe) -> Result | None:
    """The site computed with another recipe's parameters, where shapes allow."""
    checkpoint = case.run.parameters.checkpoint
    found, own = checkpoint.find(recipe.parameters["weight"]), checkpoint.find(case.recipe.parameters["weight"])
    if found is None or own is None or checkpoint.shape(found) != checkpoint.shape(own):
        return None
    return case.run.result(recipe, case.window, case.inputs)


ANOTHER_WEIGHT = SiteMistake(
    "another_weight",
    "computed with the weight of {found}",
    main="found",
    at=("linear", "rms_norm", "layer_norm"),
    hypotheses=_siblings,
)
