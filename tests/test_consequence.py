"""Which culprit matters: its share of the logits' error, and the tokens with the right values put in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import tracekit

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402

from tests import tiny_families  # noqa: E402
from tracekit.auditing.consequence import TokensBy  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make("llama", tmp_path_factory.mktemp("llama"))


def times(path: str, factor: float) -> Callable[[Any], None]:
    """Plants a gain of one layer's weights."""

    def plant(model: Any) -> None:
        with torch.no_grad():
            model.get_submodule(path).weight.mul_(factor)

    return plant


LOUD, QUIET = times("model.layers.1.mlp.down_proj", 3.0), times("model.layers.0.self_attn.q_proj", 1.001)


def audited(folder: Path, out: Path, *plants: Callable[[Any], None], **settings: Any) -> Any:
    model = tiny_families.load(folder)
    for plant in plants:
        plant(model)
    level = settings.pop("level", "all")
    logits = settings.pop("logits", "full")
    torch.manual_seed(3)
    with tracekit_torch.record(model, out, level=level, logits=logits):
        model.generate(
            torch.tensor(tiny_families.PROMPT), max_new_tokens=10, eos_token_id=None, **{"do_sample": False} | settings
        )
    return tracekit.audit(out, folder, by=tracekit_torch.by_reference(folder))


def test_the_culprit_with_the_largest_share_comes_first(folder: Path, tmp_path: Path) -> None:
    found = audited(folder, tmp_path / "run.h5", QUIET, LOUD)
    assert [culprit.site for culprit in found.culprits] == [
        "model.layers.1.mlp.down_proj",
        "model.layers.0.self_attn.q_proj",
    ]
    told = found.consequences
    assert told.at == "logits"
    loud, quiet = (told.share(culprit.site) for culprit in found.culprits)
    assert loud > 0.99 and abs(quiet) < 0.01 and abs(told.others.share) < 0.01 and abs(told.gap) < 0.01
    assert "100 % of the logits' error" in found.text


def test_shares_of_errors_that_do_not_interact_add_up(folder: Path, tmp_path: Path) -> None:
    found = audited(folder, tmp_path / "run.h5", times("model.norm", 1.01), times("lm_head", 1.02))
    told = found.consequences
    assert {culprit.site for culprit in found.culprits} == {"model.norm", "logits"}
    # The head's error is taken of what it got.
    assert told.share("model.norm") == pytest.approx(1.0 / 3.02, abs=2e-3)
    assert told.share("logits") == pytest.approx(2.02 / 3.02, abs=2e-3)
    assert told.of("logits").alone == pytest.approx(2.02 / 3.02, abs=2e-3)


def test_culprits_that_cancel_have_shares_of_both_signs(folder: Path, tmp_path: Path) -> None:
    # With 0.5, nothing would be left of both, and neither be wrong.
    found = audited(folder, tmp_path / "run.h5", times("model.norm", 2.0), times("lm_head", 0.5001))
    told = found.consequences
    assert told.share("model.norm") * told.share("logits") < 0.0
    assert told.of("model.norm").alone > 1e3  # times what is left of both
    assert found.consequences.repaired.before == found.consequences.repaired.steps
    assert "cancels" in found.text


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 1.3, "top_k": 20}])
def test_mending_all_culprits_brings_back_the_reference_s_tokens(
    folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    found = audited(folder, tmp_path / "run.h5", LOUD, times("model.layers.0.self_attn.v_proj", 4.0), **settings)
    repaired = found.consequences.repaired
    assert repaired.by is TokensBy.SAMPLER and repaired.steps == 10
    assert repaired.before < repaired.after == 10
    *same, last = repaired.shown
    assert all(row.reference == row.mended == row.candidate for row in same)
    assert last.reference == last.mended != last.candidate
    # Beside it, the reference's own run: its first tokens are those, up to the first that differs.
    clean = tiny_families.load(folder)
    torch.manual_seed(3)
    ids = torch.tensor(tiny_families.PROMPT)
    own = clean.generate(ids, max_new_tokens=10, eos_token_id=None, **{"do_sample": False} | settings)[0]
    assert int(own[ids.shape[1] + last.step]) == last.reference
    assert "mended: with the right values at the culprits, 10 of 10 steps" in found.text


def test_several_sequences_are_weighed_together(folder: Path, tmp_path: Path) -> None:
    model = tiny_families.load(folder)
    LOUD(model)
    prompts = torch.tensor([tiny_families.PROMPT[0], tiny_families.PROMPT[0][::-1]])
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        model.generate(prompts, max_new_tokens=6, do_sample=False, eos_token_id=None)
    found = tracekit.audit(tmp_path / "run.h5", folder, by=tracekit_torch.by_reference(folder))
    told = found.consequences
    assert told is not None and told.repaired is not None
    assert told.repaired.steps == 12 and told.repaired.after == 12
    assert told.share("model.layers.1.mlp.down_proj") > 0.99


def test_without_logits_the_last_site_is_said(folder: Path, tmp_path: Path) -> None:
    found = audited(folder, tmp_path / "run.h5", LOUD, logits="5")
    told = found.consequences
    assert told.at == "model.norm" and told.repaired is None
    assert "logits are not recorded; model.norm, the last site" in found.text
    assert "100 % of the error at model.norm" in found.text


def test_many_mistakes_are_weighed_in_a_few_runs(folder: Path, tmp_path: Path) -> None:
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    plants = [times(f"model.layers.{layer}.self_attn.{name}", 1.1 + layer) for layer in (0, 1) for name in names]
    plants += [times(f"model.layers.{layer}.mlp.{name}", 1.2) for layer in (0, 1) for name in ("up_proj", "down_proj")]
    found = audited(folder, tmp_path / "run.h5", *plants)
    assert len(found.culprits) == 12
    assert len(found.consequences.groups) <= 8
    assert sum(len(group.sites) for group in found.consequences.groups) == 12
    shares = [found.consequences.share(culprit.site) for culprit in found.culprits]
    assert shares == sorted(shares, reverse=True)


def test_what_is_not_finite_is_not_weighed(folder: Path, tmp_path: Path) -> None:
    def plant(model: Any) -> None:
        LOUD(model)
        model.model.layers[0].mlp.register_forward_hook(lambda *_: _[-1] * float("nan"))

    found = audited(folder, tmp_path / "run.h5", plant)
    assert found.consequences is None


def test_a_clean_run_has_no_consequences(folder: Path, tmp_path: Path) -> None:
    found = audited(folder, tmp_path / "run.h5")
    assert found.exit_code == 0 and found.consequences is None
    assert found.to_json()["consequences"] is None


def test_recipes_alone_claim_none(folder: Path, tmp_path: Path) -> None:
    audited(folder, tmp_path / "run.h5", LOUD)
    found = tracekit.audit(tmp_path / "run.h5", folder)
    assert found.culprits and found.consequences is None


def test_a_diff_leads_with_the_culprit_of_the_largest_share(folder: Path, tmp_path: Path) -> None:
    """Though another comes first in the computation, whose share is next to nothing."""
    tiny_families.run(tiny_families.load(folder), tmp_path / "reference.h5").close()
    audited(folder, tmp_path / "run.h5", QUIET, LOUD)
    by = tracekit_torch.by_reference(folder)
    verdict = tracekit.diff(tmp_path / "reference.h5", tmp_path / "run.h5", weights=folder, by=by)
    assert (verdict.verdict, verdict.site) == ("divergence", "model.layers.1.mlp.down_proj")
    assert [one.site for one in verdict.culprits] == ["model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"]
    assert verdict.consequences is not None and verdict.consequences.repaired is not None
    assert "\n  100 % of the logits' error\n" in verdict.text and "also at fault" in verdict.text
    assert verdict.text.count("of the logits' error") == 2  # once for each mistake
    assert "mended: with the right values at the culprits, 10 of 10 steps" in verdict.text
    told = verdict.to_json()
    schema = json.loads((Path(__file__).parent.parent / "docs/verdict.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(told)))
    assert told["consequences"]["groups"][0]["share"] == pytest.approx(1.0, abs=0.02)
    first = verdict.consequences.repaired.shown[-1]
    assert verdict.token is not None and verdict.token.step == first.step
    assert verdict.token.reference.id == first.reference == first.mended
    assert verdict.token.candidate.id == first.candidate
    without = tracekit.diff(tmp_path / "reference.h5", tmp_path / "run.h5", weights=folder)
    assert without.consequences is None and without.site == "model.layers.0.self_attn.q_proj"


def test_json(folder: Path, tmp_path: Path) -> None:
    told = audited(folder, tmp_path / "run.h5", LOUD).to_json()["consequences"]
    assert told["at"] == "logits" and told["groups"][0]["sites"] == ["model.layers.1.mlp.down_proj"]
    assert told["groups"][0]["share"] + told["others"]["share"] + told["gap"] == pytest.approx(1.0)
    assert told["repaired"]["by"] == "sampler" and set(told["repaired"]["shown"][0]) == {
        *("step", "reference", "mended", "candidate"),
    }
    assert told["text"].startswith("the logits are off by")
