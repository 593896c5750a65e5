"""Parameters that stand in another's place: named where nothing else fits as well, and not claimed of what is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tracekit
from tracekit.report.words import sentence

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import tiny_families as tiny  # noqa: E402

LAYER = "model.layers.{}."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make("llama", tmp_path_factory.mktemp("llama"))


def _exchanged(site: str) -> Callable[[Any], None]:
    """The module's parameters of two layers."""

    def plant(model: Any) -> None:
        one, other = (model.get_submodule(LAYER.format(layer) + site) for layer in (0, 1))
        one.weight, other.weight = other.weight, one.weight

    return plant


def _changed(site: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        weight = model.get_submodule(LAYER.format(0) + site).weight
        with torch.no_grad():
            weight.copy_(change(weight.clone()))

    return plant


def _permuted(weight: Any) -> Any:
    return weight[:, torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))]


def _pair(weight: Any) -> Any:
    weight[:, [3, 17]] = weight[:, [17, 3]]
    return weight


def _noisy(weight: Any) -> Any:
    return weight + 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))


def _one_column(weight: Any) -> Any:
    weight[:, 3] = weight[:, 17]
    return weight


NORM, UP, DOWN, QUERY = "input_layernorm", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"
OF_LAYER_1 = "computed with the weight of layer 1 (model.layers.1.{})"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("site", "plant", "text"),
    [
        (NORM, _exchanged(NORM), OF_LAYER_1.format(NORM)),
        (DOWN, _exchanged(DOWN), OF_LAYER_1.format(DOWN)),
        (QUERY, _changed(QUERY, _permuted), "columns of the weight in another order: 32 of 32"),
        (UP, _changed(UP, _pair), "columns 3 and 17 of the weight exchanged"),
        (DOWN, _changed(DOWN, _pair), "columns 3 and 17 of the weight exchanged"),
        (UP, _changed(UP, _noisy), None),
        (DOWN, _changed(DOWN, _one_column), "the weight differs by an update of rank 1"),
    ],
)
def test_a_parameter_in_another_s_place(
    site: str, plant: Callable[[Any], None], text: str | None, dtype: str, folder: Path, tmp_path: Path
) -> None:
    model = tiny.load(folder, dtype=dtype)
    plant(model)
    with tiny.run(model, tmp_path / "run.h5") as trace:
        found = tracekit.audit(trace, folder)
    said = {one.site: sentence(one.explanation) if one.explanation else None for one in found.culprits}
    assert said[LAYER.format(0) + site] == text, found.text
    assert len(said) == (2 if "layer 1" in str(text) else 1)
