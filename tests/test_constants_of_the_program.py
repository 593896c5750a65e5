"""A constant that a model turns into a tensor of its own dtype is rounded once; all that it goes into is off by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import tracekit_torch

import tracekit

LENGTH = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T5Gemma multiplies its embeddings by `torch.tensor(width**0.5, dtype=...)`."""
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration, T5GemmaModuleConfig

    half = T5GemmaModuleConfig(
        vocab_size=160, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(1)
    model = T5GemmaForConditionalGeneration(T5GemmaConfig(encoder=half, decoder=half, vocab_size=160)).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.3 * torch.randn_like(value))
    made = tmp_path_factory.mktemp("t5gemma")
    model.save_pretrained(made)
    return made


@pytest.mark.parametrize(
    ("dtype", "times"),
    [(torch.float32, 1.0), (torch.float32, 1.0001), (torch.bfloat16, 1.0), (torch.bfloat16, 1.03)],
)
def test_it_is_no_fault_and_another_one_is(folder: Path, tmp_path: Path, dtype: torch.dtype, times: float) -> None:
    from transformers import T5GemmaForConditionalGeneration

    model = T5GemmaForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    encoder = model.get_encoder()
    if times != 1.0:
        encoder.layers[0].register_forward_pre_hook(lambda _, args: (args[0] * times, *args[1:]))
    ids = torch.randint(1, 160, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    found = tracekit.audit(tmp_path / "run.h5", folder, by=tracekit_torch.by_reference(str(folder)))
    at = "model.encoder.layers.0.pre_self_attn_layernorm:in"
    assert [culprit.site for culprit in found.culprits] == ([] if times == 1.0 else [at]), found.text
