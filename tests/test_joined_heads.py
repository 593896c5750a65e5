"""Heads that are joined without transposing are named; heads in another order, and a clean run, are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_families as tiny
from tracekit.auditing.audit import audit
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.mistakes.culprits import ExplainedAudit, explained_audit

llama = pytest.importorskip("transformers.models.llama.modeling_llama")
CORE = "model.layers.{}.self_attn.o_proj:in"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make("llama", tmp_path_factory.mktemp("llama"))


def audited(folder: Path, out: Path, dtype: str = "float32") -> ExplainedAudit:
    trace, checkpoint = tiny.run(tiny.load(folder, dtype=dtype), out), Checkpoint(folder)
    return explained_audit(trace, checkpoint, audit(trace, checkpoint))


def ids(found: ExplainedAudit) -> dict[str, str | None]:
    return {each.site: each.explanation.mistake.id if each.explanation else None for each in found.culprits}


def joined_by(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """`change` acts on the core's output, [sequences, positions, heads, head_dim], before its heads are joined."""
    right = llama.eager_attention_forward

    def core(*args: Any, **more: Any) -> Any:
        values, weights = right(*args, **more)
        return change(values), weights

    monkeypatch.setattr(llama, "eager_attention_forward", core)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_joined_without_transposing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    joined_by(monkeypatch, lambda values: values.transpose(1, 2).contiguous())
    found = audited(folder, tmp_path / "run.h5", dtype)
    assert ids(found) == {CORE.format(layer): "heads_joined_without_transposing" for layer in (0, 1)}


def test_heads_in_another_order_are_no_such_mistake(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined_by(monkeypatch, lambda values: values.roll(1, dims=2))
    assert ids(audited(folder, tmp_path / "run.h5")) == {CORE.format(layer): "columns_permuted" for layer in (0, 1)}


def test_a_clean_run_is_within_its_bounds(folder: Path, tmp_path: Path) -> None:
    assert ids(audited(folder, tmp_path / "run.h5")) == {}
