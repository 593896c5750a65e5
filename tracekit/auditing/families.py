"""What a checkpoint's `config.json` declares of a decoder: how its layers are put together, and with which numbers.

Only families whose layers are known are in here, by their `model_type`. A setting that changes what a layer computes
and that is not read here means that the layer is not known: it is not recomputed, and nothing is said of it.
Source of the families: their `modeling_*.py` in transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tracekit.auditing.activations import ACTIVATIONS
from tracekit.auditing.operations.attention_core import Core
from tracekit.auditing.rotary import Rotary
from tracekit.trace import Json


class Norms(Enum):
    """Where a layer's norms stand."""

    BEFORE = "before each block"  # Llama
    AROUND = "before and after each block"  # Gemma 2
    AFTER = "after each block"  # OLMo 2


@dataclass(frozen=True)
class Family:
    """How the layers of one `model_type` are put together."""

    norms: Norms = Norms.BEFORE
    normed_heads: bool = False
    """Queries and keys are normed before they are rotated."""
    plus_one: bool = False
    """The norms multiply by 1 + weight."""
    embedding_scaled: bool = False
    """Embeddings are multiplied by the root of their width."""
    settings: frozenset[str] = frozenset()
    """What is read of `config.json` beyond `READ`."""


WINDOWED = frozenset({"sliding_window", "use_sliding_window", "layer_types", "max_window_layers"})
CAPPED = frozenset({"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"})
GRANITE = frozenset({"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"})
EXPERTS = frozenset(
    {
        *("num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob", "decoder_sparse_step"),
        *("moe_intermediate_size", "mlp_only_layers", "shared_expert_intermediate_size", "router_jitter_noise"),
    }
)
"""Settings of experts, which no recipe recomputes: what they give is taken as recorded."""
FAMILIES = {
    "llama": Family(),
    "mistral": Family(settings=WINDOWED),
    "qwen2": Family(settings=WINDOWED),
    "cosyvoice3": Family(settings=WINDOWED),
    "qwen3": Family(normed_heads=True, settings=WINDOWED),
    "smollm3": Family(settings=WINDOWED | {"no_rope_layers", "no_rope_layer_interval"}),
    "gemma": Family(plus_one=True, embedding_scaled=True),
    "gemma2": Family(Norms.AROUND, plus_one=True, embedding_scaled=True, settings=WINDOWED | CAPPED),
    "gemma3_text": Family(
        Norms.AROUND,
        normed_heads=True,
        plus_one=True,
        embedding_scaled=True,
        settings=WINDOWED | CAPPED | {"sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq"},
    ),
    "phi3": Family(settings=WINDOWED | {"original_max_position_embeddings"}),
    "olmo2": Family(Norms.AFTER, normed_heads=True),
    "olmo3": Family(Norms.AFTER, normed_heads=True, settings=WINDOWED),
    "granite": Family(settings=GRANITE),
    "mixtral": Family(settings=WINDOWED | EXPERTS),
    "qwen3_moe": Family(normed_heads=True, settings=WINDOWED | EXPERTS),
    "qwen2_moe": Family(settings=WINDOWED | EXPERTS),
}
"""`model_type` -> how its layers are put together."""

READ = frozenset(
    {
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("intermediate_size", "vocab_size", "rms_norm_eps", "hidden_act", "hidden_activation"),
        *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "max_position_embeddings"),
        *("attention_bias", "mlp_bias", "tie_word_embeddings"),
    }
)
"""Settings that every recipe reads, or that its parameters and widths follow from."""
WITHOUT_EFFECT = frozenset(
    {
        *("attention_dropout", "attn_implementation", "_attn_implementation", "attn_implementation_internal"),
        *("_attn_implementation_autoset", "cache_implementation", "output_attentions", "experts_implementation"),
        *("router_aux_loss_coef", "initializer_range", "temperature", "original_max_position_embeddings"),
        *("base_model_tp_plan", "layer_norm_eps", "norm_eps"),
    }
)
"""Settings that say nothing of what a layer of these families computes, though their names might."""
TELLING = re.compile(
    "scal|mult|norm|cap|clip|rope|rotary|position|bias|attn|attention|layer|resid|gate|sink|window|chunk|expert|moe"
    "|factor|parallel|quant|interleav|lora|adapter|theta|pattern|bidirectional|causal"
)
"""What is in the name of a setting that may change what a layer computes."""


def family_of(declared: Json) -> Family | None:
    """The family that a `config.json` names; None where it names none, or none that is known."""
    return FAMILIES.get(str(declared.get("model_type")))


def unread_setting(declared: Json) -> str | None:
    """The first setting that may change what a layer computes and that no recipe of the family reads."""
    family = family_of(declared)
    known = READ | WITHOUT_EFFECT | (family.settings if family is not None else frozenset())
    told = (name for name, value in declared.items() if value and TELLING.search(name) and name not in known)
    return next(told, None)


def unstated_setting(declared: Json) -> str | None:
    """A setting that the family's layers depend on and that is not declared: its default is the program's."""
    family = family_of(declared)
    needed = CAPPED if family is not None and family.settings >= CAPPED else frozenset()
    return min((name for name in needed if name not in declared), default=None)


def activation(declared: Json) -> str | None:
    """The gate's activation; None where it is not known."""
    family = family_of(declared)
    usual = "gelu_pytorch_tanh" if family is not None and family.embedding_scaled else "silu"
    said = str(declared.get("hidden_activation") or declared.get("hidden_act") or usual)
    if declared.get("model_type") == "gemma" and said == "gelu":
        said = "gelu_pytorch_tanh"  # the first Gemma checkpoints say gelu and mean this
    return said if said in ACTIVATIONS else None


def embedding_factor(declared: Json) -> float:
    """What embeddings are multiplied by before the first layer."""
    family = family_of(declared)
    if family is not None and family.embedding_scaled:
        return math.sqrt(float(declared.get("hidden_size") or 1.0))
    return float(declared.get("embedding_multiplier") or 1.0)


def residual_factor(declared: Json) -> float:
    """What a block's output is multiplied by before it is added to the stream."""
    return float(declared.get("residual_multiplier") or 1.0)


def logits_factor(declared: Json) -> tuple[float, float | None]:
    """What the head's output is multiplied by, and the soft cap that is then applied."""
    cap = declared.get("final_logit_softcapping")
    return 1.0 / float(declared.get("logits_scaling") or 1.0), float(cap) if cap else None


def declared_core(declared: Json, layer: int, positions: int = 0) -> Core | None:
    """The attention core that a `config.json` declares for a layer; None where its rotary embedding is not known, or
    not for as many positions."""
    heads = int(declared.get("num_attention_heads") or 0)
    if not heads or not (declared.get("head_dim") or declared.get("hidden_size")):
        return None
    head_dim = int(declared.get("head_dim") or int(declared["hidden_size"]) // heads)
    rotated = _is_rotated(declared, layer)
    try:
        rotary = declared_rotary(declared, head_dim, layer)
        rotary.frequencies()
        window = _declared_window(declared, layer)
        longest = int(declared.get("max_position_embeddings") or 1 << 62)
        if rotary.kind == "dynamic" and positions > longest:
            return None  # frequencies then depend on the length
    except (KeyError, TypeError, ValueError):
        return None
    cap = declared.get("attn_logit_softcapping")
    return Core(
        heads=heads,
        kv_heads=int(declared.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        rotary=rotary,
        scale=_scale(declared, head_dim),
        window=window,
        softcap=float(cap) if cap else None,
        rotate_queries=rotated,
        rotate_keys=rotated,
    )


def declared_rotary(declared: Json, head_dim: int, layer: int = 0) -> Rotary:
    """Rotary numbers of a `config.json` of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`):
    local and global layers may have their own."""
    kind = layer_kind(declared, layer)
    rope = declared.get("rope_parameters") or {}
    if kind is not None and isinstance(rope.get(kind), dict):
        rope = rope[kind]
    elif any(isinstance(value, dict) for value in rope.values()):
        raise KeyError("rope_parameters")  # of each kind of layer, and not of this one
    local, scaling = declared.get("rope_local_base_freq"), dict(declared.get("rope_scaling") or {})
    if local and kind == "sliding_attention" and not rope:
        return Rotary(float(local), head_dim)
    if scaling and kind == "sliding_attention" and not rope:
        raise KeyError("rope_scaling")  # of all layers or of the global ones alone
    scaling |= rope
    theta = float(scaling.pop("rope_theta", None) or declared.get("rope_theta") or 10000.0)
    partial = float(scaling.pop("partial_rotary_factor", None) or declared.get("partial_rotary_factor") or 1.0)
    return Rotary(theta, int(head_dim * partial), tuple(sorted(scaling.items())))


def _is_rotated(declared: Json, layer: int) -> bool:
    """Whether a layer has a rotary embedding. SmolLM3 leaves it out in some layers."""
    if "no_rope_layers" not in declared and "no_rope_layer_interval" not in declared:
        return declared.get("model_type") != "smollm3" or (layer + 1) % 4 != 0
    rotated: Any = declared.get("no_rope_layers")
    if isinstance(rotated, list) and layer < len(rotated):
        return bool(rotated[layer])
    return (layer + 1) % int(declared.get("no_rope_layer_interval") or 4) != 0


def _scale(declared: Json, head_dim: int) -> float:
    """Factor on the scores."""
    multiplier, scalar = declared.get("attention_multiplier"), declared.get("query_pre_attn_scalar")
    return float(multiplier) if multiplier else float(scalar or head_dim) ** -0.5


def layer_kind(declared: Json, layer: int) -> str | None:
    """`sliding_attention` or `full_attention`, as `layer_types` of a `config.json` says, or the pattern that the family
    had before there were such lists; None where all layers are alike."""
    kinds = declared.get("layer_types")
    if isinstance(kinds, list) and layer < len(kinds):
        return str(kinds[layer])
    model = declared.get("model_type")
    if model == "gemma2":
        return "full_attention" if layer % 2 else "sliding_attention"
    if model in ("gemma3_text", "olmo3"):
        usual = 6 if model == "gemma3_text" else 4
        pattern = int(declared.get("sliding_window_pattern") or declared.get("_sliding_window_pattern") or usual)
        return "sliding_attention" if (layer + 1) % pattern else "full_attention"
    return None


def _declared_window(declared: Json, layer: int) -> int | None:
    window = declared.get("sliding_window")
    if not window or declared.get("use_sliding_window") is False:
        return None
    kind = layer_kind(declared, layer)
    if kind is not None:
        return int(window) if kind == "sliding_attention" else None
    model = declared.get("model_type")
    if model in ("qwen2", "qwen3", "cosyvoice3"):
        if not declared.get("use_sliding_window"):
            return None
        return int(window) if layer >= int(declared["max_window_layers"]) else None
    if model in ("mistral", "mixtral", "phi3"):
        return int(window)
    if not declared.get("use_sliding_window"):
        return None
    raise KeyError("layer_types")  # which layers have a window is not said


ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "rotary_emb"})
HEAD_NORMS = frozenset({"q_norm", "k_norm"})
FEED_FORWARD = frozenset({"gate_proj", "up_proj", "down_proj", "gate_up_proj"})
LAYER_NORMS = {
    Norms.BEFORE: frozenset({"input_layernorm", "post_attention_layernorm"}),
    Norms.AROUND: frozenset(
        {
            *("input_layernorm", "post_attention_layernorm"),
            *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        }
    ),
    Norms.AFTER: frozenset({"post_attention_layernorm", "post_feedforward_layernorm"}),
}


def beyond_recipe(family: Family, part: str, names: Iterable[str]) -> str | None:
    """The first of a layer's parameters or modules (`self_attn.sinks`) that the recipe of a part of the layer does not
    reckon with; `part` is `self_attn`, `mlp`, or empty for the layer itself."""
    known = {
        "self_attn": ATTENTION | (HEAD_NORMS if family.normed_heads else frozenset()),
        "mlp": FEED_FORWARD,
        "": LAYER_NORMS[family.norms] | {"self_attn", "mlp", "block_sparse_moe"},
    }[part]
    for name in names:
        head, *rest = name.split(".")
        if part and (head != part or not rest):
            continue
        module = rest[0] if part else head
        if module not in known or (part and len(rest) > 1 and rest[1] not in ("weight", "bias", "inv_freq")):
            return name
    return None
