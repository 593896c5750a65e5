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

from benchmarks.fault_bench.setups import SHAPES

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

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {**DECODER, "model_type": "qwen2", "rms_norm_eps": 1e-5},
    "mistral": {**DECODER, "model_type": "mistral", "rms_norm_eps": 1e-5, "sliding_window": 8},
    "encoder": {**COMMON, "model_type": "bert", "layer_norm_eps": SHAPES["encoder"].eps},
}
"""Fields of `config.json`."""


def make(key: str, folder: Path) -> None:
    """Write the model `key` and a tokenizer into `folder`."""
    fields = dict(FAMILIES[key])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model = (AutoModel if key == "encoder" else AutoModelForCausalLM).from_config(config)
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
            if "norm" in name.lower() or name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
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
    kind = AutoModel if folder.name == "encoder" else AutoModelForCausalLM
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
