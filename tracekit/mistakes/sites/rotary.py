"""Rotary embedding: its pairs, direction, share, base and scaling, and what is rotated at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tracekit.auditing.operations import Core, Rotary
from tracekit.mistakes.core import ATTENTION, changed, core_of, fitted
from tracekit.mistakes.explanation import Value
from tracekit.mistakes.fitting import logarithmic
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis

COMMON_THETAS = (1e2, 1e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1.5e5, 2.5e5, 5e5, 1e6, 2e6, 5e6, 1e7, 1e8)
SHARES = (0.25, 0.5, 0.75, 1.0)


def _where_rotated(case: Case, **changes: Any) -> Iterator[Hypothesis]:
    if core_of(case).rotate_queries:
        yield changed(case, **changes)


def _added(case: Case) -> Iterator[Hypothesis]:
    if not core_of(case).rotate_queries:
        yield changed(case, rotate_queries=True, rotate_keys=True)


def _early(case: Case) -> Iterator[Hypothesis]:
    return _where_rotated(case, prompt=case.prompt, prompt_keys_unrotated=True)


def _unscaled(case: Case) -> Iterator[Hypothesis]:
    core = core_of(case)
    if core.rotate_queries and core.rotary.scaling:
        kind = dict(core.rotary.scaling).get("rope_type", "scaling")
        yield changed(case, {"scaling": str(kind)}, rotary=replace(core.rotary, scaling=()))


def _partly(case: Case) -> Iterator[Hypothesis]:
    core = core_of(case)
    by_dimension = core.rotary.kind in ("longrope", "proportional")  # of which each has its own number
    for share in SHARES if core.rotate_queries and not by_dimension else ():
        width = int(core.head_dim * share) // 2 * 2
        if width and width != core.rotary.width:
            values = {"found": width, "stated": core.rotary.width, "head_dim": core.head_dim}
            yield changed(case, values, rotary=replace(core.rotary, width=width))


def _theta(case: Case) -> Iterator[Hypothesis]:
    core = core_of(case)

    def change(theta: float) -> Core:
        return replace(core, rotary=replace(core.rotary, theta=theta))

    if core.rotate_queries:
        grid = sorted({*COMMON_THETAS, *logarithmic(50.0, 2e8, 60)})
        yield fitted(case, change, grid, "found", stated=core.rotary.theta)


def _divided(case: Case) -> Iterator[Hypothesis]:
    core = core_of(case)

    def change(factor: float) -> Core:
        scaling = (("factor", factor), ("rope_type", "linear"))
        return replace(core, rotary=replace(core.rotary, scaling=scaling))

    if core.rotate_queries:
        yield fitted(case, change, logarithmic(0.1, 64.0, 60), "factor")


def _with_factor(rotary: Rotary, factor: float) -> Rotary:
    """The rotary embedding with another factor on cos and sin."""
    return replace(rotary, scaling=tuple(sorted({**dict(rotary.scaling), "attention_factor": factor}.items())))


def _without_factor(case: Case) -> Iterator[Hypothesis]:
    core = core_of(case)
    stated = core.rotary.frequencies()[1]
    if core.rotate_queries and stated != 1.0:
        values: dict[str, Value] = {"scaling": core.rotary.kind, "stated": stated}
        yield changed(case, values, rotary=_with_factor(core.rotary, 1.0))


def _factor(case: Case) -> Iterator[Hypothesis]:
    core = core_of(case)

    def change(factor: float) -> Core:
        return replace(core, rotary=_with_factor(core.rotary, factor))

    if core.rotate_queries and core.rotary.kind in ("yarn", "longrope"):
        yield fitted(case, change, logarithmic(0.25, 4.0, 60), "found", stated=core.rotary.frequencies()[1])


def _other_divisors(case: Case) -> Iterator[Hypothesis]:
    rotary = core_of(case).rotary
    if core_of(case).rotate_queries and rotary.kind == "longrope":
        found, stated = ("short", "long") if rotary.long else ("long", "short")
        yield changed(case, {"found": found, "stated": stated}, rotary=replace(rotary, long=not rotary.long))


INTERLEAVED = SiteMistake(
    "interleaved_rotary",
    "rotary of interleaved pairs instead of halves",
    at=ATTENTION,
    hypotheses=lambda case: [changed(case, interleaved=True)],
)
BACKWARDS = SiteMistake(
    "rotary_backwards",
    "queries are rotated in the wrong direction",
    at=ATTENTION,
    hypotheses=lambda case: [changed(case, backwards=True)],
)
ADDED = SiteMistake(
    "rotary",
    "queries and keys are rotated in a layer that has no rotary embedding",
    at=ATTENTION,
    hypotheses=_added,
)
NONE = SiteMistake(
    "no_rotary",
    "queries and keys are not rotated",
    at=ATTENTION,
    hypotheses=lambda case: _where_rotated(case, rotate_queries=False, rotate_keys=False),
)
KEYS_NOT = SiteMistake(
    "keys_not_rotated",
    "keys are not rotated",
    at=ATTENTION,
    hypotheses=lambda case: _where_rotated(case, rotate_keys=False),
)
QUERIES_NOT = SiteMistake(
    "queries_not_rotated",
    "queries are not rotated",
    at=ATTENTION,
    hypotheses=lambda case: _where_rotated(case, rotate_queries=False),
)
PROMPT_KEYS_NOT = SiteMistake(
    "prompt_keys_not_rotated", "the prompt's queries attend to keys before rotation", at=ATTENTION, hypotheses=_early
)
SCALING_LEFT_OUT = SiteMistake(
    "rotary_scaling_left_out", "rotary scaling {scaling} is left out", at=ATTENTION, hypotheses=_unscaled
)
FACTOR_LEFT_OUT = SiteMistake(
    "rotary_factor_left_out",
    "the factor {stated:.6g} of {scaling} on cos and sin is left out",
    at=ATTENTION,
    hypotheses=_without_factor,
)
FACTOR = SiteMistake(
    "rotary_factor",
    "cos and sin multiplied by {found:.6g} instead of {stated:.6g}",
    main="found",
    at=ATTENTION,
    complexity=Complexity.NUMBER,
    hypotheses=_factor,
)
OTHER_DIVISORS = SiteMistake(
    "rotary_other_divisors",
    "the {found} factors of longrope instead of the {stated} ones",
    at=ATTENTION,
    hypotheses=_other_divisors,
)
PARTIAL = SiteMistake(
    "partial_rotary",
    "{found} of {head_dim} dimensions rotated instead of {stated}",
    main="found",
    at=ATTENTION,
    hypotheses=_partly,
)
THETA = SiteMistake(
    "rotary_theta",
    "rotary theta {found:.9g} instead of {stated:.9g}",
    main="found",
    at=ATTENTION,
    complexity=Complexity.NUMBER,
    hypotheses=_theta,
)
DIVIDED = SiteMistake(
    "rotary_positions_divided",
    "rotary positions divided by {factor:.6g}",
    main="factor",
    at=ATTENTION,
    complexity=Complexity.NUMBER,
    hypotheses=_divided,
)
