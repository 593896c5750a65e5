"""A router that chose other experts: by a rounding, or by another rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tracekit.auditing.routing import RoutedOtherwise

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tracekit_torch.reference_program.chosen_otherwise import OTHER_EXPERTS  # noqa: E402

from tests import tiny_families as tiny  # noqa: E402

AMONG = {"mixtral": 4, "qwen3moe": 4, "deepseekv3": 2}
"""How many the router that is changed chooses from; DeepSeek chooses a group first."""
POSITION, ROUTER, EXPERTS = 6, "model.layers.1.mlp.gate", "model.layers.1.mlp.experts"


def second_best(model: Any, among: int) -> None:
    """At one position of the prompt the router takes the next one by its scores in place of the last that it takes."""
    gate = model.get_submodule(ROUTER)
    forward, topk = gate.forward, torch.topk

    def other(scores: Any, k: int, **more: Any) -> Any:
        values, indices = topk(scores, k, **more)
        if scores.dim() != 2 or scores.shape[-1] != among or len(scores) <= POSITION:
            return values, indices
        order = scores[POSITION].argsort(descending=True)
        indices = indices.clone()
        indices[POSITION, indices[POSITION] == order[k - 1]] = order[k]
        return scores.gather(-1, indices), indices

    def changed(*args: Any, **more: Any) -> Any:
        torch.topk = other
        try:
            return forward(*args, **more)
        finally:
            torch.topk = topk

    gate.forward = changed


def in_a_tie(folder: Path, out: Path, family: str) -> Path:
    """The checkpoint with experts whose scores are next to equal."""
    model = tiny.load(folder)
    weight = model.get_submodule(ROUTER).weight
    pairs = [(2, 0), (3, 1)] if family == "deepseekv3" else [(1, 0), (2, 0)]
    with torch.no_grad():
        for one, other in pairs:
            weight[one] = weight[other]
            weight[one, one] = torch.nextafter(weight[one, one], torch.tensor(9.0))
    model.save_pretrained(out)
    return out


def said(found: Any) -> list[RoutedOtherwise]:
    return [note for note in found.notes if isinstance(note, RoutedOtherwise)]


@pytest.mark.parametrize("family", AMONG)
def test_a_near_tie_is_no_alarm(checkpoints: Any, tmp_path: Path, family: str) -> None:
    folder = in_a_tie(checkpoints(family), tmp_path / "model", family)
    found = tiny.judged_by_reference(folder, tmp_path / "run.h5", lambda model: second_best(model, AMONG[family]))
    assert found.exit_code == 0, found.text
    # float32 decides other positions otherwise than float64 as well, and what was exchanged may be float64's choice.
    assert found.routed
    assert all(each.router == ROUTER and each.near_tie and each.margin < 1e-6 for each in found.routed)
    assert len(said(found)) == 1 and "near-tie" in found.text


@pytest.mark.parametrize("family", AMONG)
def test_another_choice_is_named_with_its_margin(checkpoints: Any, tmp_path: Path, family: str) -> None:
    found = tiny.judged_by_reference(
        checkpoints(family), tmp_path / "run.h5", lambda model: second_best(model, AMONG[family])
    )
    assert [culprit.site for culprit in found.culprits] == [EXPERTS]
    explained = found.culprits[0].explanation
    assert explained is not None and explained.mistake is OTHER_EXPERTS, found.text
    assert explained.values["position"] == POSITION
    [note] = said(found)
    assert (note.first.router, note.first.position) == (ROUTER, POSITION)
    assert len(note.first.reference) == len(note.first.candidate) == 1
    assert not note.first.near_tie and note.first.margin > 100 * note.first.rounding


def test_the_rest_is_judged_with_the_experts_that_were_taken(checkpoints: Any, tmp_path: Path) -> None:
    def gain(model: Any) -> None:
        experts = model.get_submodule(EXPERTS)
        forward = experts.forward
        experts.forward = lambda *args, **more: forward(*args, **more) * 1.00001

    folder = in_a_tie(checkpoints("mixtral"), tmp_path / "model", "mixtral")
    found = tiny.judged_by_reference(folder, tmp_path / "run.h5", lambda model: second_best(model, 4), gain)
    assert [culprit.site for culprit in found.culprits] == [EXPERTS]
    assert max(found.culprits[0].own.statistics.rows) < 1000  # with other experts it is a million
    assert said(found)[0].first.near_tie
