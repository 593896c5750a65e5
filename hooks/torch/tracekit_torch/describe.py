"""What a trace says of the program: versions, device, dtype, the model's hyper-parameters, sampling settings."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tracekit.inspection.settings import EPS_SETTINGS
from tracekit.sampling.processors import GENERATE, plain_filter_setting
from tracekit.trace import Json
from tracekit_torch.memory import WORDS

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

HYPER_PARAMETERS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    *EPS_SETTINGS,
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "hidden_act",
    "tie_word_embeddings",
    "max_position_embeddings",
    "sliding_window",
    "use_sliding_window",
    "attention_bias",
    "mlp_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Names of `config.json` that both sides of a port understand."""
LENGTHS = ("max_new_tokens", "max_length")


def versions() -> Json:
    """Versions of what the numbers depend on."""
    found: Json = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("transformers", "tracekit", "numpy"):
        if name in sys.modules:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found


def device_and_dtype(model: nn.Module) -> Json:
    """Where the parameters are, and the floating-point format that most of them have."""
    counts: dict[torch.dtype, int] = {}
    device = "cpu"
    for value in model.parameters():
        device = value.device.type
        if value.is_floating_point():
            counts[value.dtype] = counts.get(value.dtype, 0) + value.numel()
    dtype = max(counts, key=lambda key: counts[key]) if counts else None
    return {"device": device, "dtype": None if dtype is None else WORDS.get(dtype, str(dtype))}


def model_config(model: nn.Module) -> Json:
    """The hyper-parameters, in the words of a Hugging Face `config.json`, as the model in memory has them."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return {"class": type(model).__name__}
    everything = config.to_dict()
    rope = everything.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        # transformers 5 keeps theta and scaling together.
        everything["rope_theta"] = rope["rope_theta"]
        scaled = {name: value for name, value in rope.items() if name != "rope_theta"}
        everything["rope_scaling"] = None if scaled.get("rope_type", "default") == "default" else scaled
    found = {name: plain(everything[name]) for name in HYPER_PARAMETERS if everything.get(name) is not None}
    found["class"] = type(model).__name__
    heads = found.get("num_attention_heads")
    if heads:
        found.setdefault("num_key_value_heads", heads)
        found.setdefault("head_dim", found.get("hidden_size", 0) // heads)
    attention = getattr(config, "_attn_implementation", None)
    return found | ({"attn_implementation": attention} if isinstance(attention, str) else {})


def checkpoint(model: nn.Module, cwd_is_known: bool = True) -> str | None:
    """Where the weights came from, as far as the model knows: a path, absolute unless the trace says in which folder
    the program ran; of a name on the Hugging Face hub the snapshot's folder, or the name where that is not found."""
    config: Any = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    if Path(name).exists():
        return name if cwd_is_known else str(Path(name).resolve())
    return _snapshot(name, getattr(config, "_commit_hash", None)) or name


def _snapshot(name: str, revision: Any) -> str | None:
    """The folder of the hub's cache that holds a model; nothing is fetched."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "config.json", revision=revision if isinstance(revision, str) else None)
    except Exception:  # no hub's library, or a name that is none of the hub's
        return None
    return str(Path(found).parent) if isinstance(found, str) else None


def sampling(config: Any) -> Json:
    """The settings of a transformers GenerationConfig that have an effect, by its own names."""
    found: Json = {"do_sample": bool(config.do_sample)}
    for each in GENERATE:
        value = plain(getattr(config, each.setting, None))
        if plain_filter_setting(each.setting, value) is not None and (config.do_sample or not each.sampled):
            found[each.setting] = value
    for name in LENGTHS:
        value = plain(getattr(config, name, None))
        if value is not None:
            found[name] = value
    for bound in ("max", "min"):
        if f"{bound}_new_tokens" in found:
            found.pop(f"{bound}_length", None)  # follows from it, differently for each prompt
    eos = plain(config.eos_token_id)
    if eos is not None:
        found["eos_token_id"] = eos if isinstance(eos, list) else [eos]
    return found


def plain(value: Any) -> Any:
    """`value` as JSON can say it; tensors become lists, what cannot be said becomes its text."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    # Where an object lies in memory is another place in each run.
    return value if value is None or isinstance(value, (bool, int, float, str)) else _ADDRESS.sub("", str(value))
