"""Every kind of rotary embedding that transformers has, and its mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit
from tracekit.auditing.families import family_of
from tracekit.report.words import sentence

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

from tests import tiny_families as tiny  # noqa: E402

DIVISORS = {
    "short_factor": [1.0 + 0.1 * place for place in range(4)],
    "long_factor": [2.0 + 0.5 * place for place in range(4)],
}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn, its scale": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 32, "mscale": 1.0,
        "mscale_all_dim": 0.7, "beta_fast": 16, "beta_slow": 2, "truncate": False,
    },
    "yarn, its factor": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.3,
    },
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 32, **DIVISORS},
    "longrope, its factor": {
        "rope_type": "longrope", "original_max_position_embeddings": 32, "factor": 8.0, **DIVISORS,
    },
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [10, 48])
def test_frequencies_are_those_of_transformers(kind: str, length: int) -> None:
    rope = {"rope_theta": 5e3, **KINDS[kind]}
    config = transformers.LlamaConfig(**tiny.SIZES | tiny.HEADS, rope_parameters=rope)
    want, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"), seq_len=length)
    declared = config.to_dict()
    family = family_of(declared)
    assert family is not None
    core = family.core(declared, 0, length, length)
    inverse, found = core.rotary.frequencies()
    np.testing.assert_allclose(inverse, want.double().numpy(), rtol=1e-6)
    assert found == pytest.approx(float(factor), rel=1e-12)


def audited(out: Path, folder: Path, prompt: int, change: Callable[[Any], None]) -> dict[str, str]:
    model = tiny.load(folder)
    change(model)
    ids = torch.tensor([[(7 * place * place + 3) % 150 + 3 for place in range(prompt)]])
    import tracekit_torch

    with tracekit_torch.record(model, out):
        model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    found = tracekit.audit(out, folder)
    assert not found.unknown, found.unknown
    return {
        culprit.site: "" if culprit.explanation is None else sentence(culprit.explanation) for culprit in found.culprits
    }


def no_factor(model: Any) -> None:
    model.model.rotary_emb.attention_scaling = 1.0


def other_divisors(model: Any) -> None:
    model.model.rotary_emb.rope_type = "default"  # nothing is updated with the length


CORES = [f"model.layers.{layer}.self_attn.o_proj:in" for layer in range(2)]


@pytest.mark.parametrize("prompt", [10, 40])
@pytest.mark.parametrize(
    ("family", "rope", "change", "said"),
    [
        ("phi3", "longrope", lambda model: None, None),
        ("phi3", "longrope", no_factor, "the factor 1.18322 of longrope on cos and sin is left out"),
        ("llama", "yarn", lambda model: None, None),
        ("llama", "yarn", no_factor, "the factor 1.13863 of yarn on cos and sin is left out"),
    ],
    ids=["longrope", "longrope without its factor", "yarn", "yarn without its factor"],
)
def test_the_factor_of_a_scaling(
    tmp_path: Path, prompt: int, family: str, rope: str, change: Callable[[Any], None], said: str | None
) -> None:
    settings = {"rope_theta": 1e4, **KINDS[rope]}
    more = {"original_max_position_embeddings": 32} if family == "phi3" else {}
    folder = tiny.make(family, tmp_path / "model", rope_parameters=settings, **more)
    found = audited(tmp_path / "run.h5", folder, prompt, change)
    assert found == ({} if said is None else dict.fromkeys(CORES, said))


def test_the_divisors_of_a_short_run_in_a_long_one(tmp_path: Path) -> None:
    settings = {"rope_theta": 1e4, **KINDS["longrope"]}
    folder = tiny.make("phi3", tmp_path / "model", rope_parameters=settings, original_max_position_embeddings=32)
    found = audited(tmp_path / "run.h5", folder, 40, other_divisors)
    assert found == dict.fromkeys(CORES, "the short factors of longrope instead of the long ones")
