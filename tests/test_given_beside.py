"""Models that are given more than tokens, an image say: the reference is given the same."""

from __future__ import annotations

import pytest

import tracekit

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from transformers import (  # noqa: E402
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

IMAGE = 60
"""The token in whose places an image is put."""
TEXT = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
SEES = CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlavaConfig(text_config=TEXT, vision_config=SEES, image_token_id=IMAGE, image_token_index=IMAGE)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
    path = tmp_path_factory.mktemp("sees")
    model.save_pretrained(path)
    return path


def given(rows=1, images=None):
    torch.manual_seed(7)
    ids = torch.tensor([[4, 9, *[IMAGE] * 4, 6, 11], [5, 3, *[IMAGE] * 4, 8, 12]][:rows])
    pixels = torch.randn(len(ids) if images is None else images, 3, 8, 8)
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}


def generated(model, inputs, **more):
    return model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, **more)


def looped(model, inputs):
    out, tokens = model(**inputs, use_cache=True), []
    cache = next(name for name in ("cache", "past_key_values") if hasattr(out, name))
    for _ in range(4):
        tokens.append(out.logits[:, -1:].argmax(-1))
        out = model(input_ids=tokens[-1], **{cache: getattr(out, cache)}, use_cache=True)
    return torch.cat(tokens, dim=1)


def called(model, inputs):
    return model(**inputs, use_cache=False).logits.argmax(-1)


def audited(folder, path, run, inputs, break_it=lambda model: None):
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        break_it(model)
        plain = run(model, inputs)
        with tracekit_torch.record(model, path):
            assert torch.equal(run(model, inputs), plain)
    return tracekit.audit(path, by=tracekit_torch.by_reference(str(folder)))


def language(model):
    return model.model.language_model


def scaled(parameter):
    parameter.mul_(1.02)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("run", [generated, looped, called])
def test_a_clean_run_with_an_image_is_within(folder, tmp_path, run, rows):
    found = audited(folder, tmp_path / "a.h5", run, given(rows))
    assert found.exit_code == 0 and not found.culprits and "logits" not in found.unknown


def test_so_is_a_prefill_in_chunks_and_a_prompt_that_is_sampled_from_twice(folder, tmp_path):
    chunks = audited(folder, tmp_path / "a.h5", lambda *of: generated(*of, prefill_chunk_size=3), given())
    assert chunks.exit_code == 0

    def twice(model, inputs):
        torch.manual_seed(5)
        return model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=2, pad_token_id=0)

    assert audited(folder, tmp_path / "b.h5", twice, given(2)).exit_code == 0


@pytest.mark.parametrize(
    ("break_it", "site"),
    [
        (lambda model: scaled(language(model).layers[1].self_attn.o_proj.weight), "layers.1.self_attn.o_proj"),
        (lambda model: scaled(model.model.multi_modal_projector.linear_2.weight), "layers.0.input_layernorm:in"),
    ],
    ids=["of the text", "of what sees"],
)
def test_a_fault_beside_an_image_is_named(folder, tmp_path, break_it, site):
    found = audited(folder, tmp_path / "a.h5", generated, given(), break_it)
    assert [culprit.site.partition("language_model.")[2] for culprit in found.culprits] == [site]


def test_images_that_are_not_known_to_be_of_which_row_are_said_and_nothing_is_judged(folder, tmp_path):
    """One row has both."""
    inputs = given(2)
    inputs["input_ids"] = torch.tensor([[4, 9, *[IMAGE] * 8], [5, 3, 6, 7, 8, 9, 10, 11, 12, 13]])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with pytest.raises(tracekit.TraceError, match="were given as pixel_values is not recorded"):
        audited(folder, tmp_path / "a.h5", generated, inputs)


@pytest.mark.parametrize("run", [generated, looped])
def test_the_kinds_of_tokens_go_on_as_generate_has_them(tmp_path, run):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    ids = torch.tensor([[4, 9, 8, 6, 11]])
    inputs = {"input_ids": ids, "token_type_ids": torch.tensor([[3, 3, 5, 5, 5]])}
    inputs |= {"attention_mask": torch.ones_like(ids)} if run is generated else {}
    with tracekit_torch.record(model, tmp_path / "a.h5"), torch.no_grad():
        if run is generated:
            generated(model, inputs)
        else:
            model(**inputs)
    found = tracekit.audit(tmp_path / "a.h5", by=tracekit_torch.by_reference(str(tmp_path / "model")))
    assert found.exit_code == 0 and not found.culprits


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("text")
    LlamaForCausalLM(TEXT).save_pretrained(path)
    return path


def one_call(text, path, stands, **more):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(text, attn_implementation="sdpa").eval()
    with tracekit_torch.record(model, path), torch.no_grad():
        model(input_ids=torch.tensor([[4, 9, 8, 6, 11, 7]]), position_ids=torch.tensor([stands]), **more)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 6, dtype=torch.int64)], ids=["no mask", "a mask of ones"])
def test_positions_that_a_reference_does_not_work_out_are_said_and_not_judged(text, tmp_path, mask):
    by = tracekit_torch.by_reference(str(text))
    one_call(text, tmp_path / "a.h5", [0, 1, 2, 3, 4, 5], attention_mask=mask)
    assert tracekit.audit(tmp_path / "a.h5", by=by).exit_code == 0
    one_call(text, tmp_path / "b.h5", [0, 2, 4, 6, 8, 10], attention_mask=mask)
    with pytest.raises(tracekit.TraceError, match="were given as position_ids is not recorded"):
        tracekit.audit(tmp_path / "b.h5", by=by)


def test_a_row_that_holds_several_sequences_is_said_and_not_recorded(text, tmp_path, capsys):
    one_call(text, tmp_path / "a.h5", [0, 1, 2, 0, 1, 2])
    assert not (tmp_path / "a.h5").exists() and "several sequences in one row" in capsys.readouterr().err


def test_so_is_continuous_batching(text, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "ContinuousBatchingConfig"):
        pytest.skip("this version has none")
    model = transformers.LlamaForCausalLM.from_pretrained(text, attn_implementation="sdpa").eval()
    settings = transformers.GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=2, pad_token_id=0)
    batching = transformers.ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=64, block_size=16)

    def run():
        out = model.generate_batch(
            inputs=[[4, 9, 8, 6], [5, 3], [7, 11, 12]],
            generation_config=settings,
            continuous_batching_config=batching,
            progress_bar=False,
        )
        return sorted(each.generated_tokens for each in out.values())

    plain = run()
    with tracekit_torch.record(model, tmp_path / "a.h5"):
        assert run() == plain
    assert not (tmp_path / "a.h5").exists() and "several sequences in one row" in capsys.readouterr().err


def test_a_reference_that_the_recorded_program_wraps_is_said_to_have_none_of_its_names(text, tmp_path):
    """The number of a layer is no name of the whole: a list of layers does not run."""
    from transformers import LlamaModel

    model = torch.nn.Sequential(LlamaModel.from_pretrained(text)).eval()
    with tracekit_torch.record(model, tmp_path / "a.h5"), torch.no_grad():
        model(torch.tensor([[4, 9, 8, 6]]))
    with pytest.raises(tracekit.TraceError, match="no module of that name that runs"):
        tracekit.audit(tmp_path / "a.h5", by=tracekit_torch.by_reference(str(text)))
