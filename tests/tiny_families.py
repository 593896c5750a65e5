"""Tiny random models of many families, made by transformers from their configurations, and faults in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tracekit_torch
import transformers

import tracekit
from tracekit.trace import Trace

SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 8}
PROMPT = [[72, 101, 50, 90, 80, 12, 70, 33, 91, 41]]


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", HEADS),
    "mistral": ("MistralConfig", HEADS | {"sliding_window": 6}),
    "qwen2": ("Qwen2Config", _rope(1e6)),
    "qwen3": ("Qwen3Config", HEADS | _rope(1e6)),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 4}),
    "gemma": ("GemmaConfig", HEADS),
    "gemma2": ("Gemma2Config", HEADS | {"sliding_window": 6, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextConfig", HEADS | {"sliding_window": 6, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3Config", {"sliding_window": 6}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 4.0}),
    "mixtral": ("MixtralConfig", HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3moe": ("Qwen3MoeConfig", HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "qwen3next": (
        "Qwen3NextConfig",
        HEADS
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_hidden_layers": 4}
        | {"shared_expert_intermediate_size": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2}
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ),
    "cohere": ("CohereConfig", {}),
    "cohere2": ("Cohere2Config", {"sliding_window": 6, "head_dim": 8}),
    "stablelm": ("StableLmConfig", {"partial_rotary_factor": 0.5}),
    "glm": ("GlmConfig", HEADS),
    "olmo": ("OlmoConfig", {"clip_qkv": 1.0}),
    "starcoder2": ("Starcoder2Config", {}),
    "nemotron": ("NemotronConfig", {}),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),
    "gptoss": ("GptOssConfig", HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gptneox": ("GPTNeoXConfig", {}),
    "falcon": ("FalconConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4}),
    "deepseekv3": (
        "DeepseekV3Config",
        {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16}
        | {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8},
    ),
}
"""Name -> class of its configuration, and what differs from `SIZES`."""

_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
UNTUNED: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo3": ("Olmo3Config", {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}),
    "exaone4": ("Exaone4Config", HEADS | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}),
    "apertus": ("ApertusConfig", {}),
    "hunyuanmoe": ("HunYuanMoEV1Config", HEADS | {"num_experts": 4, "moe_topk": 2}),
    "erniemoe": (
        "Ernie4_5_MoeConfig",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1}
        | {"moe_num_shared_experts": 1},
    ),
    "granitemoe": (
        "GraniteMoeConfig", _EXPERTS | {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 4.0}
    ),
    "phimoe": ("PhimoeConfig", _EXPERTS | {"sliding_window": 6}),
    "minimax": (
        "MiniMaxConfig", HEADS | _EXPERTS | {"layer_types": ["linear_attention", "full_attention"], "block_size": 8}
    ),
    "helium": ("HeliumConfig", HEADS),
    "persimmon": ("PersimmonConfig", {}),
    "gptj": ("GPTJConfig", _GPT | {"rotary_dim": 4}),
    "xglm": ("XGLMConfig", {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
    "biogpt": ("BioGptConfig", {}),
    "jetmoe": ("JetMoeConfig", _EXPERTS | {"kv_channels": 8}),
    "falconh1": (
        "FalconH1Config",
        HEADS
        | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
        | {"mamba_chunk_size": 8},
    ),
    "glm4moe": (
        "Glm4MoeConfig",
        HEADS
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
        | {"n_group": 2, "topk_group": 1},
    ),
    "nanochat": ("NanoChatConfig", HEADS),
    "diffllama": ("DiffLlamaConfig", {}),
    "lfm2moe": (
        "Lfm2MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_dense_layers": 1}
        | {"layer_types": ["conv", "full_attention"]},
    ),
    "gptbigcode": ("GPTBigCodeConfig", _GPT),
    "arcee": ("ArceeConfig", {}),
    "seedoss": ("SeedOssConfig", HEADS),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    "flexolmo": ("FlexOlmoConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "dots1": (
        "Dots1Config",
        HEADS
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
        | {"n_group": 2, "topk_group": 1, "n_shared_experts": 1},
    ),
    "qwen2moe": (
        "Qwen2MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 16},
    ),
    "gptneo": (
        "GPTNeoConfig",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 6},
    ),
    "codegen": ("CodeGenConfig", _GPT | {"rotary_dim": 4}),
    "vaultgemma": ("VaultGemmaConfig", HEADS | {"sliding_window": 6, "query_pre_attn_scalar": 16}),
    "glm4": ("Glm4Config", HEADS),
    "minicpm3": (
        "MiniCPM3Config",
        {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16}
        | {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8},
    ),
    "bitnet": ("BitNetConfig", {}),
    "jais2": ("Jais2Config", {}),
    "cwm": ("CwmConfig", HEADS | {"sliding_window": 6}),
    "doge": ("DogeConfig", {}),
    "bamba": (
        "BambaConfig",
        {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
        | {"attn_layer_indices": [1]},
    ),
    "granitemoeshared": (
        "GraniteMoeSharedConfig",
        _EXPERTS
        | {"shared_intermediate_size": 16, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}
        | {"logits_scaling": 4.0},
    ),
    "gpt1": ("OpenAIGPTConfig", _GPT),
    "ministral": ("MinistralConfig", HEADS | {"sliding_window": 6}),
}  # fmt: skip
"""Families that the mutants alone are drawn of: no limit, edit or recipe was made with one of them at hand."""

_STATE = {"state_size": 8}
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", _STATE),
    "falconmamba": ("FalconMambaConfig", _STATE),
    "mamba2": ("Mamba2Config", _STATE | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}),
    "rwkv": ("RwkvConfig", {"attention_hidden_size": 32}),
    "recurrentgemma": (
        "RecurrentGemmaConfig",
        {"lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "jamba": (
        "JambaConfig",
        {"num_experts": 2, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"mamba_d_state": 8, "mamba_dt_rank": 4},
    ),
}
"""Families that keep a state, which has no positions, or a state beside keys."""

_CODERS = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
_CODERS |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 3}
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": (
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4} | {"decoder_start_token_id": 3},
    ),
    "bart": ("BartConfig", _CODERS),
    "whisper": (
        "WhisperConfig",
        _CODERS
        | {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 64}
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
    ),
}
"""Families that read an input with an encoder; Whisper's are features `[batch, 16, 40]`."""


def _loader(name: str) -> str:
    speech, seq2seq = "AutoModelForSpeechSeq2Seq", "AutoModelForSeq2SeqLM"
    return {"whisper": speech}.get(name, seq2seq if name in ENCODER_DECODERS else "AutoModelForCausalLM")


def make(name: str, folder: Path, **settings: Any) -> Path:
    """A checkpoint of a family, scaled so that attention and norms matter."""
    torch.manual_seed(11)
    kind, more = (FAMILIES | UNTUNED | RECURRENT | ENCODER_DECODERS)[name]
    own = name in ENCODER_DECODERS  # which have names of their own for the sizes of layers
    sizes = {key: size for key, size in SIZES.items() if not own or key.endswith("_id") or key == "vocab_size"}
    model = getattr(transformers, _loader(name)).from_config(getattr(transformers, kind)(**sizes | more | settings))
    with torch.no_grad():
        for key, value in model.float().named_parameters():
            if value.dim() >= 2:
                scale = 0.5 if "embed" in key or "wte" in key else value.shape[-1] ** -0.5
                value.copy_(torch.randn_like(value) * scale)
            elif "norm" in key.lower() or "ln_" in key:
                value.add_(0.2 * torch.randn_like(value))
            elif not key.endswith(("A_log", "dt_bias", "D")):
                value.copy_(0.2 * torch.randn_like(value))
    model.save_pretrained(folder)
    return folder


def load(folder: Path, attention: str | None = "eager", dtype: str = "float32", name: str = "") -> Any:
    """The model of a folder; `name` is its family, where that is no decoder."""
    return (
        getattr(transformers, _loader(name))
        .from_pretrained(folder, attn_implementation=attention, dtype=getattr(torch, dtype))
        .eval()
    )


def run(model: Any, out: Path, **options: Any) -> Trace:
    """A trace of one greedy generation of 10 tokens."""
    with tracekit_torch.record(model, out, **options):
        model.generate(torch.tensor(PROMPT), max_new_tokens=10, do_sample=False, eos_token_id=None)
    return tracekit.open(out)


def judged_by_reference(folder: Path, out: Path, *faults: Callable[[Any], None]) -> Any:
    """The audit by the reference program of a recorded run of the model in `folder` with these faults."""
    model = load(folder)
    for fault in faults:
        fault(model)
    with run(model, out) as trace:
        return tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
