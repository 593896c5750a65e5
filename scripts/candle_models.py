"""Models of candle-transformers that record themselves, against transformers' own.

    python -m scripts.candle_models out/candle-models [MODEL...] [--candle 0.9.2]

Takes the model files from cargo's registry, changes their `use` lines and nothing else, and builds one program of them
in the workspace's target folder. Makes a tiny random checkpoint for each model, runs both sides from the same prompts,
greedy and sampled, diffs and audits, and prints a table: lines changed, verdict, true difference, sites audited.
With `--candle`, all of candle is of that version, and is built in FOLDER; not every model is in each.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tracekit_cli.main import group

import tracekit
from scripts import candle_patch

ROOT = Path(__file__).resolve().parent.parent
RUST = ROOT / "hooks" / "rust"
VERSION = "0.11.0"
"""Of candle-transformers, beside the candle that the workspace is locked to."""
OWN_CANDLE = '"0.11.1"'
"""Which candle that is, as `candle-models/main.rs` says it."""


def with_cache(model: str, kind: str, load: str = "load", cache: str = "Cache") -> str:
    """How a model is made whose cache is a thing of its own."""
    return (
        f"{{{{ let config = config.into_config(false);"
        f" let mut cache = {model}::{cache}::new(true, vb.dtype(), &config, vb.device())?;"
        f" let model = {model}::{kind}::{load}{'(vb, &config)' if load == 'load' else '(&config, vb)'}?;"
        f" Box::new(move |ids: &candle::Tensor, at: usize| model.forward(ids, at, &mut cache)) }}}}"
    )


# Model file, and how it is made from `config` (its `Config`, read from config.json) and `vb`.
LOADERS = {
    "llama": ("llama::LlamaConfig", with_cache("llama", "Llama")),
    "qwen2": ("qwen2::Config", "qwen2::ModelForCausalLM::new(&config, vb)?"),
    "qwen3": ("qwen3::Config", "qwen3::ModelForCausalLM::new(&config, vb)?"),
    "mistral": ("mistral::Config", "mistral::Model::new(&config, vb)?"),
    "gemma": ("gemma::Config", "gemma::Model::new(false, &config, vb)?"),
    "phi3": ("phi3::Config", "phi3::Model::new(&config, vb)?"),
    "gemma2": ("gemma2::Config", "gemma2::Model::new(false, &config, vb)?"),
    "gemma3": ("gemma3::Config", "gemma3::Model::new(false, &config, vb)?"),
    "starcoder2": ("starcoder2::Config", "starcoder2::Model::new(&config, vb)?"),
    "olmo": ("olmo::Config", "olmo::Model::new(&config, vb)?"),
    "olmo2": ("olmo2::Config", "olmo2::Model::new(&config, vb)?"),
    "stable_lm": ("stable_lm::Config", "stable_lm::Model::new(&config, vb)?"),
    "mixtral": ("mixtral::Config", "mixtral::Model::new(&config, vb)?"),
    "qwen2_moe": ("qwen2_moe::Config", "qwen2_moe::Model::new(&config, vb)?"),
    "qwen3_moe": ("qwen3_moe::Config", "qwen3_moe::ModelForCausalLM::new(&config, vb)?"),
    "granite": ("granite::GraniteConfig", with_cache("granite", "Granite")),
    "granitemoehybrid": (
        "granitemoehybrid::GraniteMoeHybridConfig",
        with_cache("granitemoehybrid", "GraniteMoeHybrid", cache="GraniteMoeHybridCache"),
    ),
    "helium": ("helium::Config", "helium::Model::new(&config, vb)?"),
    "glm4_new": ("glm4_new::Config", "glm4_new::ModelForCausalLM::new(&config, vb)?"),
    "smollm3": ("smollm3::Config", "smollm3::ModelForCausalLM::new(&config, vb)?"),
    "deepseek2": ("deepseek2::DeepSeekV2Config", "deepseek2::DeepSeekV2::new(&config, vb)?"),
    "recurrent_gemma": ("recurrent_gemma::Config", 'recurrent_gemma::Model::new(&config, vb.pp("model"))?'),
    "lfm2": ("lfm2::Lfm2Config", with_cache("lfm2", "Model", load="new")),
    "mamba2": (
        "mamba2::Config",
        "{{ let mut state = mamba2::State::new(1, &config, vb.dtype(), vb.device())?;"
        ' let model = mamba2::Model::new(&config, vb.pp("backbone"))?;'
        " Box::new(move |ids: &candle::Tensor, _: usize| {{ let last = ids.dim(1)? - 1; if last == 0 {{"
        " return model.forward(&ids.squeeze(1)?, &mut state); }}"
        " model.forward_prefill(ids, &mut state, 8)?.narrow(1, last, 1) }}) }}",
    ),
    "marian": (
        "marian::Config",
        "{{ let mut model = marian::MTModel::new(&config, vb)?;"
        " let source = crate::SOURCE.get().map_or(&[][..], Vec::as_slice); tracekit::encoder(source.len())?;"
        " let encoded = model.encoder().forward(&candle::Tensor::new(source, &candle::Device::Cpu)?.unsqueeze(0)?, 0)?;"
        " Box::new(move |ids: &candle::Tensor, at: usize| {{"
        " let logits = model.decode(ids, &encoded, at)?; logits.narrow(1, logits.dim(1)? - 1, 1) }}) }}",
    ),
    "phi": (
        "phi::Config",
        "{{ let mut model = phi::Model::new(&config, vb)?;"
        " Box::new(move |ids: &candle::Tensor, _: usize| model.forward(ids)) }}",
    ),
    "falcon": (
        "falcon::Config",
        "{{ let mut model = falcon::Falcon::load(vb, config)?;"
        " Box::new(move |ids: &candle::Tensor, _: usize| model.forward(ids)) }}",
    ),
}
# Where a model's file is not named after it, and another model's file that it reads.
FILES = {"smollm3": "smol/smollm3"}
NEEDS = {"glm4_new": ["glm4"]}

MANIFEST = """
[package]
name = "candle-models"
version = "0.0.0"
edition = "2021"
publish = false

[workspace]

[features]
flash-attn = []
cuda = []

[[bin]]
name = "candle-models"
path = "src/main.rs"

[dependencies]
tracekit = {{ path = "{tracekit}", features = ["candle"] }}
candle = {{ version = "{candle}", package = "candle-core" }}
candle-nn = "{candle}"
serde = {{ version = "1", features = ["derive"] }}
serde_json = "1"
rayon = "1"
# Without its features, which would change those of crates that candle builds on.
tracing = {{ version = "0.1", default-features = false }}
# Only its source is read: it is fetched and never compiled.
candle-transformers = {{ version = "={version}", optional = true }}
{same_features}

[profile.release]
debug = 1

# What takes time to run is in candle, which is built once and optimised; what is here only calls it.
[profile.release.package."candle-models"]
opt-level = 0
"""


def manifest_of(tracekit: Path, version: str) -> str:
    candle = version.rpartition(".")[0]
    features = shared_dependencies()
    return MANIFEST.format(tracekit=tracekit, version=version, candle=candle, same_features=features).lstrip()


def cargo(*words: str, folder: Path, target: Path | None = None) -> str:
    env = dict(os.environ) | ({"CARGO_TARGET_DIR": str(target)} if target else {})
    done = subprocess.run(["cargo", *words], cwd=folder, env=env, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"candle_models: cargo {' '.join(words)} failed:\n{done.stderr[-6000:]}")
    return done.stdout


def shared_dependencies() -> str:
    """The engine's other dependencies: cargo joins features over a whole build, and candle is built once for both."""
    own = re.search(r"\[dependencies\]\n(.*)", (RUST / "engine/Cargo.toml").read_text(), re.S)
    workspace = (RUST / "Cargo.toml").read_text()
    lines = []
    for name, rest in re.findall(r"^([\w-]+)(\.workspace = true| = .*)$", own[1] if own else "", re.M):
        if name in {"tracekit", "candle-core", "candle-nn", "serde", "serde_json"}:
            continue
        found = re.search(rf"^{name} = .*$", workspace, re.M) if "workspace" in rest else None
        lines.append(found[0] if found else name + rest)
    return "\n".join(lines)


def prepare(folder: Path, models: list[str], version: str = VERSION) -> dict[str, int]:
    """Write the program into `folder`; gives how many lines of each model file were changed."""
    source = folder / "src"
    (source / "models").mkdir(parents=True, exist_ok=True)
    main = (RUST / "candle-models/main.rs").read_text()
    write(source / "main.rs", main if version == VERSION else main.replace(OWN_CANDLE, f'"{version}"'))
    manifest = manifest_of(RUST / "tracekit", version)
    if not (folder / "Cargo.lock").exists():
        if version == VERSION:
            shutil.copy(RUST / "Cargo.lock", folder / "Cargo.lock")
        else:  # as a program of that candle that tracekit is added to
            write(folder / "Cargo.toml", re.sub(r"^tracekit = .*\n", "", manifest, flags=re.M))
            cargo("generate-lockfile", folder=folder)
    write(folder / "Cargo.toml", manifest)
    theirs = registry_source(folder)
    for shared in ("utils.rs", "fused_moe.rs"):
        write(source / shared, with_our_use_lines((theirs / shared).read_text()))
    changed = {}
    for model in [*models, *(needed for one in models for needed in NEEDS.get(one, []))]:
        before = (theirs / "models" / f"{FILES.get(model, model)}.rs").read_text()
        after = with_our_use_lines(before)
        changed[model] = lines_changed(before, after)
        write(source / "models" / f"{model}.rs", after)
    write(source / "models" / "mod.rs", models_module(models))
    return changed


# What of candle-transformers is tracekit's, and what its models need besides.
OURS = ("models/with_tracing.rs", "quantized_nn.rs", "quantized_var_builder.rs", "generation/mod.rs")
THEIR_NEEDS = 'byteorder = "1"\nfancy-regex = "0.18"\nnum-traits = "0.2"\nrand = "0.9"\nserde_plain = "1"\n'


def check_all(folder: Path, patched: Path | None = None) -> dict[str, int]:
    """Check that every file of candle-transformers compiles; gives how many lines of each were changed: none where
    `patched`, a folder of `scripts/candle_patch.py`, stands for candle-nn."""
    (folder / "src").mkdir(parents=True, exist_ok=True)
    own = RUST / "tracekit" if patched is None else patched / "tracekit"
    manifest = (
        manifest_of(own, VERSION)
        .replace("[[bin]]", "[lib]")
        .replace("src/main.rs", "src/lib.rs")
        .replace("-models", "_models_all")
    )
    manifest = manifest.replace("tracing = {", THEIR_NEEDS + "tracing = {", 1)
    write(folder / "Cargo.toml", manifest + ("" if patched is None else candle_patch.patch(patched) + "\n"))
    write(folder / "src/lib.rs", "")
    if not (folder / "Cargo.lock").exists():
        shutil.copy(RUST / "Cargo.lock", folder / "Cargo.lock")
    theirs = registry_source(folder)
    changed = {}
    for path in sorted(theirs.rglob("*.rs")):
        name = path.relative_to(theirs).as_posix()
        if patched is None and (name in OURS or name.startswith("generation/")):
            continue
        before = path.read_text()
        after = before if patched else with_our_modules(name, with_our_use_lines(before))
        changed[name] = lines_changed(before, after)
        (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / "src" / name, after)
    cargo("check", "--release", "--quiet", folder=folder, target=RUST / "target")
    return changed


def with_our_modules(name: str, text: str) -> str:
    """Where candle-transformers declares the modules that tracekit has drop-ins for, those stand."""
    if name in ("lib.rs", "models/mod.rs"):
        for ours in OURS:
            module = Path(ours).parent.name if ours.endswith("mod.rs") else Path(ours).stem
            text = text.replace(f"pub mod {module};", f"pub use tracekit::{module};")
    return text


def registry_source(folder: Path) -> Path:
    about = json.loads(cargo("metadata", "--format-version", "1", "--all-features", folder=folder))
    [package] = [one for one in about["packages"] if one["name"] == "candle-transformers"]
    return Path(package["manifest_path"]).parent / "src"


def write(path: Path, text: str) -> None:
    """A file that does not change keeps its time: cargo builds nothing anew."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def models_module(models: list[str]) -> str:
    arms = []
    for model in models:
        config, make = LOADERS[model]
        made = make.format() if make.startswith("{") else f"{{ let mut model = {make}; {plain_forward()} }}"
        arm = f"{{ let config: {config} = read(config)?; let forward: crate::Forward = {made}; forward }}"
        arms.append(f'        "{model}" => {arm}')
    return "\n".join(
        [
            "pub use tracekit::with_tracing;",
            *(f"pub mod {module};" for model in models for module in [model, *NEEDS.get(model, [])]),
            "fn read<T: serde::de::DeserializeOwned>(config: &str) -> candle::Result<T> {",
            "    serde_json::from_str(config).map_err(candle::Error::wrap)",
            "}",
            "pub fn load(name: &str, config: &str, vb: tracekit::nn::VarBuilder<'static>)",
            "    -> candle::Result<crate::Forward> {",
            "    Ok(match name {",
            *arms,
            '        _ => candle::bail!("{name}: no such model"),',
            "    })",
            "}",
            "",
        ]
    )


def plain_forward() -> str:
    return "Box::new(move |ids: &candle::Tensor, at: usize| model.forward(ids, at))"


USE = re.compile(r"^[ \t]*(?:pub(?:\([a-z]+\))? )?use [^;]*;", re.M)


def with_our_use_lines(text: str) -> str:
    """A model file whose `use` lines name tracekit's drop-ins; nothing else is changed."""
    rest = USE.sub("", text)
    needs_path = re.search(r"\bcandle_nn::", rest) is not None

    def change(found: re.Match[str]) -> str:
        nonlocal needs_path
        line = found[0]
        line = re.sub(r"\b(?:crate::models|super)::with_tracing\b", "tracekit::with_tracing", line)
        line = re.sub(r"\bcrate::(quantized_nn|quantized_var_builder|generation)\b", r"tracekit::\1", line)
        group = re.search(r"\n? *models::(with_tracing::(?:\{[^}]*\}|\w+)),?", line)
        if group and line.startswith("use crate::{"):
            line = line.replace(group[0], "") + f"\nuse tracekit::{group[1]};"
        if re.match(r"\s*(?:pub(?:\([a-z]+\))? )?use candle_nn::", line):
            line = line.replace("use candle_nn::", "use tracekit::nn::", 1)
            if needs_path and line.startswith("use "):
                needs_path = False
                line = re.sub(r"^use tracekit::nn::\{", "use tracekit::nn::{self as candle_nn, ", line)
                line = re.sub(r"^use tracekit::nn::(\w[^;{]*);", r"use tracekit::nn::{self as candle_nn, \1};", line)
        return line

    text = USE.sub(change, text)
    if needs_path:  # paths only: the line is added to the first one
        text = USE.sub(lambda found: "use tracekit::nn as candle_nn;\n" + found[0], text, count=1)
    return text


def lines_changed(before: str, after: str) -> int:
    blocks = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in blocks if tag != "equal")


def build(folder: Path, target: Path = RUST / "target") -> Path:
    cargo("build", "--release", "--quiet", folder=folder, target=target)
    return target / "release" / "candle-models"


PLAIN = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 16,
}
# What a family's config.json says beyond that.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 3},
    "qwen3": {"rope_theta": 1e6, "use_sliding_window": False, "max_window_layers": 3},
    "mistral": {"sliding_window": 8},
    "gemma": {"hidden_activation": "gelu_pytorch_tanh"},
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 256},
    "gemma2": {"hidden_activation": "gelu_pytorch_tanh", "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3": {
        "model_type": "gemma3_text",
        "num_key_value_heads": 1,  # with more, candle 0.11.1 hands its cache values that are not contiguous, and ends
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 16,
    },
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True, "decoder_sparse_step": 1}
# Those that the tests do not run; the table has them where they are asked for by name.
MORE: dict[str, dict[str, Any]] = {
    "starcoder2": {"norm_epsilon": 1e-5, "sliding_window": None, "tie_word_embeddings": True},
    "olmo": {"clip_qkv": None},
    "olmo2": {"clip_qkv": None},
    "stable_lm": {"model_type": "stablelm", "partial_rotary_factor": 0.25, "use_qkv_bias": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4096, "use_flash_attn": False},
    "qwen2_moe": {
        **EXPERTS,
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        "sliding_window": 4096,
        "use_sliding_window": False,
        "max_window_layers": 3,
    },
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "use_sliding_window": False, "max_window_layers": 3},
    "granite": {"residual_multiplier": 0.5, "logits_scaling": 2.0, "tie_word_embeddings": False},
    "phi": {"partial_rotary_factor": 0.5, "qk_layernorm": False},
    "helium": {"tie_word_embeddings": False},
    "glm4_new": {"model_type": "glm4", "partial_rotary_factor": 0.5, "tie_word_embeddings": False},
    "smollm3": {"no_rope_layers": [1, 1, 0], "use_sliding_window": False, "tie_word_embeddings": True},
    "deepseek2": {
        "model_type": "deepseek_v2",
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "attention_bias": False,
    },
    "recurrent_gemma": {
        "block_types": ["recurrent", "recurrent", "attention"],
        "attention_window_size": 8,
        "conv1d_width": 4,
        "lru_width": 64,
        "logits_soft_cap": 30.0,
        "partial_rotary_factor": 0.5,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention", "conv"],
        "intermediate_size": 256,
        "block_auto_adjust_ff_dim": False,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "conv_L_cache": 3,
        "tie_embedding": True,
    },
    "mamba2": {
        "state_size": 16,
        "expand": 2,
        "n_groups": 1,
        "num_heads": 8,
        "pad_vocab_size_multiple": 16,
        "tie_word_embeddings": True,
    },
    "granitemoehybrid": {
        "layer_types": ["attention"] * 3,
        "num_local_experts": 0,
        "shared_intermediate_size": 128,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
        "position_embedding_type": "rope",
        "tie_word_embeddings": True,
    },
    "falcon": {
        "layer_norm_epsilon": 1e-5,
        "n_head_kv": None,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "new_decoder_architecture": False,
        "tie_word_embeddings": False,
    },
}

# With an encoder: the whole of what config.json says.
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "marian": {
        "vocab_size": 320,
        "decoder_vocab_size": 320,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "max_position_embeddings": 64,
        "pad_token_id": 319,
        "bos_token_id": None,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
        "decoder_start_token_id": 1,
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "activation_function": "swish",
    },
}


def make_checkpoint(model: str, folder: Path, seed: int = 11, old_words: bool = True, **more: Any) -> None:
    """Write a tiny random checkpoint. With `old_words` its config.json says `rope_theta` where candle looks for it; as
    transformers 5 writes it, candle's Llama finds no theta and takes 10000."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(seed)
    encodes = model in ENCODER_DECODERS
    words = (ENCODER_DECODERS[model] if encodes else PLAIN | (FAMILIES | MORE)[model]) | more
    if model == "falcon":
        del words["head_dim"]  # it works it out
    theta, kind = words.pop("rope_theta", 10000.0), words.pop("model_type", model)
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if "partial_rotary_factor" in words:
        rotary["partial_rotary_factor"] = words["partial_rotary_factor"]
    if model == "gemma3":
        rotary = {"full_attention": rotary, "sliding_attention": rotary | {"rope_theta": words["rope_local_base_freq"]}}
    config = AutoConfig.for_model(kind, **words, **({} if encodes else {"rope_parameters": rotary}))
    network = (AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM).from_config(config).float()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "embed_positions" in name:
                continue  # candle computes them
            # Drawn wide enough that attention, norms and biases all matter.
            if value.dim() >= 2:
                value.copy_(torch.randn_like(value) * (0.5 if "embed" in name else value.shape[-1] ** -0.5))
            elif "norm" in name:
                value.add_(0.2 * torch.randn_like(value))
            else:
                value.copy_(0.2 * torch.randn_like(value))
    network.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    if not old_words:
        return
    written.pop("rope_parameters", None)
    if "hidden_activation" in words:
        written.pop("hidden_act", None)  # candle takes one of the two
    path.write_text(json.dumps(written | words | {"rope_theta": theta, "rope_scaling": None}, indent=2))


def in_old_words(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint of a Gemma 3 as transformers 5 writes it, in a folder whose config.json has the words, too, that
    candle's `Config` looks for."""
    folder.mkdir(parents=True)
    for path in checkpoint.resolve().iterdir():
        (folder / path.name).symlink_to(path)
    written = json.loads((folder / "config.json").read_text())
    rotary = written["rope_parameters"]
    written |= {
        "rope_theta": rotary["full_attention"]["rope_theta"],
        "rope_local_base_freq": rotary["sliding_attention"]["rope_theta"],
        "sliding_window_pattern": 1 + written["layer_types"].index("full_attention"),
    }
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(written, indent=2))
    return folder


@dataclass(frozen=True)
class Case:
    """One run of both sides."""

    prompt: int
    tokens: int
    temperature: float | None
    seed: int = 5
    dtype: str = "float32"

    @property
    def word(self) -> str:
        kind = "greedy" if self.temperature is None else "sampled"
        return f"{self.prompt}-{kind}" + ("" if self.dtype == "float32" else f"-{self.dtype}")

    def ids(self) -> list[int]:
        return [(7 * index * index + 3) % 317 + 3 for index in range(self.prompt)]


DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""Names of formats, as candle has them."""
CASES = [Case(5, 12, None), Case(23, 12, None), Case(12, 12, 0.8)]


def record_reference(checkpoint: Path, out: Path, case: Case) -> None:
    import torch
    import tracekit_torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForSeq2SeqLM if encoder_start(checkpoint) is not None else AutoModelForCausalLM
    model = kind.from_pretrained(checkpoint, dtype=getattr(torch, case.dtype)).eval()
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    sampling: dict[str, Any] = {"do_sample": False}
    if case.temperature:
        sampling = {"do_sample": True, "temperature": case.temperature, "top_k": 0}
    torch.manual_seed(case.seed)
    with tracekit_torch.record(model, out):
        model.generate(torch.tensor([case.ids()]), max_new_tokens=case.tokens, **sampling)


def encoder_start(checkpoint: Path) -> int | None:
    """The token that a decoder starts with, where what it is prompted with is given to an encoder."""
    config = json.loads((checkpoint / "config.json").read_text())
    return config["decoder_start_token_id"] if config.get("is_encoder_decoder") else None


def record_native(program: Path, model: str, checkpoint: Path, out: Path, case: Case) -> None:
    """Record one run; the tokens are those of a run that is not recorded."""
    ids, start = ",".join(map(str, case.ids())), encoder_start(checkpoint)
    prompt = ["--prompt", ids] if start is None else ["--prompt", str(start), "--source", ids]
    words = [str(program), model, str(checkpoint), *prompt]
    words += ["--tokens", str(case.tokens), "--seed", str(case.seed)]
    words += ["--temperature", str(case.temperature)] if case.temperature else []
    words += ["--dtype", DTYPES[case.dtype]]
    plain = subprocess.run(words, text=True, capture_output=True)
    if plain.returncode:
        sys.exit(f"candle_models: {' '.join(words)} failed:\n{plain.stderr}")
    recorded = run_tracekit("record", "-o", str(out), "--", *words)
    if recorded.returncode or plain.stdout.strip() not in recorded.stdout:
        sys.exit(f"candle_models: {model} is not the same recorded:\n{plain.stdout}{recorded.stdout}{recorded.stderr}")


def run_tracekit(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracekit_cli.main", *words]
    return subprocess.run(command, text=True, capture_output=True)


def told(*words: str) -> dict[str, Any]:
    """What a command says in JSON; run in this process, which has imported what it needs."""
    said = io.StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        group(words, standalone_mode=False)
    found: dict[str, Any] = json.loads(said.getvalue())
    return found


@dataclass(frozen=True)
class Row:
    """What became of one case of one model."""

    model: str
    lines: int
    case: str
    verdict: str
    """`parity`, `divergence` or `withheld`, of diff."""
    differences: tuple[str, ...]
    """What explains each culprit: of diff, then of the audit."""
    audited: tuple[int, int]
    """Sites audited, of those that there are."""
    head: bool
    """`lm_head` is among them."""


def _said(culprit: dict[str, Any]) -> str:
    explained = culprit.get("explanation")
    return str(explained["text"]) if explained else f"not explained: {culprit['site']}"


def compare(model: str, lines: int, case: Case, reference: Path, native: Path, checkpoint: Path) -> Row:
    diff = told("diff", "--json", str(reference), str(native), "--weights", str(checkpoint))
    audit = told("audit", "--json", str(native), "--weights", str(checkpoint))
    texts = [_said(row) for row in (*diff["culprits"], *audit["culprits"])]
    if diff["verdict"] == "divergence" and not texts:
        texts = [f"not explained: {diff['cause']} at {diff['site']}"]
    left = audit["not_audited"]
    share = audit["sites"], audit["sites"] + len(left)
    with tracekit.open(native) as trace:
        head = "lm_head" in trace.sequences[0].sites and "lm_head" not in left
    return Row(model, lines, case.word, diff["verdict"], tuple(dict.fromkeys(texts)), share, head)


def run(folder: Path, models: list[str], version: str) -> list[Row]:
    if version == VERSION:
        # Some of the others are written with one another.
        lines = prepare(folder / "crate", list(LOADERS) if set(models) - set(FAMILIES) else models)
        program = build(folder / "crate")
    else:
        lines = prepare(folder / f"crate-{version}", models, version)
        program = build(folder / f"crate-{version}", folder / f"crate-{version}" / "target")
    rows = []
    for model in models:
        checkpoint = folder / model
        make_checkpoint(model, checkpoint)
        for case in CASES:
            reference, native = (folder / f"{model}-{case.word}-{side}.h5" for side in ("py", "native"))
            record_reference(checkpoint, reference, case)
            record_native(program, model, checkpoint, native, case)
            rows.append(compare(model, lines[model], case, reference, native, checkpoint))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", default=list(FAMILIES), metavar="MODEL", help=", ".join(LOADERS))
    parser.add_argument(
        "--candle", default=VERSION, metavar="VERSION", help="of candle-transformers; default: %(default)s"
    )
    options = parser.parse_args()
    rows = run(options.folder, options.models, options.candle)
    table = [
        (
            row.model,
            row.lines,
            row.case,
            row.verdict,
            "; ".join(row.differences) or "-",
            f"{row.audited[0]} of {row.audited[1]}",
            "yes" if row.head else "no",
        )
        for row in rows
    ]
    print(tabulate(table, headers=["model", "lines", "run", "verdict", "difference", "sites audited", "lm_head"]))


if __name__ == "__main__":
    main()
