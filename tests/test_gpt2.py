"""GPT-2: learned positions, LayerNorms, a fused projection stored as [inputs, outputs], and an MLP without a gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

import tracekit
from tests import tiny_families as tiny
from tracekit.auditing.audit import audit
from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.auditing.operations import as_stored
from tracekit.auditing.operations.activation import activated
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.mistakes.culprits import explained_audit
from tracekit.report.words import sentence
from tracekit.verdict.coverage import audited_coverage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The order of torch's sums depends on the number of threads: the same runs on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def said(model: Any, folder: Path, out: Path) -> dict[str, str | None]:
    """What the audit says of a run: culprits by site, each with its explanation."""
    trace, checkpoint = tiny.run(model, out), Checkpoint(folder)
    found = explained_audit(trace, checkpoint, audit(trace, checkpoint))
    assert dict(found.unknown) == {}
    return {one.site: None if one.explanation is None else sentence(one.explanation) for one in found.culprits}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_site_of_a_clean_run_is_audited(folder: Path, tmp_path: Path, dtype: str, attention: str) -> None:
    trace = tiny.run(tiny.load(folder, attention, dtype), tmp_path / "run.h5")
    found = audit(trace, Checkpoint(folder))
    assert [(one.site, one.own.over) for one in found.culprits] == []
    coverage = audited_coverage(found, trace)
    assert (coverage.sites.done, coverage.sites.of) == (25, 25) and coverage.parameters.done == coverage.parameters.of


def fused_gelu(model: Any) -> None:
    """The same activation in one kernel, which rounds once."""
    for block in model.transformer.h:
        block.mlp.act = torch.nn.GELU(approximate="tanh")


def linear_layers(model: Any) -> None:
    """A port's `Linear` where GPT-2 has `Conv1D`."""
    for block in model.transformer.h:
        for owner, name in ((block.attn, "c_attn"), (block.attn, "c_proj"), (block.mlp, "c_fc"), (block.mlp, "c_proj")):
            conv = getattr(owner, name)
            forward = conv.forward
            conv.forward = lambda x, conv=conv: torch.nn.functional.linear(x, conv.weight.t(), conv.bias)
            assert forward is not conv.forward


@pytest.mark.parametrize("rewrite", [fused_gelu, linear_layers])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rewrite_is_harmless(folder: Path, tmp_path: Path, rewrite: Callable[[Any], None], dtype: str) -> None:
    model = tiny.load(folder, dtype=dtype)
    rewrite(model)
    assert said(model, folder, tmp_path / "run.h5") == {}


def exact_gelu(model: Any) -> None:
    for block in model.transformer.h:
        block.mlp.act = torch.nn.GELU()


def shifted_positions(model: Any) -> None:
    """As OPT's table is read."""
    table = model.transformer.wpe
    forward = table.forward
    table.forward = lambda positions: forward(positions + 2)


def unscaled(model: Any) -> None:
    for block in model.transformer.h:
        block.attn.scaling = 1.0


CORES = {f"transformer.h.{layer}.attn.c_proj:in": "softmax scale left out" for layer in (0, 1)}
ACTIVATIONS = {f"transformer.h.{layer}.mlp.c_proj:in": "gelu instead of gelu_new" for layer in (0, 1)}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (exact_gelu, ACTIVATIONS),
        (shifted_positions, {"transformer.wpe": "positions are looked up +2 rows from their own"}),
        (unscaled, CORES),
    ],
)
def test_a_fault_is_named(folder: Path, tmp_path: Path, fault: Callable[[Any], None], expected: dict[str, str]) -> None:
    model = tiny.load(folder)
    fault(model)
    assert said(model, folder, tmp_path / "run.h5") == expected


def test_positions_that_are_not_added(folder: Path, tmp_path: Path) -> None:
    reference = tiny.run(tiny.load(folder), tmp_path / "reference.h5")
    model = tiny.load(folder)
    model.transformer.h[0].register_forward_pre_hook(
        lambda _, given: (model.transformer.wte(model.transformer.seen), *given[1:])
    )
    model.transformer.wte.register_forward_pre_hook(lambda _, given: setattr(model.transformer, "seen", given[0]))
    candidate = tiny.run(model, tmp_path / "candidate.h5")
    verdict = tracekit.diff(reference, candidate, weights=str(folder))
    assert verdict.site == "transformer.h.0.ln_1:in"
    assert verdict.explanation is not None and verdict.explanation.mistake.id == "branch_left_out"


def test_a_run_beyond_the_table_of_positions(folder: Path, tmp_path: Path) -> None:
    """Positions without a row are not looked up: the site is not audited, and that is said."""
    trace = tiny.run(tiny.load(folder), tmp_path / "run.h5")
    found = audit(trace, shorter(Checkpoint(folder)))
    assert found.unknown["transformer.wpe"] == NotAudited(Lacks.ROWS, ("19", "12"))


def shorter(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the first twelve rows of its positions."""
    name = "transformer.wpe.weight"
    entry = checkpoint.file._tensors[name]
    checkpoint.file._tensors[name] = replace(entry, shape=(12, entry.shape[1]))
    return checkpoint


@pytest.mark.parametrize("name", ["gelu_new", "gelu", "relu", "silu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bound_of_an_activation_is_that_of_torch(name: str, dtype: str) -> None:
    """Within it, and no more than a hundred times below it where float32 rounds at all."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(5)).mul(3).to(getattr(torch, dtype))
    made = ACT2FN[name](x).double().numpy()
    result = activated(x.double().numpy(), name, dtype).closest(made)
    sizes = [
        float(np.sqrt(np.mean(np.square(made - values) / result.variance)))
        for values in (result.values, *result.rounded)
    ]
    assert min(sizes) < 1.0
    assert name == "relu" or sizes[0] > 0.01
    assert dtype != "float32" or np.array_equal(as_stored(made, dtype), made)
