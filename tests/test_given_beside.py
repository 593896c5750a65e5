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
