"""A program that changes its weights while it is recorded: what it computes with others is recorded and not judged."""

from __future__ import annotations

import pytest

import tracekit

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402

from tests import tiny_families  # noqa: E402

PROMPT = torch.tensor([tiny_families.PROMPT[0]])
SAID = "computed after the program had changed the weights; they are not judged"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tiny_families.make("llama", tmp_path_factory.mktemp("changed") / "llama")
    return folder, tracekit_torch.by_reference(str(folder))


def train(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(PROMPT, labels=PROMPT).loss.backward()
    optimizer.step()


def average(model):
    """As an average of the weights is put in, through `data`, which torch counts as no change."""
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def one_matrix(model):
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 1] += 1


def write_again(model):
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})


def move(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def generated(model):
    return model.generate(PROMPT, max_new_tokens=4, do_sample=False)


def recorded(folder, path, between):
    model = tiny_families.load(folder, "eager")
    with tracekit_torch.record(model, path):
        generated(model)
        between(model)
        generated(model)
    return path


@pytest.mark.parametrize("change", [train, average, one_matrix])
def test_what_comes_before_is_judged_and_what_comes_after_is_not(llama, tmp_path, capsys, change):
    folder, by = llama
    path = recorded(folder, tmp_path / "run.h5", change)
    assert capsys.readouterr().err.count("the program changed the weights of its model") == 1
    for options in ({}, {"by": by}):
        found = tracekit.audit(path, folder, **options)
        assert not found.culprits and found.clean and found.exit_code == 2
        assert SAID in found.text
    same = tracekit.diff(path, recorded(folder, tmp_path / "again.h5", change))
    assert same.verdict == "parity"


@pytest.mark.parametrize("rewrite", [write_again, move])
def test_the_same_values_are_no_change(llama, tmp_path, capsys, rewrite):
    folder, by = llama
    path = recorded(folder, tmp_path / "run.h5", rewrite)
    assert "changed the weights" not in capsys.readouterr().err
    for options in ({}, {"by": by}):
        assert tracekit.audit(path, folder, **options).exit_code == 0


def test_a_fault_before_the_change_is_named(llama, tmp_path):
    folder, _ = llama
    model = tiny_families.load(folder, "eager")
    model.model.layers[1].input_layernorm.variance_epsilon = 1e-2
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        generated(model)
        one_matrix(model)
        generated(model)
    found = tracekit.audit(tmp_path / "run.h5", folder)
    assert [culprit.site for culprit in found.culprits] == ["model.layers.1.input_layernorm"]


def test_a_trace_of_other_weights_alone_is_refused(llama, tmp_path):
    folder, by = llama
    model = tiny_families.load(folder, "eager")
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        one_matrix(model)
        generated(model)
    for options in ({}, {"by": by}):
        with pytest.raises(tracekit.TraceError, match=SAID):
            tracekit.audit(tmp_path / "run.h5", folder, **options)
