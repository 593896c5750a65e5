"""Make a tiny random Llama or Qwen2 as a Hugging Face folder, for tests and for the sample traces.

    python scripts/make_tiny_model.py llama out/tiny-llama [--tied] [--shards] [--old-config] [--rope llama3]

Weights are drawn so that logits are peaked and survivors few, as those of a trained model; the tokenizer is a
byte-level BPE without merges.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 320
STOP = "<|end|>"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=["llama", "qwen2"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tied", action="store_true", help="the head is the embedding matrix")
    parser.add_argument("--shards", action="store_true", help="several safetensors files and an index")
    parser.add_argument("--old-config", action="store_true", help="config.json as transformers 4 writes it")
    parser.add_argument("--rope", choices=["default", "linear", "llama3"], default="default")
    parser.add_argument("--layers", dest="num_hidden_layers", type=int, default=3)
    options = parser.parse_args()
    make(**vars(options))


def make(
    family: str,
    folder: Path,
    seed: int = 0,
    tied: bool = False,
    shards: bool = False,
    old_config: bool = False,
    rope: str = "default",
    **settings: Any,
) -> None:
    """Write the model and its tokenizer into `folder`; `settings` are further fields of `config.json`."""
    torch.manual_seed(seed)
    model = build(family, tied, rope, settings)
    model.save_pretrained(folder, **({"max_shard_size": "200KB"} if shards else {}))
    tokenizer().save_pretrained(folder)
    if old_config:
        age_config(folder / "config.json")


def build(family: str, tied: bool, rope: str, more: dict[str, Any]) -> torch.nn.Module:
    rope_parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if rope == "llama3":
        rope_parameters |= LLAMA3
    elif rope == "linear":
        rope_parameters |= {"rope_type": "linear", "factor": 2.0}
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "rope_parameters": rope_parameters,
        "bos_token_id": None,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
        **more,
    }
    model: torch.nn.Module
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**settings))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**settings))
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.ndim == 2:
                # Wide enough that attention looks at something and logits are peaked.
                scale = 1.0 if "embed" in name or "head" in name else 1.5
                parameter.normal_(0.0, scale / parameter.shape[1] ** 0.5)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.5)
    with torch.no_grad():
        head = model.get_output_embeddings().weight  # type: ignore[operator, union-attr]
        head.mul_(3.0)
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    for index in range(len(vocabulary), VOCABULARY - 1):
        vocabulary[f"<|{index}|>"] = index
    vocabulary[STOP] = VOCABULARY - 1
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=STOP, pad_token=STOP)


def age_config(path: Path) -> None:
    """transformers 4 kept the rotary settings and the dtype under other names."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype", "float32")
    config.pop("layer_types", None)
    path.write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
