"""Make a tiny Llama or Qwen2 of seeded random weights, as a Hugging Face folder with a tokenizer.

The weights are scaled so that the distributions have peaks, as a trained model's have; biases and norm weights, which
transformers sets to zero and one, are random too, so that leaving one out changes the tokens.

    python scripts/make_tiny_model.py out/tiny --architecture qwen2 --untied --shards 3 --config-style 4
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

END = "<|end|>"
TEXT = """The history of Rome began when a shepherd found two brothers by the river. They grew, they quarrelled, and one
of them drew a line in the earth and called it a wall. The other laughed and leapt over it; so the story of the city
began with a line and the crossing of a line, and the rest of the history is the history of lines and crossings."""
"""What the tokenizer's merges are learnt from."""
ROPE_SCALING: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    # An original length of 32 puts all three branches (kept, blended, divided) inside a head of 16.
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@dataclass(frozen=True)
class TinyModel:
    """What to make. Everything random follows from `seed`."""

    architecture: str = "llama"
    """`llama` or `qwen2`."""
    seed: int = 0
    layers: int = 3
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None
    """None: hidden / heads."""
    tied: bool = True
    biased: bool = False
    """Llama only: biases in attention and MLP. Qwen2 always has its three."""
    rope: str = "default"
    """A key of ROPE_SCALING."""
    rope_theta: float = 10_000.0
    shards: int = 1
    """About how many safetensors files."""
    config_style: int = 5
    """The transformers version whose `config.json` to write, 4 or 5."""


def make_tiny_model(folder: Path, model: TinyModel) -> Path:
    """Write `config.json`, `generation_config.json`, `tokenizer.json` and safetensors in float32; gives the folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = train_tokenizer()
    config = AutoConfig.for_model(model.architecture, **settings(model, tokenizer))
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(network, model.seed)
    size = sum(parameter.numel() for parameter in network.parameters()) * 4
    network.save_pretrained(folder, max_shard_size=size // model.shards + 1 if model.shards > 1 else "1GB")
    save_tokenizer(tokenizer, folder)
    if model.config_style == 4:
        write_old_config(folder / "config.json")
    return folder


def settings(model: TinyModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of `config.json` that are not transformers' defaults."""
    end = tokenizer.token_to_id(END)
    chosen: dict[str, Any] = {
        "hidden_size": model.hidden,
        "intermediate_size": 2 * model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 512,
        "rope_parameters": ROPE_SCALING[model.rope] | {"rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tied,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    if model.head_dim is not None:
        chosen["head_dim"] = model.head_dim
    if model.architecture == "llama":
        chosen |= {"attention_bias": model.biased, "mlp_bias": model.biased, "rms_norm_eps": 1e-5}
    return chosen


def randomise(network: torch.nn.Module, seed: int) -> None:
    """Every parameter from one generator, in the order of the state dict."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith(".bias") or "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE with 300 tokens: the 256 bytes, one special token, and merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END)
    wrapped.save_pretrained(folder)


def write_old_config(path: Path) -> None:
    """Rewrite `config.json` as transformers 4 wrote it: rotary settings and the dtype's name at the top level."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    config["transformers_version"] = "4.46.0"
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architecture", choices=["llama", "qwen2"], default="llama")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--untied", action="store_true", help="a logits head of its own")
    parser.add_argument("--biased", action="store_true", help="llama: biases in attention and MLP")
    parser.add_argument("--rope", choices=list(ROPE_SCALING), default="default")
    parser.add_argument("--rope-theta", type=float, default=10_000.0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--config-style", type=int, choices=[4, 5], default=5)
    options = vars(parser.parse_args())
    folder = options.pop("folder")
    print(make_tiny_model(folder, TinyModel(tied=not options.pop("untied"), **options)))


if __name__ == "__main__":
    main()
