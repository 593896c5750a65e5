"""The cause `weights` says how a parameter came from the reference's, where both checkpoints are at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tracekit
from tests.spoken import evidence
from tests.tiny_families import load, make, run
from tracekit.checkpoints.relations import Arrangement, Axis, LowRank, Reordered, Transposed
from tracekit.verdict.evidence import ParameterRelated

NAME = "model.layers.1.self_attn.o_proj.weight"
Change = Callable[[np.ndarray], np.ndarray]


def update(weight: np.ndarray) -> np.ndarray:
    drawn = np.random.default_rng(0)
    low = drawn.standard_normal((len(weight), 2)) @ drawn.standard_normal((2, weight.shape[1]))
    return (weight + 0.01 * low).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (update, LowRank),
        (lambda weight: weight.T.copy(), Transposed),
        (lambda weight: np.roll(weight, 8, axis=1), Reordered(Axis.COLUMNS, 32, 32, Arrangement.BLOCKS, 8)),
        (lambda weight: weight + np.float32(0.01) * weight**2, None),
    ],
)
def test_the_relation_of_two_checkpoints_is_said(tmp_path: Path, change: Change, expected: object) -> None:
    ours = make("llama", tmp_path / "ours")
    theirs = make("llama", tmp_path / "theirs")
    tensors = load_file(theirs / "model.safetensors")
    tensors[NAME] = change(tensors[NAME])
    save_file(tensors, theirs / "model.safetensors", metadata={"format": "pt"})
    verdict = tracekit.diff(run(load(ours), tmp_path / "ours.h5"), run(load(theirs), tmp_path / "theirs.h5"))
    assert verdict.cause == "weights" and NAME in evidence(verdict)[0]
    found = [each.relation for each in verdict.evidence if isinstance(each, ParameterRelated)]
    if expected is None:
        assert not found
    elif isinstance(expected, type):
        assert isinstance(found[0], expected)
        assert not isinstance(found[0], LowRank) or found[0].rank == 2
    else:
        assert found == [expected]
