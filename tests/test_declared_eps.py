"""The eps of a norm is what the checkpoint's configuration declares, not what the program says that it used."""

from __future__ import annotations

import json

import pytest

import tracekit
from tracekit.auditing.declared_eps import stated_eps, states_another
from tracekit.auditing.not_audited import Lacks

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402

from tests import tiny_families  # noqa: E402

NORM = "model.layers.0.input_layernorm"


@pytest.fixture(scope="module")
def starcoder2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starcoder2")
    torch.manual_seed(0)
    config = transformers.Starcoder2Config(**tiny_families.SIZES)
    transformers.Starcoder2ForCausalLM(config).eval().save_pretrained(folder)
    return folder


def audited(folder, path, eps=None, told=None):
    """A run whose norms have an eps of their own, against a checkpoint whose configuration says `told` besides."""
    model = transformers.Starcoder2ForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for module in model.modules():
        if eps is not None and isinstance(module, torch.nn.LayerNorm):
            module.eps = eps
    with torch.no_grad(), tracekit_torch.record(model, path):
        model.generate(torch.tensor(tiny_families.PROMPT), max_new_tokens=2, do_sample=False, eos_token_id=None)
    declared = json.loads((folder / "config.json").read_text())
    other = path.parent / "checkpoint"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text(
        json.dumps({key: each for key, each in (declared | (told or {})).items() if each})
    )
    return tracekit.audit(path, other)


def test_the_declared_eps_is_the_right_one(starcoder2, tmp_path):
    found = audited(starcoder2, tmp_path / "run.h5", 1e-3)
    assert NORM in {culprit.site for culprit in found.culprits}
    assert "eps" in found.text


def test_the_same_eps_is_no_fault(starcoder2, tmp_path):
    found = audited(starcoder2, tmp_path / "run.h5")
    assert found.exit_code == 0 and NORM in found.clean, found.text


def test_an_eps_that_is_none_of_those_declared_is_not_judged(starcoder2, tmp_path):
    """BioGPT declares 1e-12, and its norms have torch's 1e-5: of a model whose program is not known, either may be."""
    found = audited(starcoder2, tmp_path / "run.h5", 1e-3, {"model_type": "something"})
    assert found.unknown[NORM].lacks is Lacks.DECLARED_EPS
    assert NORM not in found.clean and not found.culprits


def test_where_no_eps_is_declared_that_is_said(starcoder2, tmp_path):
    found = audited(starcoder2, tmp_path / "run.h5", told={"norm_epsilon": None})
    assert NORM in found.clean
    assert "no eps" in found.text


def test_the_names_of_an_eps():
    declared = {"norm_epsilon": 1e-5, "text_config": {"rms_norm_eps": 1e-6}, "batch_norm_eps": 1e-3, "steps": 3}
    assert stated_eps(declared) == {"norm_epsilon": 1e-5, "rms_norm_eps": 1e-6}
    assert states_another(declared, 1e-6) is None and states_another({}, 1e-3) is None
    assert states_another(declared, 1e-3) == ("norm_epsilon", 1e-5)
