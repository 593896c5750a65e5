"""A prompt given as embeddings, as a model that sees or hears gives it: recorded with its steps, and audited."""

from __future__ import annotations

import numpy as np
import pytest

import tracekit

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402

from tests import tiny_families  # noqa: E402

PROMPT = torch.tensor(tiny_families.PROMPT)
LENGTH = PROMPT.shape[1]
STEPS = 4


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2"])
def family(request, tmp_path_factory):
    folder = tiny_families.make(request.param, tmp_path_factory.mktemp("embedded") / request.param)
    return folder, tracekit_torch.by_reference(str(folder))


def embedded(model):
    return model.get_input_embeddings()(PROMPT).detach()


def generated(model):
    return model.generate(
        inputs_embeds=embedded(model), max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, pad_token_id=0
    ).tolist()


def looped(model):
    """A loop of a program's own, whose first call alone is given embeddings."""
    out = model(inputs_embeds=embedded(model), use_cache=True)
    tokens = [out.logits[:, -1].argmax(-1, keepdim=True)]
    for _ in range(STEPS - 1):
        out = model(tokens[-1], past_key_values=out.past_key_values, use_cache=True)
        tokens.append(out.logits[:, -1].argmax(-1, keepdim=True))
    return torch.cat(tokens, dim=1).tolist()


def recorded(folder, path, run, dtype=torch.float32, break_it=lambda model: None):
    model = tiny_families.load(folder, "eager").to(dtype)
    break_it(model)
    with torch.no_grad():
        plain = run(model)
        with tracekit_torch.record(model, path):
            assert run(model) == plain
    return tracekit.open(path), plain[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("run", [generated, looped])
def test_every_step_is_recorded_and_judged(family, tmp_path, run, dtype):
    folder, by = family
    trace, tokens = recorded(folder, tmp_path / "run.h5", run, dtype)
    (sequence,) = trace.sequences
    assert sequence.tokens.tolist() == tokens and sequence.positions == LENGTH + STEPS - 1
    found = tracekit.audit(trace, folder, by=by)
    assert not found.culprits and found.exit_code == 0
    assert f"{STEPS} of {STEPS} steps" in found.text


def test_a_fault_is_named(family, tmp_path):
    folder, by = family

    def scale(model):
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(lambda _, args: (args[0] * 1.01,))

    trace, _ = recorded(folder, tmp_path / "run.h5", looped, break_it=scale)
    assert [culprit.site for culprit in tracekit.audit(trace, folder, by=by).culprits] == ["lm_head:in"]


def test_values_of_bfloat16_are_read_as_such(tmp_path):
    """numpy has no bfloat16, and an archive holds no dtype of what a prompt was given as."""
    folder = tiny_families.make("llama", tmp_path / "llama")
    model = tiny_families.load(folder, "eager").bfloat16()
    with torch.no_grad(), tracekit_torch.record(model, tmp_path / "run.h5", keep_log=True):
        given = embedded(model)
        model(inputs_embeds=given)
    for path in (tmp_path / "run.h5", tmp_path / "run.tklog"):
        held = tracekit.open(path).sequences[0].inputs["inputs_embeds"]
        assert held.dtype == np.float32 and np.array_equal(held, given[0].float().numpy())
    assert tracekit.audit(tmp_path / "run.h5", folder, by=tracekit_torch.by_reference(str(folder))).exit_code == 0


def test_a_sequence_that_cannot_be_run_leaves_the_others_judged(family, tmp_path):
    """A prompt of embeddings and ids: the embeddings of its second part are not recorded."""
    folder, by = family

    def mixed(model):
        cache = model(inputs_embeds=embedded(model), use_cache=True).past_key_values
        out = model(PROMPT[:, :3], past_key_values=cache, use_cache=True)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        model(token, past_key_values=out.past_key_values, use_cache=True)
        return [[*generated(model)[0], int(token)]]

    trace, _ = recorded(folder, tmp_path / "run.h5", mixed)
    found = tracekit.audit(trace, folder, by=by)
    assert not found.culprits and found.clean and found.exit_code == 2
    assert "sequence 0: 14 positions" in found.text and "the reference cannot be run on it" in found.text


def test_a_recording_that_stopped_between_two_sequences_is_not_whole(family, tmp_path):
    folder, by = family
    model = tiny_families.load(folder, "eager")
    with torch.no_grad(), tracekit_torch.record(model, tmp_path / "run.h5") as recorder:
        generated(model)
        recorder.fail(ValueError("out of luck"))
        generated(model)
    found = tracekit.audit(tmp_path / "run.h5", folder, by=by)
    assert not found.culprits and found.exit_code == 2 and "out of luck" in found.text
    assert tracekit.diff(tmp_path / "run.h5", tmp_path / "run.h5").verdict == "withheld"
