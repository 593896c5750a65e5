"""Phi: both blocks of a layer read one norm, and their outputs are added to the stream together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_families as tiny
from tracekit.auditing.audit import audit
from tracekit.auditing.operations.parallel_sum import parallel_sum
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.mistakes.culprits import explained_audit
from tracekit.report.words import sentence
from tracekit.verdict.coverage import audited_coverage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make("phi", tmp_path_factory.mktemp("phi"))


def said(model: Any, folder: Path, out: Path) -> dict[str, str | None]:
    """What the audit says of a run: culprits by site, each with its explanation."""
    trace, checkpoint = tiny.run(model, out), Checkpoint(folder)
    found = explained_audit(trace, checkpoint, audit(trace, checkpoint))
    assert dict(found.unknown) == {}
    return {one.site: None if one.explanation is None else sentence(one.explanation) for one in found.culprits}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_site_of_a_clean_run_is_audited(folder: Path, tmp_path: Path, dtype: str) -> None:
    trace = tiny.run(tiny.load(folder, dtype=dtype), tmp_path / "run.h5")
    found = audit(trace, Checkpoint(folder))
    assert [(one.site, one.own.over) for one in found.culprits] == []
    coverage = audited_coverage(found, trace)
    assert (coverage.sites.done, coverage.sites.of) == (23, 23) and coverage.parameters.done == coverage.parameters.of


def layer(model: Any, order: Callable[[Any, Any, Any], Any]) -> None:
    """Both layers with their own sum of the stream, attention's output and the feed-forward block's."""
    for each in model.model.layers:

        def forward(stream: Any, each: Any = each, **more: Any) -> Any:
            normed = each.input_layernorm(stream)
            attended, _ = each.self_attn(hidden_states=normed, **more)
            return order(stream, attended, each.mlp(normed))

        each.forward = forward


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_order_of_the_sum_is_harmless(folder: Path, tmp_path: Path, dtype: str) -> None:
    model = tiny.load(folder, dtype=dtype)
    layer(model, lambda stream, attended, fed: (stream + attended) + fed)
    assert said(model, folder, tmp_path / "run.h5") == {}


def test_a_branch_that_is_not_added_is_named(folder: Path, tmp_path: Path) -> None:
    model = tiny.load(folder)
    layer(model, lambda stream, attended, fed: stream + fed)
    expected = {f"model.layers.{at}": f"model.layers.{at}.self_attn.dense is not added" for at in (0, 1)}
    assert said(model, folder, tmp_path / "run.h5") == expected


def test_one_branch_that_is_off_by_a_thousandth_is_found(folder: Path, tmp_path: Path) -> None:
    model = tiny.load(folder)
    layer(model, lambda stream, attended, fed: stream + attended + fed * 1.001)
    assert list(said(model, folder, tmp_path / "run.h5")) == ["model.layers.0", "model.layers.1"]


def test_the_bound_is_that_of_float32_in_every_order() -> None:
    """Terms that cancel: the sum that is rounded first may be far larger than what is left."""
    random = np.random.default_rng(3)
    one = random.standard_normal((32, 64)).astype(np.float32)
    terms = one, (-one * 0.99).astype(np.float32), (one * 30).astype(np.float32)
    result = parallel_sum(*(term.astype(np.float64) for term in terms), "float32")
    for first, second, last in ((0, 1, 2), (1, 2, 0), (0, 2, 1)):
        made = (terms[first] + terms[second]) + terms[last]
        assert float(np.sqrt(np.mean(np.square(made - result.values) / result.variance))) < 1.2
