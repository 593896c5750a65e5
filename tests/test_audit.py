"""The audit: a trace against its checkpoint alone. Every mistake is named at its module, with its number where it has
one; every harmless rewrite is within its rounding bounds, in float32, bfloat16 and float16."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tracekit_cli.main import group

import tracekit
from tracekit.align.pair import Pair
from tracekit.auditing import operations
from tracekit.auditing.audit import audit
from tracekit.auditing.operations import Core, Rotary
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.mistakes import suspect
from tracekit.mistakes.culprits import ExplainedAudit, explained_audit
from tracekit.report.words import sentence
from tracekit.trace import Trace, TraceError
from tracekit.verdict.attribution import AddsUp
from tracekit.verdict.evidence import NotCovered, ReferenceDeparts
from tracekit.verdict.handed_on import added

ROOT = Path(__file__).parent.parent
PROMPT = "72,101,50,290,280,12,270,33,90,41,7,200"
TOKENS = "16"
Record = Callable[..., Trace]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints: Llama, Qwen2 with biases, Llama with the rotary scaling of Llama 3."""
    tiny = load_script("make_tiny_model")
    made = {}
    for name, family, settings in (
        ("llama", "llama", {}),
        ("qwen2", "qwen2", {}),
        ("llama3", "llama", {"rope": "llama3"}),
    ):
        made[name] = tmp_path_factory.mktemp(name)
        tiny.make(family, made[name], **settings)
    return made


@pytest.fixture(scope="session")
def record(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Runs the native engine on a tiny model and gives its trace."""
    engine = os.environ.get("TRACEKIT_NATIVE", str(ROOT / "hooks/rust/target/release/tracekit-native"))
    scratch = tmp_path_factory.mktemp("runs")

    def run(model: str | Path, *arguments: str) -> Trace:
        log = scratch / f"{len(list(scratch.iterdir()))}.tklog"
        folder = folders[model] if isinstance(model, str) else model
        prompt = [] if "--prompt-ids" in arguments else ["--prompt-ids", PROMPT]
        length = [] if "--max-new-tokens" in arguments else ["--max-new-tokens", TOKENS]
        words = ["--model", str(folder), *prompt, *length, "--greedy"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_")}
        done = subprocess.run(
            [engine, *words, *arguments], env=clean | {"TRACEKIT_LOG": str(log)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return tracekit.open(log)

    return run


def audited(trace: Trace, folder: Path) -> ExplainedAudit:
    checkpoint = Checkpoint(folder)
    return explained_audit(trace, checkpoint, audit(trace, checkpoint))


def core(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.o_proj:in"


LAYER = "model.layers.1"
STREAM, NORM = f"{LAYER}.post_attention_layernorm:in", f"{LAYER}.input_layernorm"
O_PROJ, K_PROJ, UP = f"{LAYER}.self_attn.o_proj", f"{LAYER}.self_attn.k_proj", f"{LAYER}.mlp.up_proj"
MISTAKES = [
    ("llama", "rope-theta:5000", core(0), "rotary theta 5000 instead of 10000"),
    ("llama", "rope-theta:20000:2", core(2), "rotary theta 20000 instead of 10000"),
    ("llama", "rope-f16:1", core(1), "rotary table rounded to float16"),
    ("llama", "rope-angles-bf16:1", core(1), "rotary angles rounded to bfloat16"),
    ("llama", "rope-interleaved:1", core(1), "rotary of interleaved pairs instead of halves"),
    ("llama", "rope-linear:2:1", core(1), "rotary positions divided by 2"),
    ("llama", "rope-partial:0.5:1", core(1), "8 of 16 dimensions rotated instead of 16"),
    ("llama", "rope-offset:1:2", core(2), "queries stand 1 position late"),
    ("llama", "rope-decode-zero", core(0), "every decoded token stands at position 0"),
    ("llama", "rope-k-unrotated:1", core(1), "the prompt's queries attend to keys before rotation"),
    ("llama3", "rope-scaling-off", core(0), "rotary scaling llama3 is left out"),
    ("llama", "attention-scale:1.01:1", core(1), "softmax scale times 1.01"),
    ("llama", "softcap:5:1", core(1), "a soft cap of 5 is applied to the scores"),
    ("llama", "mask-future:1", core(1), "the mask lets one key too many through"),
    ("llama", "mask-past:1", core(1), "a position does not attend to its own key"),
    ("llama", "window:8:1", core(1), "a window of 8 positions instead of no window"),
    ("llama", "kv-head-map:1", core(1), "query heads map to KV heads by h % n instead of h / group"),
    ("llama", "swap-kv:1", core(1), "keys and values swapped"),
    ("llama", "softmax-f16:1", core(1), "the whole softmax in float16"),
    ("llama", "stale-cache-row:4:1", core(1), "cache row 15 holds row 14"),
    ("llama", "overwritten-cache-row:3:1", core(1), "cache row 13 is missing"),
    ("llama", "cache-hole:2:1", core(1), "an empty cache row is attended to from position 13 on"),
    ("llama", "swap-gate-up:1", "model.layers.1.mlp.down_proj:in", "gate and up swapped"),
    ("llama", "gelu:2", "model.layers.2.mlp.down_proj:in", "gelu instead of silu"),
    ("llama", "gelu-tanh:0", "model.layers.0.mlp.down_proj:in", "tanh-gelu instead of silu"),
    ("llama", "drop-residual:1", STREAM, "the residual model.layers.0 is dropped"),
    ("llama", "parallel-residual:1", STREAM, f"{O_PROJ} is not added"),
    ("llama", "residual-f16:1", STREAM, "output rounded to float16"),
    ("llama", "embed-scale", "model.layers.0.input_layernorm:in", "scaled by sqrt(64)"),
    ("llama", "logits-f16", "logits", "output rounded to float16"),
    ("llama", "final-softcap:3", "logits", "soft cap 3 applied"),
    ("llama", "head-scale:0.5", "logits", "gain 0.5"),
    ("llama", f"norm-eps:1e-6:{NORM}", NORM, "eps 1e-06 instead of 1e-05"),
    ("llama", f"norm-plus-one:{NORM}", NORM, "weight + 1 used instead of weight"),
    ("llama", "gain:model.layers.1.mlp.down_proj:1.00001", "model.layers.1.mlp.down_proj", "gain 1.00001"),
    ("llama", f"weight-add:{UP}:5:6:0.01", UP, "weight[5, 6] off by 0.01"),
    ("llama", "weights-bf16:model.layers.1.mlp.up_proj", UP, "weight rounded to bfloat16"),
    ("llama", f"transpose-weight:{O_PROJ}", O_PROJ, "weight transposed"),
    ("llama", "permuted-rows:model.layers.1.self_attn.k_proj", K_PROJ,
     "rows in interleaved order instead of half-split"),
    ("qwen2", "missing-bias:model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "bias left out"),
    ("qwen2", "double-bias:model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.k_proj", "bias added twice"),
]  # fmt: skip
"""Model, fault, the first culprit, and what it says."""


@pytest.mark.parametrize(("model", "fault", "site", "text"), MISTAKES, ids=[row[1] for row in MISTAKES])
def test_a_mistake_is_named_and_explained(record, folders, model, fault, site, text):
    found = audited(record(model, "--quiet-config", "--fault", fault), folders[model])
    assert found.culprits, "nothing found"
    first = found.culprits[0]
    assert first.site == site
    assert first.explanation is not None, first.evidence
    assert sentence(first.explanation) == text
    assert found.exit_code == 1


OTHERS = (
    "2:134 5:117 7:180 16:12 17:64 22:62 35:199 36:30 41:56 43:99 46:164 47:175 49:88 50:107 52:66 54:122 "
    "56:146 57:133 58:190 64:154 71:40 77:26 80:97 87:42 92:164 94:102 98:12 109:125 116:71 119:75 122:95 "
    "123:118 128:11 133:156 139:142 141:191 143:90 156:166 157:68 165:195 168:8 175:80 176:159 178:90 "
    "184:113 192:92 198:118"
)
"""Places and ids of the other tokens in a prompt of 200 that is mostly one: its values lie near ties of float16."""
MIXED = [dict(tuple(map(int, each.split(":"))) for each in OTHERS.split()).get(place, 7) for place in range(200)]


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [([7] * 120, TOKENS), (MIXED, "3")],
    ids=["of one token", "of one token, and others"],
)
def test_values_added_up_in_16_bits_in_decoding_are_a_choice_of_precision(record, tmp_path, prompt, tokens):
    """candle's product of one row in float16, which only a long prompt shows."""
    load_script("make_tiny_model").make("llama", tmp_path, num_hidden_layers=1)
    ids = ",".join(map(str, prompt))
    words = ("--prompt-ids", ids, "--dtype", "f16", "--variant", "kv-repeat", "--max-new-tokens", tokens)
    found = audited(record(tmp_path, *words), tmp_path)
    assert [sentence(each.explanation) for each in found.culprits] == ["the sum of the values rounded to float16"]
    assert found.exit_code == 0
    planted = audited(record(tmp_path, *words, "--fault", "gain:model.layers.0.mlp.down_proj:1.05"), tmp_path)
    assert planted.exit_code == 1 and "model.layers.0.mlp.down_proj" in {each.site for each in planted.culprits}


IN_16_BITS = [
    ("bf16", "gain:model.layers.1.mlp.down_proj:1.01", "model.layers.1.mlp.down_proj", "weight_gain"),
    ("f16", "gain:model.layers.1.mlp.down_proj:1.01", "model.layers.1.mlp.down_proj", "weight_gain"),
    ("bf16", "rope-theta:500", core(0), "rotary_theta"),
    ("bf16", "rope-interleaved", core(0), "interleaved_rotary"),
    ("bf16", "kv-head-map:1", core(1), "kv_head_map"),
    ("bf16", "window:6:1", core(1), "window"),
    ("bf16", "stale-cache-row:4:1", core(1), "stale_cache_row"),
    ("bf16", "swap-gate-up:1", "model.layers.1.mlp.down_proj:in", "gate_and_up_swapped"),
    ("bf16", "norm-plus-one:model.norm", "model.norm", "norm_weight_plus_1"),
]


@pytest.mark.parametrize(
    ("dtype", "fault", "site", "kind"), IN_16_BITS, ids=[f"{row[0]}-{row[1]}" for row in IN_16_BITS]
)
def test_a_mistake_is_named_in_16_bits(record, folders, dtype, fault, site, kind):
    found = audited(record("llama", "--quiet-config", "--dtype", dtype, "--fault", fault), folders["llama"])
    explanation = found.culprits[0].explanation
    assert (found.culprits[0].site, explanation and explanation.mistake.id) == (site, kind)


VARIANTS = ("fused-qkv", "online-softmax", "kv-repeat", "scale-queries", "rope-shift", "f64-rope-table", "norm-order")


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("model", ["llama", "qwen2", "llama3"])
def test_a_sound_run_is_within_its_bounds(record, folders, model, dtype):
    found = audited(record(model, "--dtype", dtype), folders[model])
    assert (found.culprits, found.weights, found.differences, dict(found.unknown)) == ((), (), (), {})


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_harmless_rewrite_is_within_its_bounds(record, folders, variant):
    found = audited(record("llama", "--variant", variant, "--prefill-chunk", "3"), folders["llama"])
    assert [culprit.evidence for culprit in found.culprits] == []


@pytest.mark.real
@pytest.mark.parametrize("fault", [None, "norm-eps:1e-6:model.layers.3.post_attention_layernorm"])
def test_a_norm_is_told_from_those_of_other_layers_by_its_gain(fault: str | None, record: Record) -> None:
    """An eps that moves a norm's output by six roundoff units, in the real model: each row is within its bound."""
    folder = Path(os.environ.get("TRACEKIT_MODEL", ROOT / ".cache/smollm2-135m"))
    if not (folder / "model.safetensors").exists():
        pytest.fail(f"{folder} is missing; make it with `make model`")
    found = audited(record(folder, *([] if fault is None else ["--fault", fault])), folder)
    if fault is None:
        assert found.exit_code == 0
        return
    assert [culprit.site for culprit in found.culprits] == ["model.layers.3.post_attention_layernorm"]
    assert found.culprits[0].explanation is not None
    assert sentence(found.culprits[0].explanation) == "eps 1e-06 instead of 1e-05"


@pytest.mark.parametrize("fault", ["rope-partial:0.5:1", "mask-decode:2:1", "softcap:20:1"])
def test_a_few_rows_refute_nothing_that_all_rows_hold(record, folders, monkeypatch, fault):
    trace = record("llama", "--dtype", "f16", "--fault", fault)
    by_few = audited(trace, folders["llama"])
    monkeypatch.setattr(suspect, "SAMPLES", ())
    by_all = audited(trace, folders["llama"])
    assert by_few.culprits
    assert [one.explanation for one in by_few.culprits] == [one.explanation for one in by_all.culprits]


def test_two_mistakes_at_once_are_both_listed(record, folders):
    faults = ["--fault", "gain:model.layers.0.mlp.up_proj:1.001", "--fault", "rope-interleaved:2"]
    found = audited(record("llama", *faults), folders["llama"])
    assert [culprit.site for culprit in found.culprits] == ["model.layers.0.mlp.up_proj", core(2)]


def test_what_no_recipe_covers_is_listed_and_still_found_by_the_diff(record, folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["llama"], folder)
    sound, faulty = record(folder), record(folder, "--fault", "attention-scale:1.1:1")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "strange"}
    (folder / "config.json").write_text(json.dumps(config))
    found = audited(faulty, folder)
    assert found.culprits == () and core(1) in found.unknown
    verdict = tracekit.diff(sound, faulty)
    assert (verdict.cause, verdict.site) == ("layer", core(1))
    assert verdict.audit is not None and core(1) in verdict.audit.not_audited
    assert any(isinstance(each, NotCovered) for each in verdict.evidence)


def test_equal_runs_need_no_audit(record):
    assert tracekit.diff(record("llama"), record("llama")).audit is None


def test_what_the_reference_gets_wrong_is_not_the_candidates_fault(record):
    verdict = tracekit.diff(record("llama", "--fault", "gelu:1"), record("llama"))
    assert (verdict.cause, verdict.site) == ("layer", "model.layers.1.mlp.down_proj:in")
    assert isinstance(verdict.evidence[0], ReferenceDeparts)


def test_other_bytes_than_the_checkpoints(record, folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["llama"], folder)
    trace = record(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"] * np.float32(1.5)
    save_file(tensors, folder / "model.safetensors")
    found = audited(trace, folder)
    assert found.weights == ("model.layers.1.mlp.up_proj.weight",)
    assert [culprit.site for culprit in found.culprits] == ["model.layers.1.mlp.up_proj"]
    # A checkpoint that was changed since cannot be audited against unless it is asked for.
    other = record(folders["llama"], "--variant", "norm-order")
    assert tracekit.diff(trace, other, weights=None).verdict == "parity"


def test_what_the_engine_says_is_compared_with_what_is_declared(record, folders):
    found = audited(record("llama", "--fault", "rope-theta:5000"), folders["llama"])
    assert [(item.name, item.reference, item.candidate) for item in found.differences] == [
        ("model.rope_theta", 10000.0, 5000.0)
    ]


def test_the_command(record, folders):
    trace = record("llama", "--quiet-config", "--fault", "rope-theta:5000")
    done = CliRunner().invoke(group, ["audit", trace.path, "--weights", str(folders["llama"])])
    assert done.exit_code == 1
    assert "DEPARTS FROM ITS CHECKPOINT" in done.output
    assert "explained: rotary theta 5000 instead of 10000" in done.output
    done = CliRunner().invoke(group, ["audit", trace.path, "--weights", str(folders["llama"]), "--json"])
    assert json.loads(done.output)["culprits"][0]["explanation"]["value"] == 5000.0


def test_a_checkpoint_of_another_model_is_one_line(record, folders, tmp_path):
    trace = record("llama")
    other = tmp_path / "other"
    load_script("make_tiny_model").make("llama", other, hidden_size=32, head_dim=8)
    done = CliRunner().invoke(group, ["audit", trace.path, "--weights", str(other)])
    assert isinstance(done.exception, TraceError)
    assert "is of another model than" in str(done.exception) and "hidden_size 32, not 64" in str(done.exception)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(other / "model.safetensors", bare)
    with pytest.raises(TraceError, match=r"of another model than .*embed_tokens.weight \[320, 32\], not \[320, 64\]"):
        CliRunner().invoke(group, ["audit", trace.path, "--weights", str(bare)], catch_exceptions=False)
    with pytest.raises(TraceError, match="is of another model than"):
        tracekit.diff(trace, record("llama", "--fault", "rope-theta:5000"), weights=str(other))


# ---------------------------------------------------------------- checkpoints


def _overlong(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def _beyond_the_end(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no header at all"),
        _overlong,
        _beyond_the_end,
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    damage(tmp_path / "model.safetensors")
    with pytest.raises(TraceError, match=r"model\.safetensors"):
        Checkpoint(tmp_path)


def test_folders_that_are_no_checkpoint(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(TraceError):
            Checkpoint(path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(TraceError, match="outside its folder"):
        Checkpoint(tmp_path)


# ---------------------------------------------------------------- operations against torch


def test_the_attention_core_is_torchs():
    random = np.random.default_rng(0)
    positions, heads, kv_heads, width = 9, 6, 2, 8
    q, k, v = (random.standard_normal((positions, count * width)) for count in (heads, kv_heads, kv_heads))
    made = operations.attend(Core(heads, kv_heads, width, Rotary(100.0, width), 0.3), q, k, v, np.arange(positions))
    angles = np.arange(positions)[:, None] * 100.0 ** (-np.arange(0, width, 2) / width)
    cos, sin = (np.concatenate([table, table], axis=1) for table in (np.cos(angles), np.sin(angles)))

    def split(x: Any, count: int) -> Any:
        return x.reshape(positions, count, width).transpose(1, 0, 2)

    def rotate(x: Any) -> Any:
        return x * cos + np.concatenate([-x[..., width // 2 :], x[..., : width // 2]], axis=-1) * sin

    parts = [torch.tensor(part) for part in (rotate(split(q, heads)), rotate(split(k, kv_heads)), split(v, kv_heads))]
    right = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, scale=0.3, enable_gqa=True)
    assert np.allclose(made, right.transpose(0, 1).reshape(positions, -1).numpy(), atol=1e-13)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_new", "relu"])
def test_activations_are_transformers(name):
    from transformers.activations import ACT2FN

    x = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    assert np.allclose(operations.ACTIVATIONS[name](x.numpy()), ACT2FN[name](x).numpy(), atol=1e-13)


def test_rotary_scaling_is_transformers():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        rope_parameters={"rope_theta": 5000.0} | scaling,
        max_position_embeddings=512,
    )
    ours, _ = Rotary(5000.0, 32, tuple(sorted(scaling.items()))).frequencies()
    assert np.allclose(ours, LlamaRotaryEmbedding(config).inv_freq.numpy(), rtol=1e-6)


def test_the_rounding_bound_is_that_of_float32():
    """Correct float32 arithmetic is a unit or two of its bound off, neither nothing nor five."""
    random = np.random.default_rng(1)
    x = random.standard_normal((64, 512)).astype(np.float32)
    weight = random.standard_normal((256, 512)).astype(np.float32)
    result = operations.linear(operations.Matrix(weight.astype(np.float64), None), x.astype(np.float64), "float32")
    in_order = np.zeros((64, 256), np.float32)
    for column in range(512):
        in_order += np.outer(x[:, column], weight[:, column])
    ratio = np.sqrt(np.mean(np.square(in_order - result.values) / result.variance))
    assert 0.5 < ratio < 2.0


# ---------------------------------------------------------------- rounding that adds up


def test_errors_within_their_bounds_that_add_up_are_parity(record, folders, monkeypatch):
    """Every site is off by more than a floor that is too low, and every site is audited: rounding accounts for it."""
    monkeypatch.setattr("tracekit.compare.yardstick.UNCALIBRATED_UNITS", 1e-3)
    monkeypatch.setattr("tracekit.verdict.decide.OwnDifferences", lambda reference, checkpoint=None: None)
    verdict = tracekit.diff(record("llama"), record("llama", "--variant", "norm-order"), weights=str(folders["llama"]))
    assert (verdict.verdict, verdict.culprits) == ("parity", ())
    assert any(isinstance(note, AddsUp) for note in verdict.notes)
    # Without a checkpoint, and without what the recorded values show of it, nobody can say so.
    alone = tracekit.diff(record("llama"), record("llama", "--variant", "norm-order"), audited=False)
    assert alone.verdict == "divergence"


def test_what_sites_add_to_their_inputs_is_judged_without_a_checkpoint(record, monkeypatch):
    """Every site is beyond a floor that is too low: the recorded inputs account for a harmless rewrite, and for what
    follows a mistake, but not for the mistake."""
    monkeypatch.setattr("tracekit.compare.yardstick.UNCALIBRATED_UNITS", 1e-3)
    sound = record("llama")
    assert tracekit.diff(sound, record("llama", "--variant", "norm-order"), audited=False).verdict == "parity"
    faulty = record("llama", "--fault", "attention-scale:1.01:1")
    found = tracekit.diff(sound, faulty, audited=False)
    assert (found.verdict, found.site) == ("divergence", "model.layers.1.self_attn.o_proj:in")


def test_more_than_rounding_adds_up_to_is_not_passed_over(record, folders, tmp_path):
    """A mistake where no audit looks, below the floor at its own site: what follows is clean, and off by too much."""
    folder = tmp_path / "model"
    shutil.copytree(folders["llama"], folder)
    sound, faulty = record(folder), record(folder, "--fault", "attention-scale:1.01:1")
    variant = record(folder, "--variant", "kv-repeat")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "strange"}
    (folder / "config.json").write_text(json.dumps(config))

    def beyond(other: Trace) -> float:
        pair = Pair.of(sound, other)
        return added(pair, pair.sequences[0], Checkpoint(folder))[O_PROJ]

    assert beyond(variant) < 1.0
    assert beyond(faulty) > 10.0


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (("--variant", "norm-order"), None),
        (("--variant", "kv-repeat", "--prefill-chunk", "3"), None),
        (("--fault", "attention-scale:1.00005:1"), core(1)),
        (("--fault", "gain:model.layers.1.mlp.down_proj:1.00005"), "model.layers.1.mlp.down_proj"),
    ],
)
def test_what_rounding_hands_on_is_told_from_a_small_mistake(record, folders, words, at):
    """Each site is asked what it adds to its inputs' difference: a mistake far below what rounding adds up to shows."""
    sound, other = record("llama"), record("llama", *words)
    pair = Pair.of(sound, other)
    shares = added(pair, pair.sequences[0], Checkpoint(folders["llama"]))
    assert "logits" in shares
    assert next((site for site, share in shares.items() if share > 1.0), None) == at


def test_codes_of_a_quantised_weight_are_nothing_that_a_checkpoint_holds(tmp_path: Path) -> None:
    codes = np.arange(16, dtype=np.int8).reshape(4, 4)
    save_file({"weight": codes.astype(np.float32)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    for dtype, held in (("int8", codes), ("float8_e4m3fn", codes.view(np.uint8))):
        assert not checkpoint.may_hold("weight", dtype, xxhash.xxh3_64_intdigest(held.tobytes()))
        assert checkpoint.values("weight", dtype).dtype == np.float32
    for kept in (np.float32, np.float16):
        assert checkpoint.may_hold("weight", kept.__name__, xxhash.xxh3_64_intdigest(codes.astype(kept).tobytes()))
