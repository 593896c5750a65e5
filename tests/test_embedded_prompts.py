"""A prompt given as embeddings, as a model that sees or hears gives it: recorded with its steps, and audited."""

from __future__ import annotations

import numpy as np
import pytest

import tracekit
from tracekit.trace import NO_TOKEN

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


VIRTUAL = 3


def prepared_by(model, prepare):
    """New tokens, where another than the model makes what it is given; it then works out where positions stand."""
    of_the_model = model.prepare_inputs_for_generation

    def without_places(*args, **kwargs):
        given = prepare(*args, **kwargs)
        for name in ("position_ids", "cache_position"):
            given.pop(name, None)
        return given | {"attention_mask": None}

    model.prepare_inputs_for_generation = without_places
    try:
        options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
        return model.generate(PROMPT, **options)[:, LENGTH:].tolist()
    finally:
        model.prepare_inputs_for_generation = of_the_model


def virtual(model, *, again=False):
    """As PEFT's prompt tuning generates: what the model is given is made by another than it, which puts virtual tokens
    before the prompt's; in versions of transformers that it does not know, at each step."""
    torch.manual_seed(4)
    tokens = torch.randn(1, VIRTUAL, embedded(model).shape[-1]) / 8
    of_the_model = model.prepare_inputs_for_generation

    def prepare(*args, **kwargs):
        given = of_the_model(*args, **kwargs)
        ids = given["input_ids"]
        if again or ids.shape[1] == LENGTH:
            given["inputs_embeds"] = torch.cat([tokens, model.get_input_embeddings()(ids)], dim=1)
            given["input_ids"] = None
        return given

    return prepared_by(model, prepare)


def test_virtual_tokens_are_positions_of_the_prompt(family, tmp_path):
    folder, by = family
    trace, tokens = recorded(folder, tmp_path / "run.h5", virtual)
    (sequence,) = trace.sequences
    assert sequence.tokens.tolist() == tokens and sequence.positions == VIRTUAL + LENGTH + STEPS - 1
    assert [sequence.step(index).position for index in range(STEPS)] == [VIRTUAL + LENGTH - 1 + n for n in range(STEPS)]
    found = tracekit.audit(trace, folder, by=by)
    assert not found.culprits and found.exit_code == 0 and f"{STEPS} of {STEPS} steps" in found.text

    def scale(model):
        model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0] * 1.01,))

    wrong, _ = recorded(folder, tmp_path / "wrong.h5", virtual, break_it=scale)
    assert {culprit.site for culprit in tracekit.audit(wrong, folder, by=by).culprits} == {"lm_head:in"}


def test_virtual_tokens_between_the_steps_are_said(family, tmp_path):
    folder, _ = family
    trace, tokens = recorded(folder, tmp_path / "run.h5", lambda model: virtual(model, again=True))
    (sequence,) = trace.sequences
    assert sequence.tokens.tolist() == tokens[:1] and sequence.positions == VIRTUAL + LENGTH
    assert sequence.end_reason == "left" and "more positions than the tokens it has" in trace.config["lost"][0]
    assert tracekit.diff(trace, trace).verdict == "withheld"


def test_positions_that_a_program_puts_into_the_cache_are_before_the_prompt(family, tmp_path):
    """As PEFT's prefix tuning does, in versions of transformers that it knows."""
    folder, _ = family

    def prefixed(model):
        of_the_model = model.prepare_inputs_for_generation
        filled = []

        def prepare(*args, **kwargs):
            given = of_the_model(*args, **kwargs)
            if not filled:
                with torch.no_grad():
                    held = {name: given[name] for name in ("cache", "past_key_values") if name in given}
                    model.base_model(PROMPT[:, :VIRTUAL], **held, use_cache=True)
                filled.append(True)
            return given

        return prepared_by(model, prepare)

    trace, tokens = recorded(folder, tmp_path / "run.h5", prefixed)
    (sequence,) = trace.sequences
    assert sequence.tokens.tolist() == tokens and sequence.step(0).position == VIRTUAL + LENGTH - 1
    assert sequence.prompt_ids.tolist() == [NO_TOKEN] * VIRTUAL + PROMPT[0].tolist()
    assert not tracekit.audit(trace, folder).culprits
