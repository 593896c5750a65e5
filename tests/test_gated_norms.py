"""A norm that is given a gate beside its input, where another program gives it their product: both are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tracekit_torch
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, Mamba2Config

import tracekit
from tracekit.auditing.not_audited import Lacks

Cut = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
FIRST, FIRST_INPUT = "backbone.layers.0.mixer.norm", "backbone.layers.0.mixer.norm:in"


def product(norm: Any, value: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """The gate outside of the module, as candle's Mamba2 has it."""
    return norm(value * silu(gate))


def without_gate(norm: Any, value: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return norm(value)


def scaled(norm: Any, value: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """What goes in is wrong, what comes out is not: a norm takes no notice of its input's scale."""
    return norm(1.5 * value, gate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    config = Mamba2Config(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=16,
        n_groups=1,
        state_size=8,
        chunk_size=8,
    )
    path = tmp_path_factory.mktemp("mamba2")
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def recorded(folder: Path, out: Path, cut: Cut | None = None) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    for layer in model.backbone.layers if cut is not None else ():
        # Found before the module of that name, which stays the module.
        layer.mixer.__dict__["norm"] = lambda value, gate, norm=layer.mixer.norm: cut(norm, value, gate)
    with tracekit_torch.record(model, out):
        model.generate(torch.tensor([[5, 9, 11, 30, 2, 17]]), max_new_tokens=4, do_sample=False)
    return out


def test_a_gate_outside_of_the_norm_is_harmless(folder: Path, tmp_path: Path) -> None:
    reference, candidate = recorded(folder, tmp_path / "a.h5"), recorded(folder, tmp_path / "b.h5", product)
    verdict = tracekit.diff(reference, candidate)
    assert verdict.exit_code == 0, verdict.finding
    assert FIRST_INPUT in verdict.unmatched.reference and FIRST_INPUT in verdict.unmatched.candidate
    found = tracekit.audit(candidate, folder, by=tracekit_torch.by_reference(folder))
    assert not found.culprits
    assert found.unknown[FIRST_INPUT].lacks is Lacks.OWN_INPUTS


@pytest.mark.parametrize(("cut", "site"), [(without_gate, FIRST), (scaled, FIRST_INPUT)])
def test_a_fault_beside_the_gate_is_named(cut: Cut, site: str, folder: Path, tmp_path: Path) -> None:
    reference, candidate = recorded(folder, tmp_path / "a.h5"), recorded(folder, tmp_path / "b.h5", cut)
    verdict = tracekit.diff(reference, candidate)
    assert verdict.exit_code == 1
    assert verdict.site == site
    found = tracekit.audit(candidate, folder, by=tracekit_torch.by_reference(folder))
    assert site in [culprit.site for culprit in found.culprits]
