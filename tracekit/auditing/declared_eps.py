"""The eps of norms that a `config.json` states: what a program's module holds is what it used, not what is right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tracekit.inspection.settings import same_setting
from tracekit.trace import Json

NORM_EPS = re.compile(r"(eps|epsilon|.*norm.*_(eps|epsilon)|.*_rms_(eps|epsilon))")
"""What transformers' configurations call the eps of a norm: `rms_norm_eps`, `layer_norm_eps`, `layer_norm_epsilon`,
`norm_eps`, `norm_epsilon`, `post_norm_eps`, `mixer_rms_eps`, `eps` and more."""
OF_ALL_LAYER_NORMS = {
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "cpmant", "electra", "ernie", "gpt_neox"),
            *("gpt_neox_japanese", "jais2", "megatron-bert", "persimmon", "phi", "reformer", "rembert", "roberta"),
            *("roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod"),
        ),
        "layer_norm_eps",
    ),
    **dict.fromkeys(("codegen", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "openai-gpt"), "layer_norm_epsilon"),
    "starcoder2": "norm_epsilon",
    "modernbert-decoder": "norm_eps",
    "phimoe": "rms_norm_eps",
}
"""By `model_type`, the setting that every torch LayerNorm of transformers' model takes. Not so of BioGPT, say: it
declares 1e-12 and has torch's 1e-5."""


def eps_of_layer_norms(declared: Json) -> float | None:
    """The eps of all torch LayerNorms of the model that a `config.json` declares; None where it does not say so."""
    eps = declared.get(OF_ALL_LAYER_NORMS.get(str(declared.get("model_type")), ""))
    return None if eps is None else float(eps)


def stated_eps(declared: Json) -> dict[str, float]:
    """Every eps of a norm that a `config.json` states, by its name; those of its parts, too."""
    return dict(_stated(declared))


def _stated(declared: Json) -> Iterator[tuple[str, float]]:
    for name, value in declared.items():
        if isinstance(value, dict):
            yield from _stated(value)
        elif NORM_EPS.fullmatch(name) and "batch" not in name and isinstance(value, int | float):
            yield name, float(value)


def states_another(declared: Json, eps: float) -> tuple[str, float] | None:
    """An eps that a `config.json` states, where it states some and `eps` is none of them: which of the two a module
    should have, only its program says. None elsewhere."""
    stated = stated_eps(declared)
    if not eps or any(same_setting(eps, value) for value in stated.values()):
        return None
    return next(iter(stated.items()), None)


@dataclass(frozen=True)
class EpsNotDeclared:
    """Norms that are recomputed with the eps that the program says they have, since no configuration states one."""

    first: str
    more: int


def not_declared(declared: Json, norms: Sequence[str]) -> list[EpsNotDeclared]:
    """That the sites `norms` are judged so, where a `config.json` states no eps."""
    return [EpsNotDeclared(norms[0], len(norms) - 1)] if declared and norms and not stated_eps(declared) else []
