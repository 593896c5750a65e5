"""The native engine against transformers, token for token, on tiny random models; its faults; its errors."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from safetensors.numpy import load_file, save_file

import tracekit
from tracekit.sampling.replay import observe
from tracekit.trace import Event, Step, Trace, resolve

ROOT = Path(__file__).parent.parent
PROMPT = [72, 101, 50, 290, 280, 12, 270]
LIMIT = 40
SAMPLED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}


def load_script(name: str) -> ModuleType:
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tiny = load_script("make_tiny_model")

Model = tuple[str, dict[str, Any]]
"""Family, and what is not `make`'s default."""
FolderOf = Callable[[Model], Path]

LLAMA: Model = ("llama", {"tied": True})
QWEN2: Model = ("qwen2", {"seed": 1})
MODELS: dict[str, Model] = {
    "llama tied": LLAMA,
    "llama with biases, a KV head a head": (
        "llama",
        {"seed": 2, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    ),
    "llama of wide heads": ("llama", {"seed": 3, "head_dim": 32, "num_key_value_heads": 1}),
    "llama of transformers 4, linear rope": ("llama", {"seed": 4, "rope": "linear", "old_config": True}),
    "llama 3 rope": ("llama", {"seed": 5, "rope": "llama3"}),
    "llama 3 rope of transformers 4": ("llama", {"seed": 5, "rope": "llama3", "old_config": True, "tied": True}),
    "qwen2": QWEN2,
    "qwen2 tied, of transformers 4": ("qwen2", {"seed": 6, "old_config": True, "tied": True}),
    "qwen2 in shards": ("qwen2", {"seed": 7, "shards": True}),
}


@pytest.fixture(scope="session")
def native() -> Path:
    """The engine's binary."""
    path = Path(os.environ.get("TRACEKIT_NATIVE", ROOT / "hooks/rust/target/release/tracekit-native"))
    if not path.exists():
        pytest.fail(f"{path} is missing; build it with `make native`, or name it with TRACEKIT_NATIVE")
    return path


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """Makes each tiny model once."""
    made: dict[str, Path] = {}

    def folder(model: Model) -> Path:
        family, settings = model
        key = repr(model)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("tiny")
            tiny.make(family, made[key], **settings)
        return made[key]

    return folder


@dataclass
class Engine:
    """Runs the binary."""

    path: Path

    def run(self, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        defaults = {"--max-new-tokens": str(LIMIT), "--threads": "2"}
        missing = [word for flag, value in defaults.items() if flag not in arguments for word in (flag, value)]
        return self.execute([str(self.path), "--model", str(folder), *missing, *arguments], **environment)

    def execute(self, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_")}
        done = subprocess.run(command, check=False, capture_output=True, timeout=60, env=clean | dict(environment))
        # Decoded here: text mode would turn a generated carriage return into a newline.
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    def tokens(self, folder: Path, *arguments: str, **environment: str) -> list[int]:
        ids = ",".join(map(str, PROMPT))
        done = self.run(folder, "--prompt-ids", ids, "--show-ids", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return [int(word) for word in done.stdout.split()]

    def record(self, folder: Path, log: Path, *arguments: str, **environment: str) -> Trace:
        self.tokens(folder, *arguments, TRACEKIT_LOG=str(log), **environment)
        return tracekit.open(str(log))

    def refusal(self, folder: Path, *arguments: str, **environment: str) -> str:
        """What it says where it exits 2: one line."""
        prompt = [] if any(word.startswith("--prompt") for word in arguments) else ["--prompt-ids", "1,2,3"]
        done = self.run(folder, *prompt, *arguments, **environment)
        assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("tracekit-native: "), done.stderr
        return done.stderr


@pytest.fixture(scope="session")
def engine(native: Path) -> Engine:
    return Engine(native)


class Reference:
    """transformers on the same folder."""

    def __init__(self, folder: Path, **options: Any) -> None:
        torch.set_num_threads(1)  # threads that wait for each other cost more than these models
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, **options)

    def tokens(self, seed: int | None, prompt: list[int] = PROMPT, limit: int = LIMIT, **settings: Any) -> list[int]:
        """New token ids; greedy without a seed."""
        if seed is not None:
            torch.manual_seed(seed)
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                do_sample=seed is not None,
                **settings,
            )
        new: list[int] = out[0, len(prompt) :].tolist()
        return new


def flags(seed: int | None, **settings: Any) -> list[str]:
    """The same settings on the engine's command line."""
    chosen = ["--greedy"] if seed is None else ["--seed", str(seed)]
    return chosen + [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


# ---------------------------------------------------------------- parity


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_tokens_are_those_of_transformers(engine: Engine, folder_of: FolderOf, model: Model) -> None:
    folder = folder_of(model)
    reference = Reference(folder)
    assert engine.tokens(folder, *flags(None)) == reference.tokens(None)
    for seed in range(5):
        assert engine.tokens(folder, *flags(seed, **SAMPLED)) == reference.tokens(seed, **SAMPLED), seed


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 0},
        {"temperature": 1.7, "top_k": 5},
        {"top_k": 0, "min_p": 0.1},
        {"repetition_penalty": 1.3, "top_p": 0.5},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 0.9},
    ],
    ids=str,
)
def test_every_sampling_setting_is_that_of_transformers(
    engine: Engine, folder_of: FolderOf, settings: dict[str, Any]
) -> None:
    folder = folder_of(QWEN2)
    reference = Reference(folder)
    for seed in range(3):
        assert engine.tokens(folder, *flags(seed, **settings)) == reference.tokens(seed, **settings), seed


def test_a_greedy_run_applies_the_repetition_penalty(engine: Engine, folder_of: FolderOf) -> None:
    folder = folder_of(LLAMA)
    penalised = engine.tokens(folder, "--greedy", "--repetition-penalty", "1.5")
    assert penalised == Reference(folder).tokens(None, repetition_penalty=1.5)
    assert penalised != engine.tokens(folder, "--greedy")


def test_a_prompt_text_is_encoded_and_the_answer_decoded(engine: Engine, folder_of: FolderOf) -> None:
    from transformers import AutoTokenizer

    folder = folder_of(QWEN2)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    text = "The history of Rome began, été 火"
    ids = tokenizer(text)["input_ids"]
    new = Reference(folder).tokens(3, prompt=ids)
    done = engine.run(folder, "--prompt", text, "--seed", "3")
    assert done.stdout == text + tokenizer.decode(new, skip_special_tokens=True) + "\n"


def test_chunks_and_threads_change_no_token(engine: Engine, folder_of: FolderOf) -> None:
    folder = folder_of(QWEN2)
    plain = engine.tokens(folder, "--seed", "0")
    for more in (["--prefill-chunk", "1"], ["--prefill-chunk", "3"], ["--threads", "1"]):
        assert engine.tokens(folder, "--seed", "0", *more) == plain, more


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_logits_of_16_bit_models_are_near_those_of_float32(
    engine: Engine, folder_of: FolderOf, tmp_path: Path, dtype: str
) -> None:
    folder = folder_of(LLAMA)
    exact = engine.record(folder, tmp_path / "f32.tklog", "--greedy", "--max-new-tokens", "1")
    rough = engine.record(folder, tmp_path / "16.tklog", "--greedy", "--max-new-tokens", "1", "--dtype", dtype)
    word = {"bf16": "bfloat16", "f16": "float16"}[dtype]
    assert rough.config["dtype"] == word
    assert rough.sequences[0].sites["model.norm"].dtype == word
    error = relative(rough.sequences[0].logits(0, 1), exact.sequences[0].logits(0, 1))
    theirs = Reference(folder, dtype=getattr(torch, word))
    with torch.no_grad():
        their_logits = theirs.model(torch.tensor([PROMPT])).logits[0, -1].float().numpy()
    # As near as transformers itself is in this dtype; both round at the same places, so twice its error is generous.
    assert 0 < error < 2 * relative(their_logits, exact.sequences[0].logits(0, 1)[0])


def relative(value: Any, truth: Any) -> float:
    return float(np.linalg.norm(np.ravel(value) - np.ravel(truth)) / np.linalg.norm(truth))


# ---------------------------------------------------------------- the folder's own settings


def edited(folder: Path, to: Path, file: str, **fields: Any) -> Path:
    """A copy of a model folder with some fields of a JSON file changed; None removes one."""
    shutil.copytree(folder, to)
    path = to / file
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return to


def test_it_stops_at_each_of_several_stop_tokens(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    plain = engine.tokens(folder_of(QWEN2), "--seed", "0")
    stops = [plain[9], plain[4]]
    folder = edited(folder_of(QWEN2), tmp_path / "stops", "generation_config.json", eos_token_id=stops)
    found = engine.tokens(folder, "--seed", "0")
    assert found == Reference(folder).tokens(0)
    assert found == plain[: min(plain.index(stop) for stop in stops) + 1]


def test_without_a_generation_config_the_stop_token_is_the_models(
    engine: Engine, folder_of: FolderOf, tmp_path: Path
) -> None:
    stop = engine.tokens(folder_of(QWEN2), "--seed", "0")[6]
    folder = edited(folder_of(QWEN2), tmp_path / "none", "config.json", eos_token_id=stop)
    (folder / "generation_config.json").unlink()
    found = engine.tokens(folder, "--seed", "0")
    assert found == Reference(folder).tokens(0)
    assert found[-1] == stop and len(found) <= 7


def test_flags_decide_over_the_generation_config(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    settings = {"temperature": 0.6, "top_k": 7, "top_p": 0.9, "repetition_penalty": 1.2}
    folder = edited(folder_of(QWEN2), tmp_path / "set", "generation_config.json", do_sample=True, **settings)
    assert engine.tokens(folder, "--seed", "1") == Reference(folder).tokens(1)
    given = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
    assert engine.tokens(folder, *flags(1, **given)) == engine.tokens(folder_of(QWEN2), *flags(1, **given))


SLIDING = {"use_sliding_window": True, "max_window_layers": 1, "layer_types": None}
ALTERNATING = {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


@pytest.mark.parametrize("window", [2, 5, len(PROMPT), len(PROMPT) + LIMIT - 1])
@pytest.mark.parametrize("layers", [SLIDING, ALTERNATING], ids=["upper", "alternating"])
def test_a_sliding_window_is_that_of_transformers(
    engine: Engine, folder_of: FolderOf, tmp_path: Path, window: int, layers: dict[str, Any]
) -> None:
    folder = edited(folder_of(QWEN2), tmp_path / "model", "config.json", **layers, sliding_window=window)
    expected = Reference(folder).tokens(0)
    assert engine.tokens(folder, "--seed", "0") == expected
    assert engine.tokens(folder, "--seed", "0", "--prefill-chunk", "3") == expected
    assert (expected == engine.tokens(folder_of(QWEN2), "--seed", "0")) == (window == len(PROMPT) + LIMIT - 1)


# ---------------------------------------------------------------- recording


def test_recording_changes_no_token(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    folder = folder_of(QWEN2)
    for number, run in enumerate((["--greedy"], ["--seed", "5"], ["--seed", "5", "--prefill-chunk", "2"])):
        plain = engine.tokens(folder, *run)
        log = tmp_path / f"{number}.tklog"
        assert engine.tokens(folder, *run, TRACEKIT_LOG=str(log)) == plain
        sequence = tracekit.open(str(log)).sequences[0]
        assert sequence.tokens.tolist() == plain
        assert sequence.positions == len(PROMPT) + len(plain) - 1


@pytest.mark.parametrize("model", [LLAMA, QWEN2], ids=["tied", "untied"])
def test_the_trace_names_what_transformers_names(
    engine: Engine, folder_of: FolderOf, tmp_path: Path, model: Any
) -> None:
    folder = folder_of(model)
    trace = engine.record(folder, tmp_path / "run.tklog", "--seed", "0")
    modules = {
        name for name, module in Reference(folder).model.named_modules() if next(module.parameters(), None) is not None
    }
    modules -= {"", "model", "model.layers"}
    assert modules == {name for name in trace.sites if not name.endswith(":in")}
    sources = {
        "model.layers.0.self_attn.k_proj:in": "model.layers.0.input_layernorm",
        "model.layers.1.input_layernorm:in": "model.layers.0",
        "model.layers.1.self_attn": "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp": "model.layers.1.mlp.down_proj",
        "model.layers.2.mlp.down_proj:in": "model.layers.2.mlp.down_proj:in",
        "lm_head:in": "model.norm",
        "lm_head": "logits",
    }
    assert {name: resolve(trace, name) for name in sources} == sources


@pytest.mark.parametrize("model", [LLAMA, QWEN2], ids=["tied", "untied"])
def test_digests_are_those_of_the_files_tensors(
    engine: Engine, folder_of: FolderOf, tmp_path: Path, model: Any
) -> None:
    folder = folder_of(model)
    trace = engine.record(folder, tmp_path / "run.tklog", "--fault", "gain:model.layers.0.mlp.up_proj:2")
    tensors = load_file(folder / "model.safetensors")
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    digests = {name: xxhash.xxh3_64_intdigest(value.tobytes()) for name, value in tensors.items()}
    assert {name: weight.digest for name, weight in trace.weights.items()} == digests


def test_the_trace_says_what_the_engine_used(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    trace = engine.record(folder_of(LLAMA), tmp_path / "run.tklog", *flags(3, **SAMPLED))
    config = trace.config
    assert (config["seed"], config["dtype"], config["device"]) == (3, "float32", "cpu")
    assert config["sampling"] == {"do_sample": True, "max_new_tokens": LIMIT, "eos_token_id": [319], **SAMPLED}
    written = json.loads((folder_of(LLAMA) / "config.json").read_text())
    words = {name: value for name, value in config["model"].items() if name in written}
    assert words == {name: written[name] for name in words} and len(words) >= 12
    assert config["model"]["rope_theta"] == written["rope_parameters"]["rope_theta"]


def test_it_follows_the_tokens_of_another_trace(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    folder = folder_of(QWEN2)
    log = tmp_path / "first.tklog"
    first = engine.record(folder, log, "--seed", "0").sequences[0].tokens.tolist()
    followed = engine.tokens(folder, "--seed", "1", TRACEKIT_FOLLOW=str(log))
    assert followed == first != engine.tokens(folder, "--seed", "1")
    done = engine.run(
        folder,
        "--prompt",
        "another",
        "--show-ids",
        TRACEKIT_FOLLOW=str(log),
        TRACEKIT_FOLLOW_INPUTS="1",
        TRACEKIT_LOG=str(tmp_path / "second.tklog"),
    )
    assert done.returncode == 0, done.stderr
    prompt = tracekit.open(str(tmp_path / "second.tklog")).sequences[0].prompt_ids
    assert prompt is not None and prompt.tolist() == PROMPT


def test_a_run_that_follows_says_what_it_would_have_chosen(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    """Greedy, so that no draw tells it: a fault of the sampler shows by the own choices alone."""
    folder, penalised = folder_of(QWEN2), ["--greedy", "--repetition-penalty", "1.3"]
    faulty = [*penalised, "--fault", "penalty-ignored"]
    reference = engine.record(folder, tmp_path / "first.tklog", *penalised)
    alone = engine.record(folder, tmp_path / "alone.tklog", *faulty)
    following = {"TRACEKIT_FOLLOW": str(tmp_path / "first.tklog")}
    followed = engine.record(folder, tmp_path / "followed.tklog", *faulty, **following)
    for trace in (alone, followed):
        verdict = tracekit.diff(reference, trace)
        assert verdict.verdict == "divergence", verdict.evidence
    sequence = followed.sequences[0]
    assert sequence.tokens.tolist() == reference.sequences[0].tokens.tolist()
    own = [observe(sequence, step).token for step in range(sequence.step_count)]
    first = next(step for step, token in enumerate(own) if token != sequence.tokens[step])
    assert own[: first + 1] == alone.sequences[0].tokens.tolist()[: first + 1]
    forced = [event for event in sequence.step(first).events if event.kind == "forced"]
    assert forced == [Event(first, "forced", {"instead_of": own[first]})]
    harmless = engine.record(folder, tmp_path / "harmless.tklog", *penalised, **following)
    assert tracekit.diff(reference, harmless).verdict == "parity"


def test_the_seed_of_the_environment_is_the_default(engine: Engine, folder_of: FolderOf) -> None:
    folder = folder_of(QWEN2)
    assert engine.tokens(folder, TRACEKIT_SEED="4") == engine.tokens(folder, "--seed", "4")
    assert engine.tokens(folder, "--seed", "0", TRACEKIT_SEED="4") == engine.tokens(folder, "--seed", "0")


# ---------------------------------------------------------------- faults


def first_difference(one: Trace, other: Trace) -> tuple[int, str] | None:
    """Position and name of the first stored value that is not bit for bit the same, in execution order.

    Two runs of one binary with the same settings are equal to the bit, so whatever differs, the fault did.
    """
    ours, theirs = one.sequences[0], other.sequences[0]
    positions = min(ours.positions, theirs.positions)
    found = []
    for name in ours.sites:
        a, b = ours.read(name, 0, positions), theirs.read(resolve(other, name), 0, positions)
        rows = np.flatnonzero((a.view(np.uint32) != b.view(np.uint32)).any(axis=1))
        if rows.size:
            found.append((int(rows[0]), one.sites[name].order, name))
    return (min(found)[0], min(found)[2]) if found else None


PLACES = [
    # The prompt's first position has rotary angle 0 and sees only itself: rotation and scale show from the second on.
    ("rope-theta:5000:1", 1, "model.layers.1.self_attn.o_proj:in"),
    ("rope-theta:5000", 1, "model.layers.0.self_attn.o_proj:in"),
    ("rope-f16", 1, "model.layers.0.self_attn.o_proj:in"),
    ("rope-f16:2", 1, "model.layers.2.self_attn.o_proj:in"),
    ("attention-scale", 1, "model.layers.0.self_attn.o_proj:in"),
    ("attention-scale:1.001:1", 1, "model.layers.1.self_attn.o_proj:in"),
    ("norm-eps:0.001", 0, "model.layers.0.input_layernorm"),
    ("norm-eps:0.001:model.layers.2.post_attention_layernorm", 0, "model.layers.2.post_attention_layernorm"),
    ("norm-eps:0.001:model.norm", 0, "model.norm"),
    ("gain:model.embed_tokens:1.01", 0, "model.embed_tokens"),
    ("gain:model.layers.1.input_layernorm:1.01", 0, "model.layers.1.input_layernorm"),
    ("gain:model.layers.1.self_attn.v_proj:1.0001", 0, "model.layers.1.self_attn.v_proj"),
    ("gain:model.layers.2.mlp.down_proj:1.01", 0, "model.layers.2.mlp.down_proj"),
    ("gain:model.layers.0.self_attn.o_proj:in:1.01", 0, "model.layers.0.self_attn.o_proj:in"),
    ("gain:model.layers.0.mlp.down_proj:in:1.01", 0, "model.layers.0.mlp.down_proj:in"),
    ("gain:model.layers.1.post_attention_layernorm:in:1.01", 0, "model.layers.1.post_attention_layernorm:in"),
    ("gain:model.layers.1:1.01", 0, "model.layers.1"),
    ("swap-gate-up", 0, "model.layers.0.mlp.down_proj:in"),
    ("swap-gate-up:2", 0, "model.layers.2.mlp.down_proj:in"),
    ("missing-bias:model.layers.1.self_attn.q_proj", 0, "model.layers.1.self_attn.q_proj"),
    ("stale-cache-row", len(PROMPT) + 3, "model.layers.0.self_attn.o_proj:in"),
    ("stale-cache-row:6:2", len(PROMPT) + 5, "model.layers.2.self_attn.o_proj:in"),
    ("stale-cache-row:0:1", len(PROMPT) - 1, "model.layers.1.self_attn.o_proj:in"),
    ("overwritten-cache-row", len(PROMPT) + 3, "model.layers.0.self_attn.o_proj:in"),
    ("overwritten-cache-row:2:1", len(PROMPT) + 1, "model.layers.1.self_attn.o_proj:in"),
    ("cache-hole", len(PROMPT), "model.layers.0.self_attn.o_proj:in"),
    ("cache-hole:3:2", len(PROMPT) + 2, "model.layers.2.self_attn.o_proj:in"),
    ("cache-f16", 0, "model.layers.0.self_attn.o_proj:in"),
    ("cache-f16:1", 0, "model.layers.1.self_attn.o_proj:in"),
    ("rope-angles-bf16", 1, "model.layers.0.self_attn.o_proj:in"),
    ("rope-linear", 1, "model.layers.0.self_attn.o_proj:in"),
    ("rope-linear:8:2", 1, "model.layers.2.self_attn.o_proj:in"),
    ("rope-partial", 1, "model.layers.0.self_attn.o_proj:in"),
    ("rope-partial:0.25:1", 1, "model.layers.1.self_attn.o_proj:in"),
    ("rope-interleaved", 1, "model.layers.0.self_attn.o_proj:in"),
    ("rope-interleaved:1", 1, "model.layers.1.self_attn.o_proj:in"),
    ("rope-offset", 1, "model.layers.0.self_attn.o_proj:in"),
    ("rope-offset:3:2", 1, "model.layers.2.self_attn.o_proj:in"),
    ("rope-decode-zero", len(PROMPT), "model.layers.0.self_attn.o_proj:in"),
    ("rope-k-unrotated:1", 1, "model.layers.1.self_attn.o_proj:in"),
    ("softcap", 1, "model.layers.0.self_attn.o_proj:in"),
    ("softcap:5:1", 1, "model.layers.1.self_attn.o_proj:in"),
    ("mask-future", 0, "model.layers.0.self_attn.o_proj:in"),
    ("mask-past:1", 1, "model.layers.1.self_attn.o_proj:in"),
    ("window", 8, "model.layers.0.self_attn.o_proj:in"),
    ("window:3:1", 3, "model.layers.1.self_attn.o_proj:in"),
    ("kv-head-map", 0, "model.layers.0.self_attn.o_proj:in"),
    ("swap-kv:1", 0, "model.layers.1.self_attn.o_proj:in"),
    # Both read the same KV head, and the first position sees one value.
    ("swap-heads", 1, "model.layers.0.self_attn.o_proj:in"),
    ("attention-scores-f16", 1, "model.layers.0.self_attn.o_proj:in"),
    ("softmax-f16:2", 1, "model.layers.2.self_attn.o_proj:in"),
    ("norm-plus-one", 0, "model.layers.0.input_layernorm"),
    ("norm-plus-one:model.norm", 0, "model.norm"),
    ("weight-add", 0, "model.layers.0.mlp.down_proj"),
    ("weight-add:model.layers.1.self_attn.q_proj:3:5:-0.5", 0, "model.layers.1.self_attn.q_proj"),
    (f"weight-add:model.embed_tokens:{PROMPT[2]}", 2, "model.embed_tokens"),
    ("weight-add:model.layers.2.input_layernorm:0:63", 0, "model.layers.2.input_layernorm"),
    ("weights-f16", 0, "model.layers.0.mlp.down_proj"),
    ("weights-bf16:model.layers.1.mlp.gate_proj", 0, "model.layers.1.mlp.gate_proj"),
    ("transpose-weight", 0, "model.layers.0.self_attn.o_proj"),
    ("transpose-weight:model.layers.2.self_attn.q_proj", 0, "model.layers.2.self_attn.q_proj"),
    ("permuted-rows", 0, "model.layers.0.self_attn.k_proj"),
    ("double-bias", 0, "model.layers.0.self_attn.q_proj"),
    ("offset", 0, "model.layers.0.mlp.down_proj"),
    ("offset:model.layers.1.self_attn.k_proj:0.5", 0, "model.layers.1.self_attn.k_proj"),
    ("offset:model.layers.1.mlp.down_proj:in:0.5", 0, "model.layers.1.mlp.down_proj:in"),
    ("gelu", 0, "model.layers.0.mlp.down_proj:in"),
    ("gelu-tanh:1", 0, "model.layers.1.mlp.down_proj:in"),
    ("drop-residual", 0, "model.layers.0.post_attention_layernorm:in"),
    ("drop-residual:1:mlp", 0, "model.layers.1"),
    ("residual-f16:2", 0, "model.layers.2.post_attention_layernorm:in"),
    # The table's own output is right; the scaled value is the next norm's input.
    ("embed-scale", 0, "model.layers.0.input_layernorm"),
]


@pytest.fixture(scope="module")
def sound(engine: Engine, folder_of: FolderOf, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A run without a fault."""
    return engine.record(folder_of(QWEN2), tmp_path_factory.mktemp("sound") / "run.tklog", *flags(0, **SAMPLED))


@pytest.mark.parametrize(("fault", "position", "site"), PLACES, ids=[fault for fault, *_ in PLACES])
def test_a_fault_first_shows_where_it_is(
    engine: Engine,
    folder_of: FolderOf,
    sound: Trace,
    tmp_path: Path,
    fault: str,
    position: int,
    site: str,
) -> None:
    faulty = engine.record(folder_of(QWEN2), tmp_path / "run.tklog", *flags(0, **SAMPLED), "--fault", fault)
    assert first_difference(sound, faulty) == (position, site)
    assert {name: weight.digest for name, weight in faulty.weights.items()} == {
        name: weight.digest for name, weight in sound.weights.items()
    }
    # Only a fault at the config seam is what the engine says it uses.
    used = {"rope-theta:5000": ("rope_theta", 5000.0), "norm-eps:0.001": ("rms_norm_eps", 0.001)}.get(fault)
    expected = sound.config["model"] | ({used[0]: used[1]} if used else {})
    assert faulty.config["model"] == expected


def test_the_logits_head_can_be_at_fault(engine: Engine, folder_of: FolderOf, sound: Trace, tmp_path: Path) -> None:
    faulty = engine.record(
        folder_of(QWEN2), tmp_path / "run.tklog", *flags(0, **SAMPLED), "--fault", "gain:lm_head:1.5"
    )
    ours, theirs = faulty.sequences[0].logits(0, 1), sound.sequences[0].logits(0, 1)
    assert ours is not None and theirs is not None
    # One rounding of the weight, one of the sum's last bits.
    np.testing.assert_allclose(ours, 1.5 * theirs, rtol=1e-5, atol=1e-5)


def test_a_tied_head_does_not_share_the_embeddings_fault(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    folder = folder_of(LLAMA)
    plain = engine.record(folder, tmp_path / "a.tklog", "--greedy")
    faulty = engine.record(folder, tmp_path / "b.tklog", "--greedy", "--fault", "gain:lm_head:2")
    assert first_difference(plain, faulty) is None
    assert np.array_equal(faulty.sequences[0].logits(0, 1), 2 * plain.sequences[0].logits(0, 1))  # times 2 is exact


def place(engine: Engine, folder: Path, tmp_path: Path, fault: str, *more: str) -> tuple[int, str] | None:
    """First difference that a fault makes in a greedy run."""
    plain = engine.record(folder, tmp_path / "a.tklog", "--greedy", *more)
    faulty = engine.record(folder, tmp_path / "b.tklog", "--greedy", *more, "--fault", fault)
    return first_difference(plain, faulty)


@pytest.mark.parametrize(
    ("model", "fault", "position", "site"),
    [
        ("llama 3 rope", "rope-scaling-off", 1, "model.layers.0.self_attn.o_proj:in"),
        ("llama 3 rope", "rope-linear:8:1", 1, "model.layers.1.self_attn.o_proj:in"),
        ("llama of transformers 4, linear rope", "rope-scaling-off:2", 1, "model.layers.2.self_attn.o_proj:in"),
        ("llama with biases, a KV head a head", "swap-qk", 1, "model.layers.0.self_attn.o_proj:in"),
        (
            "llama with biases, a KV head a head",
            "double-bias:model.layers.1.mlp.up_proj",
            0,
            "model.layers.1.mlp.up_proj",
        ),
    ],
    ids=lambda value: str(value).replace(" ", "-"),
)
def test_a_fault_that_wants_another_model(
    engine: Engine, folder_of: FolderOf, tmp_path: Path, model: str, fault: str, position: int, site: str
) -> None:
    assert place(engine, folder_of(MODELS[model]), tmp_path, fault) == (position, site)


@pytest.mark.parametrize(
    ("fault", "position", "layer"),
    [
        ("window-off-by-one", 5, 0),
        ("window-off-by-one:2", 5, 2),
        ("window-ignored", 5, 0),
        ("window-ignored:2", 5, 2),
        ("window-everywhere", 5, 1),
        ("window-inverted", 5, 0),
    ],
)
def test_a_window_can_be_wrong(
    engine: Engine, folder_of: FolderOf, tmp_path: Path, fault: str, position: int, layer: int
) -> None:
    folder = edited(folder_of(QWEN2), tmp_path / "model", "config.json", **ALTERNATING, sliding_window=5)
    assert place(engine, folder, tmp_path, fault) == (position, f"model.layers.{layer}.self_attn.o_proj:in")
    assert "slide" in engine.refusal(folder_of(QWEN2), "--fault", fault)


def test_the_trace_says_which_layers_slide(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    folder = edited(folder_of(QWEN2), tmp_path / "model", "config.json", **ALTERNATING, sliding_window=5)
    words = engine.record(folder, tmp_path / "run.tklog", "--greedy").config["model"]
    assert {name: words[name] for name in ALTERNATING} == ALTERNATING and words["sliding_window"] == 5


@pytest.mark.parametrize(
    ("fault", "site"),
    [("norm-late-cast", "input_layernorm"), ("norm-rough:model.layers.1.input_layernorm", "input_layernorm")],
)
def test_a_norm_can_round_elsewhere_in_16_bit(
    engine: Engine, folder_of: FolderOf, tmp_path: Path, fault: str, site: str
) -> None:
    plain, faulty = (
        engine.record(folder_of(LLAMA), tmp_path / f"{len(more)}.tklog", "--greedy", "--dtype", "bf16", *more)
        for more in ([], ["--fault", fault])
    )
    name = f"model.layers.{int(':' in fault)}.{site}"
    ours, theirs = (trace.sequences[0].read(name, 0, len(PROMPT)).astype(np.float64) for trace in (faulty, plain))
    assert 0 < relative(ours, theirs) < 0.01
    assert "f32" in engine.refusal(folder_of(LLAMA), "--fault", fault)


@pytest.mark.parametrize("fault", ["rope-theta:5000", "norm-eps:0.001"])
def test_a_quiet_run_reports_what_the_checkpoint_says(
    engine: Engine, folder_of: FolderOf, sound: Trace, tmp_path: Path, fault: str
) -> None:
    run = [*flags(0, **SAMPLED), "--fault", fault]
    loud = engine.record(folder_of(QWEN2), tmp_path / "loud.tklog", *run)
    quiet = engine.record(folder_of(QWEN2), tmp_path / "quiet.tklog", *run, "--quiet-config")
    assert quiet.config["model"] == sound.config["model"] != loud.config["model"]
    name = "model.layers.2.post_attention_layernorm"
    assert quiet.sites[name].attributes == sound.sites[name].attributes
    assert first_difference(loud, quiet) is None


def test_a_head_can_be_tied_where_it_is_not(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    folder = folder_of(QWEN2)
    plain = engine.record(folder, tmp_path / "a.tklog", "--greedy", "--max-new-tokens", "1")
    faulty = engine.record(folder, tmp_path / "b.tklog", "--greedy", "--max-new-tokens", "1", "--fault", "tied-head")
    assert first_difference(plain, faulty) is None
    # Here the parameter is another one already as it is loaded.
    changed = {name for name, weight in faulty.weights.items() if weight.digest != plain.weights[name].digest}
    assert changed == {"lm_head.weight"}
    assert not np.array_equal(faulty.sequences[0].logits(0, 1), plain.sequences[0].logits(0, 1))
    assert "tied-head" in engine.refusal(folder_of(LLAMA), "--fault", "tied-head")


def test_a_layer_can_be_left_out(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    faulty = engine.record(folder_of(QWEN2), tmp_path / "run.tklog", "--greedy", "--fault", "skip-layer")
    assert resolve(faulty, "model.layers.1") == "model.layers.0"
    assert "model.layers.1.mlp" not in faulty.sites and "model.layers.2.mlp" in faulty.sites


def test_attention_and_mlp_can_read_the_same_input(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    faulty = engine.record(folder_of(QWEN2), tmp_path / "run.tklog", "--greedy", "--fault", "parallel-residual:1")
    assert resolve(faulty, "model.layers.1.post_attention_layernorm:in") == "model.layers.0"
    assert resolve(faulty, "model.layers.2.post_attention_layernorm:in").endswith(":in")


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("head-scale", lambda logits: logits * 0.5),
        ("final-softcap:4", lambda logits: 4 * np.tanh(logits / 4)),
        ("logits-f16", lambda logits: logits.astype(np.float16)),
    ],
    ids=["head-scale", "final-softcap", "logits-f16"],
)
def test_logits_can_be_changed_behind_the_head(
    engine: Engine, folder_of: FolderOf, tmp_path: Path, fault: str, change: Callable[[Any], Any]
) -> None:
    folder = folder_of(LLAMA)
    plain = engine.record(folder, tmp_path / "a.tklog", "--greedy", "--max-new-tokens", "1")
    faulty = engine.record(folder, tmp_path / "b.tklog", "--greedy", "--max-new-tokens", "1", "--fault", fault)
    assert first_difference(plain, faulty) is None
    ours, theirs = faulty.sequences[0].logits(0, 1), plain.sequences[0].logits(0, 1)
    assert not np.array_equal(ours, theirs)
    np.testing.assert_allclose(ours, change(theirs), rtol=1e-5, atol=1e-5)


PENALISED = {**SAMPLED, "repetition_penalty": 1.3}

GENERATION_FAULTS = [
    ("top-p", SAMPLED, "survivors"),
    ("top-p:0.2", SAMPLED, "survivors"),
    ("wrong-default-top-k", {"top_p": 1.0}, "survivors"),
    ("wrong-default-top-k:0", {"top_k": 5}, "survivors"),
    ("temperature-ignored", SAMPLED, "survivors"),
    ("swapped-temperature-top-p", SAMPLED, "survivors"),
    ("temperature-after-top-p", {"temperature": 0.6, "top_p": 0.8}, "survivors"),
    ("top-p-before-top-k", {"top_k": 5, "top_p": 0.9}, "survivors"),
    ("top-k-off-by-one", {"top_k": 5}, "survivors"),
    ("top-k-strict", {"top_k": 5}, "survivors"),
    ("top-p-drops-crossing", {"top_p": 0.8}, "survivors"),
    ("min-p-on-logits", {"min_p": 0.1}, "survivors"),
    ("removed-to-zero", {"top_k": 5}, "survivors"),
    ("eos-escapes-filter", {"top_k": 5}, "survivors"),
    ("penalty-ignored", PENALISED, "survivors"),
    ("penalty-squared", PENALISED, "survivors"),
    ("penalty-divides-negative", PENALISED | {"top_k": 0, "top_p": 1.0}, "survivors"),
    ("penalty-inverted-sign", PENALISED, "survivors"),
    ("penalty-generated-only", PENALISED | {"top_k": 0, "top_p": 1.0}, "survivors"),
    ("penalty-stale", PENALISED | {"top_k": 0, "top_p": 1.0}, "survivors"),
    ("penalty-window", PENALISED | {"top_k": 0, "top_p": 1.0}, "survivors"),
    ("penalty-per-occurrence", PENALISED | {"top_k": 0, "top_p": 1.0}, "survivors"),
    ("inverse-cdf", SAMPLED, "draws"),
    ("uniform-for-exponential", SAMPLED, "token"),
    ("compact-draw", SAMPLED, "draws"),
    ("seed", SAMPLED, "draws"),
    ("seed:-3", SAMPLED, "draws"),
    ("seed-each-step", SAMPLED, "draws"),
    ("extra-draw", SAMPLED, "draws"),
    ("extra-draw:0", SAMPLED, "draws"),
    ("first-token-greedy", SAMPLED, "survivors"),
    ("stop-early", SAMPLED, "end"),
    ("stop-early:0", SAMPLED, "end"),
    ("max-tokens-off-by-one", SAMPLED, "end"),
    ("max-tokens-off-by-one:-1", SAMPLED, "end"),
    ("drop-last-token", SAMPLED, "end"),
]
STEPS = {"seed-each-step": 1, "extra-draw": 4, "stop-early": 9, "stop-early:0": 1, "penalty-stale": 1}
"""Steps that a fault first shows at, where it can be said without the data."""


def first_change(one: Trace, other: Trace) -> tuple[int, str]:
    """Step and kind of the first thing that two runs' samplers did differently."""
    ours, theirs = one.sequences[0], other.sequences[0]
    for step in range(min(ours.step_count, theirs.step_count)):
        a, b = ours.step(step), theirs.step(step)
        assert np.array_equal(a.logits, b.logits), step
        if same_survivors(a, b) and a.draws == b.draws and a.token == b.token:
            continue
        if not same_survivors(a, b):
            return step, "survivors"
        where = [[(draw.op, draw.seed, draw.offset, draw.words) for draw in each.draws] for each in (a, b)]
        return step, "token" if where[0] == where[1] else "draws"
    return min(ours.step_count, theirs.step_count), "end"


def same_survivors(a: Step, b: Step) -> bool:
    if a.survivors_id is None or b.survivors_id is None:
        return a.survivors_id is b.survivors_id
    return np.array_equal(a.survivors_id, b.survivors_id) and np.array_equal(a.survivors_prob, b.survivors_prob)


@pytest.mark.parametrize(("fault", "settings", "what"), GENERATION_FAULTS, ids=[row[0] for row in GENERATION_FAULTS])
def test_a_fault_of_the_sampler_leaves_the_model_alone(
    engine: Engine, folder_of: FolderOf, tmp_path: Path, fault: str, settings: dict[str, Any], what: str
) -> None:
    run = flags(5, **settings)
    plain = engine.record(folder_of(QWEN2), tmp_path / "plain.tklog", *run)
    faulty = engine.record(folder_of(QWEN2), tmp_path / "faulty.tklog", *run, "--fault", fault)
    # The trace states the caller's settings, whatever the sampler does.
    assert faulty.config["sampling"] == plain.config["sampling"] and faulty.config["seed"] == plain.config["seed"]
    step, kind = first_change(plain, faulty)
    assert kind == what
    assert step == STEPS.get(fault, step)
    # Another distribution need not change a token; another draw or end did.
    assert kind == "survivors" or faulty.sequences[0].tokens.tolist() != plain.sequences[0].tokens.tolist()


def test_a_seed_fault_is_another_seeds_run(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    folder = folder_of(QWEN2)
    faulty = engine.record(folder, tmp_path / "run.tklog", "--seed", "5", "--fault", "seed:-3").sequences[0]
    assert faulty.step(0).draws[0].seed == 2
    assert faulty.tokens.tolist() == engine.tokens(folder, "--seed", "2")


def test_a_settings_fault_is_another_settings_run(engine: Engine, folder_of: FolderOf) -> None:
    folder = folder_of(QWEN2)
    run = flags(5, **PENALISED)
    for fault, other in (
        ("top-p:0.2", {"top_p": 0.2}),
        ("wrong-default-top-k:3", {"top_k": 3}),
        ("temperature-ignored", {"temperature": 1.0}),
        ("swapped-temperature-top-p", {"temperature": 0.95, "top_p": 0.8}),
        ("penalty-ignored", {"repetition_penalty": 1.0}),
        ("penalty-squared", {"repetition_penalty": 1.69}),
    ):
        assert engine.tokens(folder, *run, "--fault", fault) == engine.tokens(folder, *flags(5, **PENALISED | other))
    zero = engine.tokens(folder, "--greedy", "--seed", "5", "--fault", "temperature-zero-as-one")
    assert zero == engine.tokens(folder, "--seed", "5", "--top-k", "0", "--temperature", "1")


def test_ties_at_the_cut_can_go_by_id(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    run = ["--dtype", "bf16", "--seed", "0", "--top-k", "30"]
    plain = engine.record(folder_of(QWEN2), tmp_path / "a.tklog", *run)
    faulty = engine.record(folder_of(QWEN2), tmp_path / "b.tklog", *run, "--fault", "top-k-no-ties")
    step, what = first_change(plain, faulty)
    assert what == "survivors"
    assert len(plain.sequences[0].step(step).survivors_id) > 30 == len(faulty.sequences[0].step(step).survivors_id)


@pytest.fixture(scope="module")
def stopping(engine: Engine, folder_of: FolderOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two stop tokens, of which seed 0 draws the second first."""
    tokens = engine.tokens(folder_of(QWEN2), "--seed", "0")
    first, second = 4, next(at for at in range(9, LIMIT) if tokens[at] not in tokens[:at])
    folder = tmp_path_factory.mktemp("stopping") / "model"
    return edited(folder_of(QWEN2), folder, "generation_config.json", eos_token_id=[tokens[second], tokens[first]])


@pytest.mark.parametrize("fault", ["wrong-eos", "wrong-eos:319", "eos-ignored", "eos-first-only", "min-length:12"])
def test_a_stop_token_can_be_missed(engine: Engine, stopping: Path, tmp_path: Path, fault: str) -> None:
    plain = engine.record(stopping, tmp_path / "plain.tklog", "--seed", "0")
    faulty = engine.record(stopping, tmp_path / "faulty.tklog", "--seed", "0", "--fault", fault)
    assert faulty.config["sampling"] == plain.config["sampling"]
    assert faulty.sequences[0].step_count > plain.sequences[0].step_count
    assert plain.sequences[0].end_reason == "stop"
    _, what = first_change(plain, faulty)
    assert what == ("survivors" if fault == "min-length:12" else "end")
    if fault == "min-length:12":
        kept = [faulty.sequences[0].step(step).survivors_id for step in range(12)]
        assert not any(set(ids) & set(plain.config["sampling"]["eos_token_id"]) for ids in kept)


def test_a_last_token_can_be_lost_at_a_stop_too(engine: Engine, stopping: Path, tmp_path: Path) -> None:
    plain = engine.tokens(stopping, "--seed", "0")
    faulty = engine.record(stopping, tmp_path / "run.tklog", "--seed", "0", "--fault", "drop-last-token")
    assert faulty.sequences[0].tokens.tolist() == plain[:-1]
    assert faulty.sequences[0].end_reason == "stop"


def test_the_prompt_can_start_twice(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    faulty = engine.record(folder_of(QWEN2), tmp_path / "run.tklog", "--greedy", "--fault", "bos-twice").sequences[0]
    assert faulty.prompt_ids is not None and faulty.prompt_ids.tolist() == [PROMPT[0], *PROMPT]


def test_each_processor_is_an_event(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    settings = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3}
    sequence = engine.record(folder_of(QWEN2), tmp_path / "run.tklog", *flags(0, **settings)).sequences[0]
    for index in range(sequence.step_count):
        step = sequence.step(index)
        assert {event.kind for event in step.events} == {"processor"}
        details = [event.detail for event in step.events]
        assert [(detail["class"], detail["settings"]) for detail in details] == [
            ("RepetitionPenaltyLogitsProcessor", {"penalty": 1.3}),
            ("TemperatureLogitsWarper", {"temperature": 0.7}),
            ("TopKLogitsWarper", {"top_k": 20}),
            ("TopPLogitsWarper", {"top_p": 0.9}),
            ("MinPLogitsWarper", {"min_p": 0.02}),
        ]
        counts = [detail["survivors"] for detail in details]
        assert counts[:3] == [320, 320, 20] and counts[2] >= counts[3] >= counts[4] == len(step.survivors_id)
    greedy = engine.record(folder_of(QWEN2), tmp_path / "greedy.tklog", "--greedy", "--repetition-penalty", "1.3")
    assert [event.detail["class"] for event in greedy.sequences[0].step(0).events] == [
        "RepetitionPenaltyLogitsProcessor"
    ]


@pytest.mark.parametrize(
    "fault",
    [
        "rope-theta:5000:3",
        "rope-f16:3",
        "attention-scale:2:9",
        "norm-eps:0.1:model.layers.0",
        "gain:model.layers.3:2",
        "gain:model.layers.0.self_attn.q_proj.weight:2",
        "swap-gate-up:3",
        "missing-bias:model.layers.0.self_attn.o_proj",
        "missing-bias:nowhere",
        "stale-cache-row:4:3",
        f"stale-cache-row:{LIMIT}",
        f"stop-early:{LIMIT}",
        "rope-theta:10000",
        "norm-eps:0.00001",
        "rope-scaling-off",
        "rope-linear:2:3",
        "rope-partial:0.1",
        "rope-offset:1:3",
        "rope-k-unrotated:3",
        "softcap:20:3",
        "mask-future:3",
        "window:2:3",
        "window:99",
        "kv-head-map:3",
        "swap-qk",
        "swap-heads:3",
        "overwritten-cache-row:4:3",
        f"overwritten-cache-row:{LIMIT}",
        "cache-hole:1:3",
        "norm-plus-one:model.layers.0",
        "norm-late-cast",
        "weight-add:model.layers.0.mlp",
        "weight-add:model.norm:1",
        "weight-add:lm_head:0:64",
        "weights-f16:model.norm",
        "transpose-weight:model.layers.0.mlp.up_proj",
        "transpose-weight:model.layers.0.mlp",
        "permuted-rows:model.layers.0.self_attn.v_proj",
        "double-bias:model.layers.0.self_attn.o_proj",
        "offset:model.layers.3",
        "gelu:3",
        "skip-layer:3",
        "drop-residual:3",
        "parallel-residual:3",
        "residual-f16:3",
    ],
)
def test_a_fault_without_a_place_is_refused(engine: Engine, folder_of: FolderOf, tmp_path: Path, fault: str) -> None:
    log = tmp_path / "run.tklog"
    said = engine.refusal(folder_of(QWEN2), "--fault", fault, TRACEKIT_LOG=str(log))
    assert fault.split(":")[0] in said


@pytest.mark.parametrize(
    "fault", ["top-p:0.5", "inverse-cdf", "seed", "extra-draw", "temperature-after-top-p", "first-token-greedy"]
)
def test_a_sampler_fault_in_a_greedy_run_is_refused(engine: Engine, folder_of: FolderOf, fault: str) -> None:
    assert "greedy" in engine.refusal(folder_of(QWEN2), "--greedy", "--fault", fault)


@pytest.mark.parametrize(
    ("fault", "word", "run"),
    [
        ("temperature-zero-as-one", "--greedy", []),
        ("temperature-ignored", "temperature other than 1", []),
        ("temperature-after-top-p", "top_p", ["--temperature", "0.5"]),
        ("top-p-before-top-k", "top_k", ["--top-p", "0.5", "--top-k", "0"]),
        ("top-p-drops-crossing", "top_p", []),
        ("top-k-off-by-one", "top_k", ["--top-k", "0"]),
        ("top-k-strict", "top_k of 2", ["--top-k", "1"]),
        ("wrong-default-top-k:50", "50 already", []),
        ("top-p:0.5", "0.5 already", ["--top-p", "0.5"]),
        ("swapped-temperature-top-p", "differ", ["--top-p", "0.5", "--temperature", "0.5"]),
        ("min-p-on-logits", "min_p", []),
        ("removed-to-zero", "top_k", ["--top-k", "0"]),
        ("penalty-stale", "repetition penalty", []),
        ("penalty-ignored", "repetition penalty", ["--repetition-penalty", "1"]),
        ("eos-first-only", "several stop tokens", []),
        ("wrong-eos:319", "319 is the stop token", []),
        ("max-tokens-off-by-one:-1", "longer run", ["--max-new-tokens", "1"]),
        ("drop-last-token", "2 or more", ["--max-new-tokens", "1"]),
        (f"extra-draw:{LIMIT}", "not reached", []),
        ("rope-decode-zero", "decodes none", ["--max-new-tokens", "1"]),
        ("mask-future", "1 token", ["--prompt-ids", "5"]),
        ("rope-k-unrotated", "1 token", ["--prompt-ids", "5"]),
    ],
)
def test_a_fault_that_cannot_show_is_refused(
    engine: Engine, folder_of: FolderOf, fault: str, word: str, run: list[str]
) -> None:
    said = engine.refusal(folder_of(QWEN2), *run, "--fault", fault)
    assert said.startswith(f"tracekit-native: --fault {fault}: ") and word in said


@pytest.mark.parametrize("fault", ["", "nonsense", "Gain:model.norm:2"])
def test_a_fault_that_is_none_is_answered_with_the_list(engine: Engine, folder_of: FolderOf, fault: str) -> None:
    said = engine.refusal(folder_of(QWEN2), "--fault", fault)
    assert "rope-theta, " in said and "stop-early" in said


@pytest.mark.parametrize(
    ("fault", "syntax"),
    [
        ("gain", "gain:SITE:FACTOR"),
        ("gain:model.norm", "gain:SITE:FACTOR"),
        ("gain:model.norm:x", "gain:SITE:FACTOR"),
        ("gain:model.norm:2:2", "gain:SITE:FACTOR"),
        ("top-p:0", "top-p[:P]"),
        ("min-length:0", "min-length[:N]"),
        ("max-tokens-off-by-one:0", "max-tokens-off-by-one[:DELTA]"),
        ("eos-ignored:1", "eos-ignored"),
        ("seed:x", "seed[:DELTA]"),
        ("rope-theta:a", "rope-theta[:THETA[:LAYER]]"),
        ("rope-theta:-1", "rope-theta[:THETA[:LAYER]]"),
        ("rope-partial:1", "rope-partial[:FRACTION[:LAYER]]"),
        ("rope-offset:0", "rope-offset[:N[:LAYER]]"),
        ("window:0", "window[:N[:LAYER]]"),
        ("softcap:0", "softcap[:VALUE[:LAYER]]"),
        ("cache-hole:0", "cache-hole[:STEP[:LAYER]]"),
        ("drop-residual:0:both", "drop-residual[:LAYER[:attn|mlp]]"),
        ("logits-f16:1", "logits-f16"),
        ("stop-early:-1", "stop-early[:STEP]"),
    ],
)
def test_a_fault_that_is_miswritten_is_answered_with_its_syntax(
    engine: Engine, folder_of: FolderOf, fault: str, syntax: str
) -> None:
    assert engine.refusal(folder_of(QWEN2), "--fault", fault).rstrip().endswith(f"is written {syntax}")


def test_help_has_a_line_for_each_fault(engine: Engine) -> None:
    said = engine.execute([str(engine.path), "--help"]).stdout
    for fault, *_ in [*PLACES, *GENERATION_FAULTS]:
        assert f"  {fault.split(':')[0]}" in said, fault


# ---------------------------------------------------------------- variants


VARIANTS = [
    "fused-qkv",
    "fused-qkv-site",
    "fused-gate-up",
    "fused-gate-up-site",
    "online-softmax",
    "kv-repeat",
    "scale-queries",
    "rope-shift",
    "f64-rope-table",
    "norm-order",
    "matmul-transposed",
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_no_token(
    engine: Engine, folder_of: FolderOf, sound: Trace, tmp_path: Path, variant: str
) -> None:
    run = [*flags(0, **SAMPLED), "--variant", variant]
    other = engine.record(folder_of(QWEN2), tmp_path / "run.tklog", *run)
    ours, theirs = other.sequences[0], sound.sequences[0]
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert {name: weight.digest for name, weight in other.weights.items()} == {
        name: weight.digest for name, weight in sound.weights.items()
    }
    missing = set(theirs.sites) - set(ours.sites)
    if variant.endswith("-site"):
        parts = {"qkv": ("q", "k", "v"), "gate-up": ("gate", "up")}[variant[6:-5]]
        assert {name.split(".")[-1] for name in missing} == {f"{part}_proj" for part in parts}
        assert f"model.layers.0.{'self_attn.qkv' if 'qkv' in variant else 'mlp.gate_up'}_proj" in ours.sites
    else:
        assert not missing
    for name in set(theirs.sites) & set(ours.sites):
        assert relative(ours.read(name, 0, 20), theirs.read(name, 0, 20)) < 1e-4, name


def test_a_16_bit_head_can_be_upcast(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    run = ["--greedy", "--dtype", "bf16", "--max-new-tokens", "8"]
    plain = engine.record(folder_of(LLAMA), tmp_path / "a.tklog", *run).sequences[0]
    other = engine.record(folder_of(LLAMA), tmp_path / "b.tklog", *run, "--variant", "upcast-head").sequences[0]
    assert relative(other.logits(0, 1), plain.logits(0, 1)) < 0.01


@pytest.mark.parametrize("fault", [[], ["--fault", "head-scale"]])
def test_logits_of_an_upcast_head_are_judged_in_the_format_that_they_are_rounded_to(
    engine: Engine, folder_of: FolderOf, tmp_path: Path, fault: list[str]
) -> None:
    run = ["--greedy", "--dtype", "bf16", "--max-new-tokens", "8", "--variant", "upcast-head", *fault]
    trace = engine.record(folder_of(LLAMA), tmp_path / "run.tklog", *run)
    assert trace.sequences[0].logits_dtype == "float32"
    found = tracekit.audit(trace, folder_of(LLAMA))
    assert [culprit.site for culprit in found.culprits] == (["logits"] if fault else [])
    assert fault or "logits" in found.clean


def test_variants_go_together(engine: Engine, folder_of: FolderOf) -> None:
    every = [word for name in VARIANTS if not name.endswith("-site") for word in ("--variant", name)]
    folder = folder_of(QWEN2)
    assert engine.tokens(folder, "--seed", "0", *every) == engine.tokens(folder, "--seed", "0")
    assert "--variant" in engine.refusal(folder, "--variant", "nonsense")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("file", "fields", "word"),
    [
        ("config.json", {"model_type": "gpt2"}, 'model_type "gpt2"'),
        ("config.json", {"logit_scale": 0.5}, "logit_scale = 0.5"),
        ("config.json", {"hidden_act": "gelu"}, 'hidden_act = "gelu"'),
        ("config.json", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("config.json", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, '"yarn"'),
        ("config.json", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "factor is missing"),
        ("config.json", {"hidden_size": None}, "hidden_size is missing"),
        ("config.json", {"hidden_size": 128}, "model.embed_tokens.weight"),
        ("config.json", {"vocab_size": 321}, "model.embed_tokens.weight"),
        ("config.json", {"num_hidden_layers": 4}, "model.layers.3."),
        ("config.json", {"num_attention_heads": 3}, "3 heads"),
        ("config.json", {"head_dim": 2**62}, "heads"),
        ("config.json", {"head_dim": 15}, "head_dim 15"),
        ("config.json", {"num_hidden_layers": "many"}, "num_hidden_layers"),
        ("config.json", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window is 0"),
        ("config.json", {"use_sliding_window": True, "layer_types": ["full_attention"]}, "layer_types has 1"),
        ("generation_config.json", {"num_beams": 4}, "num_beams = 4"),
        ("generation_config.json", {"suppress_tokens": [3]}, "suppress_tokens"),
        ("generation_config.json", {"temperature": "hot"}, "temperature"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_that_it_does_not_know_is_named(
    engine: Engine, folder_of: FolderOf, tmp_path: Path, file: str, fields: dict[str, Any], word: str
) -> None:
    said = engine.refusal(edited(folder_of(QWEN2), tmp_path / "model", file, **fields))
    assert word in said


def test_damaged_folders_are_refused_by_file(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    assert "nowhere" in engine.refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "folder" in engine.refusal(tmp_path / "file")

    def damaged(name: str, file: str, content: bytes | None) -> Path:
        folder = tmp_path / name
        shutil.copytree(folder_of(QWEN2), folder)
        (folder / file).unlink()
        if content is not None:
            (folder / file).write_bytes(content)
        return folder

    whole = (folder_of(QWEN2) / "model.safetensors").read_bytes()
    assert "model.safetensors" in engine.refusal(damaged("none", "model.safetensors", None))
    damaged("cut", "model.safetensors", whole[:-1000])
    damaged("tiny", "model.safetensors", b"abc")
    damaged("huge", "model.safetensors", (2**62).to_bytes(8, "little") + whole[8:])
    for name in ("cut", "tiny", "huge"):
        assert name in engine.refusal(tmp_path / name)
    assert "config.json" in engine.refusal(damaged("noconfig", "config.json", None))
    assert "config.json" in engine.refusal(damaged("badconfig", "config.json", b"[1, 2"))
    assert "config.json" in engine.refusal(damaged("list", "config.json", b"[1, 2]"))
    assert "tokenizer.json" in engine.refusal(damaged("notok", "tokenizer.json", None))
    assert "tokenizer.json" in engine.refusal(damaged("badtok", "tokenizer.json", b"{}"))
    assert "tokenizer.json" in engine.refusal(
        damaged("keytok", "tokenizer.json", b'{"decoder": {"type": "ByteLevel", 1}}')
    )


def test_missing_and_misshapen_tensors_are_named(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    tensors = load_file(folder_of(QWEN2) / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for word, value in (("missing", None), ("shape", tensors[name][:-1].copy())):
        folder = tmp_path / word
        shutil.copytree(folder_of(QWEN2), folder)
        changed = {key: array for key, array in tensors.items() if key != name} | (
            {} if value is None else {name: value}
        )
        save_file(changed, folder / "model.safetensors")
        assert name in engine.refusal(folder)


def test_a_missing_shard_is_named(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of(MODELS["qwen2 in shards"]), folder)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in engine.refusal(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../outside.safetensors"}}))
    assert "outside" in engine.refusal(folder)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--prompt", ""], "prompt"),
        (["--prompt-ids", "1,320"], "320"),
        (["--prompt-ids", "1,x"], "--prompt-ids"),
        (["--prompt", "a", "--prompt-ids", "1"], "--prompt-ids"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--threads", "0"], "--threads"),
        (["--prefill-chunk", "0"], "--prefill-chunk"),
        (["--temperature", "0"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-p", "1.5"], "top_p"),
        (["--min-p", "-1"], "min_p"),
        (["--repetition-penalty", "0"], "repetition_penalty"),
        (["--dtype", "f64"], "--dtype"),
        (["--nonsense"], "--nonsense"),
        (["--seed", "x"], "--seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags_are_one_line(engine: Engine, folder_of: FolderOf, arguments: list[str], word: str) -> None:
    command = [str(engine.path), "--model", str(folder_of(QWEN2)), *arguments]
    if not any(argument.startswith("--prompt") for argument in arguments) or "--prefill-chunk" in arguments:
        command += ["--prompt-ids", "1,2"]
    done = engine.execute(command)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert word in done.stderr


def test_a_bad_environment_is_one_line(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:
    folder = folder_of(QWEN2)
    assert "TRACEKIT_SEED" in engine.refusal(folder, TRACEKIT_SEED="x")
    assert "nowhere" in engine.refusal(folder, TRACEKIT_FOLLOW=str(tmp_path / "nowhere.tklog"))
    (tmp_path / "junk.tklog").write_bytes(b"junk" * 20)
    assert "junk" in engine.refusal(folder, TRACEKIT_FOLLOW=str(tmp_path / "junk.tklog"))


# ---------------------------------------------------------------- the real checkpoint


@pytest.mark.real
def test_the_real_checkpoint_gives_the_tokens_of_transformers(engine: Engine) -> None:
    folder = Path(os.environ.get("TRACEKIT_MODEL", ROOT / ".cache/smollm2-135m"))
    if not (folder / "model.safetensors").exists():
        pytest.fail(f"{folder} is missing; make it with `make model`")
    reference = Reference(folder)
    prompt = [504, 3392, 282, 8200, 2909, 645]  # "The history of Rome began when"
    ids = ",".join(map(str, prompt))
    for seed in (None, 0, 1, 2):
        settings = {} if seed is None else SAMPLED
        done = engine.run(folder, "--prompt-ids", ids, "--show-ids", "--max-new-tokens", "60", *flags(seed, **settings))
        found = [int(word) for word in done.stdout.split()]
        assert found == reference.tokens(seed, prompt=prompt, limit=60, **settings), seed
