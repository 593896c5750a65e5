"""The models: SmolLM2 from its folder, and small ones with drawn weights, made once into a scratch folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.fault_bench.setups import ENCODERS, SHAPES

logging.disable_progress_bar()
ROOT = Path(__file__).parent.parent.parent
VOCABULARY = 320

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
DECODER = {**COMMON, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 319, "pad_token_id": 319}

LLAMA3: dict[str, Any] = {
    "kind": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    """Rotary settings as `config.json` has them."""
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


LLAMA = {**DECODER, "model_type": "llama", "rms_norm_eps": 1e-5}
LONG = [float(factor) for factor in (1, 2, 3, 5, 8, 11, 14, 20)]
"""Factors of LongRoPE for long prompts, one a frequency."""

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {**DECODER, "model_type": "qwen2", "rms_norm_eps": 1e-5},
    "mistral": {**DECODER, "model_type": "mistral", "rms_norm_eps": 1e-5, "sliding_window": 8},
    "encoder": {**COMMON, "model_type": "bert", "layer_norm_eps": SHAPES["encoder"].eps},
    "roberta": {**COMMON, "model_type": "roberta", "pad_token_id": 1},
    "gemma2": {
        **DECODER,
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "attn_logit_softcapping": 5.0,
    },
    "qwen3": {**DECODER, "model_type": "qwen3", "head_dim": 16},
    "llama": LLAMA,
    "gemma": {**DECODER, "model_type": "gemma", "head_dim": 16, "rms_norm_eps": 1e-6},
    "phi3": {**DECODER, "model_type": "phi3", "rms_norm_eps": 1e-5},
    "stablelm": {**DECODER, "model_type": "stablelm", "rope_parameters": rope("default", partial_rotary_factor=0.5)},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 319,
        "eos_token_id": 319,
    },
    "bloom": {
        "model_type": "bloom",
        "vocab_size": VOCABULARY,
        "hidden_size": 96,
        "n_layer": 3,
        "n_head": 6,
        "bos_token_id": 319,
        "eos_token_id": 319,
    },
    "llama-8-heads": {**LLAMA, "num_attention_heads": 8},
    "llama3-rope": {**LLAMA, "rope_parameters": rope(**LLAMA3)},
    "llama-linear": {**LLAMA, "rope_parameters": rope("linear", factor=8.0)},
    "llama-longrope": {
        **LLAMA,
        "rope_parameters": rope(
            "longrope", short_factor=[1.0] * 8, long_factor=LONG, original_max_position_embeddings=256, factor=2.0
        ),
    },
}
"""Fields of `config.json`."""


def make(key: str, folder: Path) -> None:
    """Write the model `key` and a tokenizer into `folder`."""
    fields = dict(FAMILIES[key])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model = (AutoModel if key in ENCODERS else AutoModelForCausalLM).from_config(config)
    draw_weights(model)
    model.save_pretrained(folder)
    tiny_models().tokenizer().save_pretrained(folder)
    if key == "qwen2":
        lay_out(model, folder)


def lay_out(model: Any, folder: Path) -> None:
    """The same weights in other files: several shards, and one that torch wrote."""
    shards, binary = (folder.with_name(f"{folder.name}-{word}") for word in ("shards", "bin"))
    model.save_pretrained(shards, max_shard_size="200KB")
    model.config.save_pretrained(binary)
    model.generation_config.save_pretrained(binary)
    torch.save(model.state_dict(), binary / "pytorch_model.bin")
    for other in (shards, binary):
        tiny_models().tokenizer().save_pretrained(other)


def draw_weights(model: nn.Module) -> None:
    """Weights like a trained model's: attention sees something, logits are peaked, norms are not 1, biases not 0."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and ("norm" in name.lower() or ".ln_" in name):
                parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.normal_(0.0, 0.2)
            elif parameter.ndim == 2:
                scale = 1.0 if "embed" in name or "head" in name or "wte" in name else 1.5
                parameter.normal_(0.0, scale / parameter.shape[1] ** 0.5)
            else:
                parameter.normal_(0.0, 0.5)
        if head is not None:
            head.weight.mul_(3.0)


def load(folder: Path, dtype: str) -> Any:
    """The model of a folder, ready to run."""
    kind = AutoModel if folder.name in ENCODERS else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def tiny_models() -> ModuleType:
    """scripts/make_tiny_model.py, which is no part of a package."""
    name = "make_tiny_model"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
