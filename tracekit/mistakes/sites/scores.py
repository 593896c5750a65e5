"""Scores and their softmax: scale, soft cap, sink; how query heads map to the heads of keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tracekit.mistakes.core import ATTENTION, changed, core_of, fitted
from tracekit.mistakes.fitting import logarithmic
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis


def _uncapped(case: Case) -> Iterator[Hypothesis]:
    cap = core_of(case).softcap
    if cap is not None:
        yield changed(case, {"stated": cap}, softcap=None)


def _modulo(case: Case) -> Iterator[Hypothesis]:
    core = core_of(case)
    if 1 < core.kv_heads < core.heads:
        yield changed(case, head_map="modulo")


def _of_hidden_size(case: Case) -> Iterator[Hypothesis]:
    core = core_of(case)
    yield changed(case, scale=1.0 / float(core.heads * core.head_dim) ** 0.5)


def _scale(case: Case) -> Iterator[Hypothesis]:
    core = core_of(case)
    grid = logarithmic(0.05, 20.0, 61)
    yield fitted(case, lambda factor: replace(core, scale=core.scale * factor), grid, "factor")


def _capped(case: Case) -> Iterator[Hypothesis]:
    core = core_of(case)
    yield fitted(case, lambda cap: replace(core, softcap=cap), logarithmic(1.0, 1000.0, 40), "cap")


SINK = SiteMistake(
    "sink",
    "every softmax has one more entry of score 0",
    at=ATTENTION,
    hypotheses=lambda case: [changed(case, sink_from=0)],
)
SOFT_CAP_LEFT_OUT = SiteMistake(
    "soft_cap_of_scores_left_out", "the soft cap of {stated:g} is left out", at=ATTENTION, hypotheses=_uncapped
)
HEAD_MAP = SiteMistake(
    "kv_head_map",
    "query heads map to KV heads by h % n instead of h / group",
    at=ATTENTION,
    hypotheses=_modulo,
)
SCALE_LEFT_OUT = SiteMistake(
    "scale_left_out",
    "softmax scale left out",
    at=ATTENTION,
    hypotheses=lambda case: [changed(case, scale=1.0)],
)
SCALE_OF_HIDDEN_SIZE = SiteMistake(
    "scale_of_the_hidden_size", "softmax scale 1/sqrt(hidden size)", at=ATTENTION, hypotheses=_of_hidden_size
)
SCALE_SQUARED = SiteMistake(
    "scale_squared",
    "softmax scale applied twice",
    at=ATTENTION,
    hypotheses=lambda case: [changed(case, scale=core_of(case).scale ** 2)],
)
SCALE = SiteMistake(
    "attention_scale",
    "softmax scale times {factor:.6g}",
    main="factor",
    at=ATTENTION,
    complexity=Complexity.NUMBER,
    hypotheses=_scale,
)
SOFT_CAP = SiteMistake(
    "score_soft_cap",
    "a soft cap of {cap:.6g} is applied to the scores",
    main="cap",
    at=ATTENTION,
    complexity=Complexity.NUMBER,
    hypotheses=_capped,
)
