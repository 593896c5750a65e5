"""An engine in Python without PyTorch: what it computes becomes a trace, and nothing of the recording reaches it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tracekit_cli.main import group

import tracekit
from tests import tiny_families

torch = pytest.importorskip("torch")

PROGRAM = '''
"""A Llama in numpy: one head size, no cache, greedy."""
import json, sys
import numpy as np
from safetensors.numpy import load_file
import tracekit

folder, out = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
config = json.load(open(f"{folder}/config.json"))
weights = load_file(f"{folder}/model.safetensors")
wrong = config.pop("wrong", 1.0)
heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
size = config.get("head_dim") or config["hidden_size"] // heads
theta = config["rope_parameters"]["rope_theta"]
values = {}

def linear(name, x):
    y = x @ weights[f"{name}.weight"].T
    values[f"{name}:in"], values[name] = x, y
    return y

def norm(name, x):
    y = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(config["rms_norm_eps"])) * weights[f"{name}.weight"]
    values[f"{name}:in"], values[name] = x, y
    return y

def rotate(x, positions):
    angle = positions[:, None] * (theta ** (-np.arange(0, size, 2, dtype=np.float32) / size))[None]
    cos, sin = (np.concatenate([f(angle)] * 2, -1)[:, None].astype(np.float32) for f in (np.cos, np.sin))
    half = size // 2
    return x * cos + np.concatenate([-x[..., half:], x[..., :half]], -1) * sin

def attend(name, x):
    rows = len(x)
    q = linear(f"{name}.q_proj", x).reshape(rows, heads, size)
    k = linear(f"{name}.k_proj", x).reshape(rows, groups, size)
    v = linear(f"{name}.v_proj", x).reshape(rows, groups, size)
    places = np.arange(rows, dtype=np.float32)
    q, k = rotate(q, places), rotate(k, places)
    k, v = (np.repeat(each, heads // groups, 1) for each in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) * np.float32(wrong * size ** -0.5)
    scores = np.where(np.tri(rows, dtype=bool)[None], scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("hqk,khd->qhd", shares / shares.sum(-1, keepdims=True), v)
    return linear(f"{name}.o_proj", mixed.reshape(rows, heads * size))

def forward(ids):
    x = weights["model.embed_tokens.weight"][ids]
    values["model.embed_tokens"] = x
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        x = x + attend(f"{name}.self_attn", norm(f"{name}.input_layernorm", x))
        h = norm(f"{name}.post_attention_layernorm", x)
        gate, up = linear(f"{name}.mlp.gate_proj", h), linear(f"{name}.mlp.up_proj", h)
        x = x + linear(f"{name}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
        values[name] = x
    return linear("lm_head", norm("model.norm", x)) if "lm_head.weight" in weights else None

ids = [int(word) for word in config["prompt"]]
with tracekit.Recording("numpy", out, dtype="float32", model=config, checkpoint=folder) as recording:
    generation = recording.sequence(ids, do_sample=False)
    for step in range(10):
        values.clear()
        logits = forward(np.array(ids))
        first = len(ids) - 1 if step else 0
        seen = {name: value[first:] for name, value in values.items()}
        where = {id(value): seen[name] for name, value in reversed(values.items())}
        generation.forward(first, len(ids) - first, {name: where[id(value)] for name, value in values.items()})
        ids.append(generation.next_token(int(logits[-1].argmax()), logits=logits[-1]))
    generation.end("length")
print(ids)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, a recording of it in PyTorch, and the program that computes it in numpy."""
    out = tmp_path_factory.mktemp("numpy_engine")
    for name, wrong in (("model", 1.0), ("wrong", 1.01)):
        tiny_families.make("llama", out / name, tie_word_embeddings=False)
        config = json.loads((out / name / "config.json").read_text())
        config |= {"prompt": list(tiny_families.PROMPT[0]), "wrong": wrong}
        (out / name / "config.json").write_text(json.dumps(config))
    tiny_families.run(tiny_families.load(out / "model"), out / "reference.h5").close()
    (out / "engine.py").write_text(PROGRAM)
    return out


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_LOG")}
    command = [sys.executable, str(folder / "engine.py"), *words]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)


def test_a_foreign_engine_is_at_parity(folder: Path, tmp_path: Path) -> None:
    plain = run(folder, str(folder / "model"))
    told = run(folder, str(folder / "model"), str(tmp_path / "numpy.h5"))
    assert (told.returncode, told.stdout, told.stderr) == (0, plain.stdout, plain.stderr), told.stderr
    verdict = tracekit.diff(folder / "reference.h5", tmp_path / "numpy.h5")
    assert (verdict.verdict, verdict.cause) == ("parity", None), verdict.text
    with tracekit.open(tmp_path / "numpy.h5") as trace:
        assert trace[0].sites["model.layers.0.self_attn.q_proj"].ranges == ((0, len(tiny_families.PROMPT[0]) + 9),)


def test_its_fault_is_named(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "wrong.tklog"
    log.touch()
    done = run(folder, str(folder / "wrong"), TRACEKIT_LOG=str(log), TRACEKIT_LOG_IS_NEW="1")
    assert done.returncode == 0, done.stderr
    verdict = tracekit.diff(folder / "reference.h5", log)
    assert (verdict.cause, verdict.site) == ("layer", "model.layers.0.self_attn.o_proj:in"), verdict.text


def test_it_is_recorded_by_the_command_and_follows(folder: Path, tmp_path: Path) -> None:
    with tracekit.open(folder / "reference.h5") as trace:
        tokens = [trace[0].step(index).token for index in range(10)]
    words = ["record", "--follow", str(folder / "reference.h5"), "--level", "logits", "-o", str(tmp_path / "out.h5")]
    done = CliRunner().invoke(
        group, [*words, "--", sys.executable, str(folder / "engine.py"), str(folder / "wrong")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    with tracekit.open(tmp_path / "out.h5") as trace:
        assert [trace[0].step(index).token for index in range(10)] == tokens and not trace[0].sites


@pytest.mark.parametrize("where", ["/dev/full", "missing"])
def test_a_recording_that_breaks_is_one_line(folder: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    log = str(tmp_path / "file" / "x.tklog") if where == "missing" else where
    plain = run(folder, str(folder / "model"))
    told = run(folder, str(folder / "model"), TRACEKIT_LOG=log)
    assert (told.returncode, told.stdout) == (0, plain.stdout)
    assert len(told.stderr.splitlines()) == 1 and "the program goes on" in told.stderr


def test_a_log_is_made_once(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "x.tklog"
    log.write_bytes(b"TKL1 and frames")
    told = run(folder, str(folder / "model"), TRACEKIT_LOG=str(log), TRACEKIT_LOG_IS_NEW="1")
    assert told.returncode == 0 and "another process" in told.stderr
    assert log.read_bytes() == b"TKL1 and frames"


class Brain16(bytearray):
    """An array of another library in bfloat16: a buffer, and a dtype that numpy does not know."""

    dtype = "other.bfloat16"
    shape = (2, 3)


def test_shapes_and_dtypes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    with tracekit.Recording("numpy", tmp_path / "x.h5") as recording:
        generation = recording.sequence([1, 2, 3])
        heads = np.zeros((1, 2, 3, 4), np.float32)
        values = {"a": rows[None], "b": rows, "b.last": rows[-1:], "heads": heads, "half": rows.astype(np.float16)}
        generation.forward(0, 3, values | {"c:in": rows})
        generation.end()
    with tracekit.open(tmp_path / "x.h5") as trace:
        assert trace[0].sites["b.last"].ranges == ((2, 3),)
        assert np.array_equal(trace[0].site("c:in").values, rows) and "heads" not in trace[0].sites
        assert trace[0].site("half").dtype == "float16"
    assert capsys.readouterr().err == ""
    with tracekit.Recording("numpy", tmp_path / "y.tklog") as recording:
        recording.sequence([1]).forward(0, 3, {"a": np.zeros((2, 3, 4), np.float32)})
    assert "with a batch of one" in capsys.readouterr().err


def test_bits_of_other_libraries(tmp_path: Path) -> None:
    bits = np.arange(6, dtype=np.uint16).reshape(2, 3)
    with tracekit.Recording("other", tmp_path / "x.h5") as recording:
        recording.sequence([1, 2]).forward(0, 2, {"a": Brain16(bits.tobytes())})
    with tracekit.open(tmp_path / "x.h5") as trace:
        assert trace[0].site("a").dtype == "bfloat16" and np.array_equal(trace[0].read("a", 0, 2), bits)
