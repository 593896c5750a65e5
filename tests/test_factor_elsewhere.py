"""A candidate that multiplies at another place than the reference: in the module, before it, after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tracekit.auditing.elsewhere import FactorElsewhere

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


from tests import tiny_families as tiny  # noqa: E402

EMBEDDINGS = "model.embed_tokens"
QUERIES = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]


def times(path: str, factor: float) -> Callable[[Any], None]:
    """A module whose output is a multiple."""

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        forward = module.forward
        module.forward = lambda *args, **more: forward(*args, **more) * factor

    return plant


def before_the_layers(model: Any, factor: float) -> None:
    """Multiply what goes into the first layer, as the program outside of all modules would."""
    layer = model.model.layers[0]
    forward = layer.forward
    layer.forward = lambda hidden, *args, **more: forward(hidden * factor, *args, **more)


def scaled_after(model: Any) -> None:
    model.model.embed_tokens.embed_scale.fill_(1.0)
    before_the_layers(model, model.config.hidden_size**0.5)


def scaled_within(model: Any) -> None:
    times(EMBEDDINGS, model.model.embedding_multiplier)(model)
    model.model.embedding_multiplier = 1.0


def scale_in_the_queries(model: Any) -> None:
    for path in QUERIES:
        attention = model.get_submodule(path.removesuffix(".q_proj"))
        times(path, attention.scaling)(model)
        attention.scaling = 1.0


SCALE = 8**-0.5
HARMLESS: dict[str, tuple[str, Callable[[Any], None], dict[str, float]]] = {
    "embeddings after the module": ("gemma2", scaled_after, {EMBEDDINGS: 32**0.5}),
    "embeddings in the module": ("granite", scaled_within, {EMBEDDINGS: 1 / 3}),
    "scores before their product": ("llama", scale_in_the_queries, dict.fromkeys(QUERIES, 1 / SCALE)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_it_is_within_its_bounds_and_said(checkpoints: Any, tmp_path: Path, name: str) -> None:
    family, change, factors = HARMLESS[name]
    found = tiny.judged_by_reference(checkpoints(family), tmp_path / "run.h5", change)
    assert found.exit_code == 0, found.text
    said = {note.site: note.factor for note in found.notes if isinstance(note, FactorElsewhere)}
    assert said == pytest.approx(factors)


@pytest.mark.parametrize("name", HARMLESS)
def test_a_fault_beside_it_is_found_at_its_site_alone(checkpoints: Any, tmp_path: Path, name: str) -> None:
    family, change, factors = HARMLESS[name]
    site = "model.layers.1.self_attn.k_proj"
    found = tiny.judged_by_reference(checkpoints(family), tmp_path / "run.h5", change, times(site, 1.001))
    assert [culprit.site for culprit in found.culprits] == [site]
    assert {note.site for note in found.notes if isinstance(note, FactorElsewhere)} == factors.keys()


@pytest.mark.parametrize(
    ("family", "fault", "sites"),
    [
        ("gemma2", lambda model: model.model.embed_tokens.embed_scale.fill_(1.0), {EMBEDDINGS}),
        ("llama", times(QUERIES[0], SCALE), {QUERIES[0]}),
    ],
    ids=["embeddings", "scores"],
)
def test_a_factor_that_is_missing_or_too_much_is_a_fault(
    checkpoints: Any, tmp_path: Path, family: str, fault: Callable[[Any], None], sites: set[str]
) -> None:
    found = tiny.judged_by_reference(checkpoints(family), tmp_path / "run.h5", fault)
    assert {culprit.site for culprit in found.culprits} == sites
    assert not any(isinstance(note, FactorElsewhere) for note in found.notes)
