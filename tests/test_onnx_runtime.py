"""ONNX Runtime recorded: the run that records is the run, modules have their names, planted edits are named."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import tracekit_torch
import transformers

import tracekit
from tests.speech_traces import tracekit as command
from tracekit.inspection.losses import ResultsNotCompared
from tracekit.programs.recorded import recorded as recorded_program
from tracekit.trace import Trace

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import tracekit_onnx  # noqa: E402

IDS = torch.tensor([[5, 17, 9, 40, 22, 8]])
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def made(folder: Path, model: Any) -> Any:
    """The model with norms and biases that are not all alike, loaded from a checkpoint."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(3)
    model.save_pretrained(folder / "model")
    return type(model).from_pretrained(folder / "model").eval()


def exported(model: Any, path: Path, arguments: tuple[Any, ...], **how: Any) -> Path:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, arguments, path, dynamo=True, verbose=False, **how)
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder without a cache, its checkpoint, and its recording in PyTorch."""
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64)
    model = made(folder, transformers.LlamaForCausalLM(config))
    seq = {"input_ids": {1: torch.export.Dim("seq", min=2, max=60)}, "use_cache": None}
    exported(model, folder / "m.onnx", (), kwargs={"input_ids": IDS, "use_cache": False}, dynamic_shapes=seq)
    with torch.no_grad(), tracekit_torch.record(model, folder / "call.h5"):
        model(IDS)
    with torch.no_grad(), tracekit_torch.record(model, folder / "generate.h5"):
        # The exported graph says nothing of a stop token.
        model.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    model = made(folder, transformers.BertModel(transformers.BertConfig(**SIZES)))
    mask = torch.ones_like(IDS)
    exported(model, folder / "m.onnx", (IDS, mask), input_names=["input_ids", "attention_mask"])
    with torch.no_grad(), tracekit_torch.record(model, folder / "call.h5"):
        model(IDS, mask)
    return folder


FEEDS = {
    "llama": {"input_ids": IDS.numpy()},
    "bert": {"input_ids": IDS.numpy(), "attention_mask": np.ones((1, 6), np.int64)},
}


def recorded(path: Path, feeds: dict[str, Any], out: Path) -> Trace:
    tracekit_onnx.record(path, feeds, out)
    return tracekit.open(out)


def edited(folder: Path, out: Path, edit: Any) -> Path:
    """The file with one thing changed; tensors are inside it."""
    model = onnx.load_model(folder / "m.onnx")
    edit(model)
    onnx.save_model(model, out / "edited.onnx")
    return out / "edited.onnx"


def scopes(node: Any) -> list[str]:
    said = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
    return [word.strip(" '\"[]") for word in said.split(",")]


def tensor(model: Any, name: str) -> Any:
    return next(each for each in model.graph.initializer if each.name == name)


def put(held: Any, values: np.ndarray) -> None:
    held.CopyFrom(onnx.numpy_helper.from_array(values, held.name))


# -------------------------------------------------------------------- the run is the run


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_recorded_session_gives_what_the_session_gives(
    name: str, level: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(name)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(folder / "m.onnx", options)
    plain = session.run(None, FEEDS[name])
    with tracekit_onnx.RecordedSession(session, tmp_path / "t.h5") as wrapped:
        for _ in range(2):
            assert all(
                np.array_equal(one, other) for one, other in zip(plain, wrapped.run(None, FEEDS[name]), strict=True)
            )
        assert wrapped.get_providers() == session.get_providers()
        (some,) = wrapped.run([session.get_outputs()[0].name], FEEDS[name])
        assert np.array_equal(some, plain[0])
        with pytest.raises(Exception) as theirs:
            session.run(None, {})
        with pytest.raises(type(theirs.value)):
            wrapped.run(None, {})
    with tracekit.open(tmp_path / "t.h5") as trace:
        assert len(trace.sequences) == 3 and trace.status == "complete"


def test_a_recording_that_breaks_leaves_the_run_alone(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = ort.InferenceSession(llama / "m.onnx")
    wrapped = tracekit_onnx.RecordedSession(session, tmp_path / "t.h5")
    monkeypatch.setattr(wrapped, "_record", lambda *_: 1 / 0)
    plain = session.run(None, FEEDS["llama"])
    for _ in range(2):
        assert np.array_equal(wrapped.run(None, FEEDS["llama"])[0], plain[0])
    wrapped.close()
    assert capsys.readouterr().err.count("\n") == 1
    assert tracekit.open(tmp_path / "t.h5").status == "recovered"


# -------------------------------------------------------------------- parity


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_an_export_is_at_parity_with_its_program(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(name)
    trace = recorded(folder / "m.onnx", FEEDS[name], tmp_path / "t.h5")
    found = tracekit.diff(folder / "call.h5", trace)
    assert found.verdict == "parity", str(found)
    reference = tracekit.open(folder / "call.h5")
    assert set(reference.sequences[0].sites) == set(trace.sequences[0].sites)
    wired = {site: row.input for site, row in reference.sites.items() if row.input is not None}
    assert {site: trace.sites[site].input for site in wired} == wired
    held = {site: row.parameters for site, row in reference.sites.items() if site in trace.sequences[0].sites}
    assert {site: trace.sites[site].parameters for site in held} == held
    # Whatever the exporter calls a weight and however it stores it, its digest is that of the program's own.
    ours = {row: weight.digest for row, weight in trace.weights.items()}
    assert len(ours) >= 21 and all(
        reference.weights[row].digest == ours[row] for row in ours if row in reference.weights
    )


@pytest.mark.parametrize("side", ["call.h5", "ort.h5"])
@pytest.mark.parametrize("kind", ["m.onnx", "alone/m.onnx", "model", "model.safetensors", "m.pt", "m.jit"])
def test_a_run_is_audited_against_a_checkpoint_of_any_kind(llama: Path, tmp_path: Path, kind: str, side: str) -> None:
    """The graph's own file too, whatever its exporter calls the weights and however it turns them."""
    weights = tmp_path / kind
    weights.parent.mkdir(exist_ok=True)
    state = safetensors.torch.load_file(llama / "model/model.safetensors")
    if weights.suffix == ".onnx":
        onnx.save_model(onnx.load_model(llama / "m.onnx"), weights)
    elif weights.suffix == ".pt":
        torch.save(state, weights)
    elif weights.suffix == ".jit":
        as_script(state, weights)
    else:
        weights = next((llama / "model").glob(f"*{weights.suffix}")) if weights.suffix else llama / "model"
    recorded(llama / "m.onnx", FEEDS["llama"], tmp_path / "ort.h5").close()
    trace = llama / side if side == "call.h5" else tmp_path / side
    found = tracekit.audit(trace, weights)
    assert (found.exit_code, found.culprits, found.weights) == (0, (), ())
    declared = weights.is_dir() or weights.parent.name == "model"
    # A graph states no settings: without a config.json, norms and attention are not recomputed, and that is said.
    assert len(found.clean) == (29 if declared or side == "call.h5" else 16), found.text
    assert ("those that the trace itself states" in found.text) == (not declared and side == "call.h5")
    other = edited(llama, tmp_path, lambda model: put(tensor(model, "model.norm.weight"), np.full(32, 2, np.float32)))
    told = tracekit.audit(trace, other)
    assert told.exit_code == 1 and told.weights == ("model.norm.weight",)


def as_script(state: dict[str, torch.Tensor], path: Path) -> None:
    """The parameters as a TorchScript file keeps them."""
    whole = torch.nn.Module()
    for name, value in state.items():
        *parts, last = name.split(".")
        module = whole
        for part in parts:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(value))
    scripted(path, whole)


def test_generations_with_and_without_a_cache(llama: Path, tmp_path: Path) -> None:
    ids = IDS[0].tolist()
    free = tracekit_onnx.generate(llama / "m.onnx", ids, max_new_tokens=5)
    assert tracekit_onnx.generate(llama / "m.onnx", ids, tmp_path / "t.h5", max_new_tokens=5) == free
    assert tracekit.diff(llama / "generate.h5", tmp_path / "t.h5").verdict == "parity"
    cached = with_cache(llama, tmp_path)
    free = tracekit_onnx.generate(cached, ids, max_new_tokens=5)
    assert tracekit_onnx.generate(cached, ids, tmp_path / "c.h5", max_new_tokens=5) == free
    trace = tracekit.open(tmp_path / "c.h5")
    assert trace.sequences[0].sites["model.layers.1.mlp.up_proj"].ranges == ((0, 10),)
    assert tracekit.diff(llama / "generate.h5", trace).verdict == "parity"


def with_cache(folder: Path, out: Path) -> Path:
    """The decoder as optimum exports it: `past_key_values.N.key` in, `present.N.key` out."""

    class WithCache(transformers.LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor, *past: torch.Tensor) -> Any:
            cache = transformers.DynamicCache()
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            hidden = self.model(input_ids, past_key_values=cache, use_cache=True).last_hidden_state
            return self.lm_head(hidden), *[part for layer in cache.layers for part in (layer.keys, layer.values)]

    model = WithCache.from_pretrained(folder / "model").eval()
    past = tuple(torch.randn(1, 2, 4, 8) for _ in range(4))
    names = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    dynamic = torch.export.Dim.DYNAMIC
    return exported(
        model,
        out / "cached.onnx",
        (IDS[:, :3], *past),
        input_names=["input_ids", *(f"past_key_values.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
        dynamic_shapes={"input_ids": {1: dynamic}, "past": tuple({2: dynamic} for _ in past)},
    )


def test_a_programs_own_loop_is_one_sequence_with_its_tokens(llama: Path, tmp_path: Path) -> None:
    session = ort.InferenceSession(with_cache(llama, tmp_path))
    names = [value.name for value in session.get_inputs()][1:]
    with tracekit_onnx.RecordedSession(session, tmp_path / "own.h5") as wrapped:
        for _ in range(2):
            fed, cache, tokens = IDS.numpy(), {name: np.zeros((1, 2, 0, 8), np.float32) for name in names}, []
            for _ in range(4):
                logits, *present = wrapped.run(None, {"input_ids": fed} | cache)
                tokens.append(int(logits[0, -1].argmax()))
                fed, cache = np.array([tokens[-1:]]), dict(zip(names, present, strict=True))
    with tracekit.open(tmp_path / "own.h5") as trace:
        assert [list(sequence.tokens) for sequence in trace.sequences] == [tokens[:3]] * 2  # nothing shows the last one
        assert trace.sequences[0].inputs["token_ids"].tolist() == IDS[0].tolist()


# -------------------------------------------------------------------- planted edits


def weight(model: Any) -> None:
    """One column of the second layer's gate, which the exporter calls `val_...` and stores transposed."""
    node = next(each for each in model.graph.node if "model.layers.1.mlp.gate_proj" in scopes(each))
    held = tensor(model, node.input[1])
    values = onnx.numpy_helper.to_array(held).copy()
    values[3] *= np.float32(1.01)
    put(held, values)


def norm_eps(model: Any) -> None:
    """The epsilon of one norm: the others keep theirs."""
    inside = [each for each in model.graph.node if "model.layers.1.post_attention_layernorm" in scopes(each)]
    added = next(each for each in inside if each.op_type == "Add")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "other_eps"))
    at = next(at for at, name in enumerate(added.input) if not tensor_shape(model, name))
    added.input[at] = "other_eps"


def tensor_shape(model: Any, name: str) -> list[int] | None:
    return next((list(each.dims) for each in model.graph.initializer if each.name == name), [1])


def layer_norm_eps(model: Any) -> None:
    node = next(each for each in model.graph.node if "encoder.layer.1.output.LayerNorm" in scopes(each))
    next(each for each in node.attribute if each.name == "epsilon").f = 0.05


def scale(model: Any) -> None:
    """Queries of the first layer are scaled by another number."""
    inside = [
        each for each in model.graph.node if each.op_type == "Mul" and "scaled_dot_product_attention" in scopes(each)
    ]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "other_scale"))
    inside[0].input[1] = "other_scale"


EDITS = {
    "weight": ("llama", weight, "weights", "model.layers.1.mlp.gate_proj"),
    "eps": ("llama", norm_eps, "layer", "model.layers.1.post_attention_layernorm"),
    "eps of LayerNorm": ("bert", layer_norm_eps, "layer", "encoder.layer.1.output.LayerNorm"),
    "scale": ("llama", scale, "layer", "model.layers.0.self_attn.o_proj:in"),
    "scale of BERT": ("bert", scale, "layer", "encoder.layer.0.attention.self"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_the_file_is_named(edit: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name, change, cause, site = EDITS[edit]
    folder = request.getfixturevalue(name)
    path = edited(folder, tmp_path, change)
    found = tracekit.diff(folder / "call.h5", recorded(path, FEEDS[name], tmp_path / "t.h5"))
    told = found.to_json()
    assert (told["verdict"], told["cause"]) == ("divergence", cause), str(found)
    assert site in (told["site"] or str(found)), str(found)


def test_the_twin_of_every_edit_is_at_parity(llama: Path, bert: Path, tmp_path: Path) -> None:
    """Written again with the tensors inside, nothing else."""
    for name, folder in (("llama", llama), ("bert", bert)):
        path = edited(folder, tmp_path, lambda model: None)
        trace = recorded(path, FEEDS[name], tmp_path / f"{name}.h5")
        assert tracekit.diff(folder / "call.h5", trace).verdict == "parity"


# -------------------------------------------------------------------- graphs


def test_fused_nodes_are_said(bert: Path, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    with tracekit_onnx.RecordedSession(ort.InferenceSession(bert / "m.onnx", options), tmp_path / "all.h5") as wrapped:
        wrapped.run(None, FEEDS["bert"])
        assert wrapped.fused is not None and wrapped.fused.operators["SkipLayerNormalization"] == 5
        assert "encoder.layer.1.output.LayerNorm:in" in wrapped.fused.sites
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tracekit_onnx.RecordedSession(
        ort.InferenceSession(bert / "m.onnx", options), tmp_path / "basic.h5"
    ) as wrapped:
        wrapped.run(None, FEEDS["bert"])
        assert not wrapped.fused.operators
    with tracekit.open(tmp_path / "all.h5") as fused, tracekit.open(tmp_path / "basic.h5") as basic:
        assert (
            fused.config["recorder"]["fused"]["operators"] and fused.config["recorder"]["optimisation"] == "enable_all"
        )
        assert not basic.config["recorder"]["fused"]["operators"] and "lost" not in basic.config


class Listener(torch.nn.Module):
    """Not a language model: [batch, channels, time], a different half for each rate."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv1d(4, 2, 3))
        self.out = torch.nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.encoder(x.unsqueeze(1)).flatten(1))


def test_branches_give_the_values_of_the_one_that_was_taken(tmp_path: Path) -> None:
    """Names as the exporter before dynamo and spox leave them; the other branch has none."""
    make, values = onnx.helper.make_node, np.random.default_rng(0)

    def branch(name: str) -> Any:
        held = values.standard_normal((8, 4)).astype(np.float32)
        constant = make("Constant", [], [f"{name}.weight"], value=onnx.numpy_helper.from_array(held, "w"))
        product = make("MatMul", ["x", f"{name}.weight"], [f"{name}_y"], f"{name}__/encoder/0/proj/MatMul")
        again = make("Relu", [f"{name}_y"], [f"{name}_z"], f"{name}__/encoder/0/act/Relu")
        out = onnx.helper.make_tensor_value_info(f"{name}_z", 1, None)
        return onnx.helper.make_graph([constant, product, again], name, [], [out])

    node = make("If", ["high"], ["y"], "If_0", then_branch=branch("then"), else_branch=branch("else"))
    given = [onnx.helper.make_tensor_value_info("x", 1, [1, "t", 8]), onnx.helper.make_tensor_value_info("high", 9, [])]
    graph = onnx.helper.make_graph([node], "g", given, [onnx.helper.make_tensor_value_info("y", 1, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, tmp_path / "b.onnx")
    x = np.ones((1, 5, 8), np.float32)
    for high, taken in ((True, "then_branch"), (False, "else_branch")):
        trace = recorded(tmp_path / "b.onnx", {"x": x, "high": np.array(high)}, tmp_path / f"{high}.h5")
        sites = trace.sequences[0].sites
        assert f"{taken}.encoder.0.proj" in sites and all(name.startswith(taken) or name == "output" for name in sites)
        assert sites[f"{taken}.encoder.0.proj"].ranges == ((0, 5),)


def test_the_exporter_before_dynamo_names_modules_as_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Listener().eval(), torch.randn(2, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), tmp_path / "l.onnx", dynamo=False, input_names=["x"])
    with torch.no_grad(), tracekit_torch.record(module, tmp_path / "py.h5"):
        module(x)
    trace = recorded(tmp_path / "l.onnx", {"x": x.numpy()}, tmp_path / "ort.h5")
    assert {"encoder.0", "encoder.2", "out"} <= set(trace.sequences[0].sites)
    assert tracekit.diff(tmp_path / "py.h5", trace).verdict == "parity"


# -------------------------------------------------------------------- the command


def test_the_engine_of_record(llama: Path, tmp_path: Path) -> None:
    engine = ["record", "--engine", "onnx", str(llama / "m.onnx"), "-o", str(tmp_path / "t.h5")]
    code, said = command(*engine, "--prompt-ids", ",".join(map(str, IDS[0].tolist())), "--max-new-tokens", "5")
    assert code == 0, said
    with tracekit.open(llama / "generate.h5") as reference:
        assert said.split("\n")[0] == ",".join(str(token) for token in reference.sequences[0].tokens)
    np.savez(tmp_path / "inputs.npz", **FEEDS["llama"])
    assert command(*engine, "--inputs", str(tmp_path / "inputs.npz"))[0] == 0
    assert tracekit.diff(llama / "call.h5", tmp_path / "t.h5").verdict == "parity"


class Bigrams(torch.nn.Module):
    """A decoder of no library, whose ids have a name of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(64, 16), torch.nn.Linear(16, 64)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(idx)))


def test_the_only_input_of_integers_is_the_ids(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Bigrams().eval()
    path = exported(model, tmp_path / "m.onnx", (IDS,), dynamic_shapes=({1: torch.export.Dim("seq", min=2, max=60)},))
    words = ("--prompt-ids", ",".join(map(str, IDS[0].tolist())), "--max-new-tokens", "3", "-o", str(tmp_path / "t.h5"))
    code, said = command("record", "--engine", "onnx", str(path), *words)
    assert code == 0, said
    ids = IDS
    for _ in range(3):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    with tracekit.open(tmp_path / "t.h5") as trace:
        assert trace.sequences[0].tokens.tolist() == ids[0, -3:].tolist()


def test_what_cannot_be_recorded_is_one_line(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x08" + bytes(40))
    np.savez(tmp_path / "wrong.npz", other=np.ones(3))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04" + bytes(40))
    np.save(tmp_path / "evil.npy", np.array([object()], dtype=object), allow_pickle=True)
    good = str(llama / "m.onnx")
    for words in (
        [str(tmp_path / "bad.onnx"), "--prompt-ids", "1"],
        [str(tmp_path / "none.onnx"), "--prompt-ids", "1"],
        [good, "--prompt-ids", ""],
        [good, "--prompt-ids", "1", "--optimisation", "fast"],
        [good, "--inputs", str(tmp_path / "wrong.npz")],
        [good, "--inputs", str(tmp_path / "bad.npz")],
        [good, "--inputs", str(tmp_path / "evil.npy")],
        [good, "--inputs", str(tmp_path / "none.npz")],
    ):
        code, said = command("record", "--engine", "onnx", *words, "-o", str(tmp_path / "t.h5"))
        assert code == 2 and said.count("\n") == 0, (words, said)


def test_the_runtime_against_itself_and_as_a_command_that_a_bisection_runs(llama: Path, tmp_path: Path) -> None:
    request = (str(llama / "m.onnx"), "--prompt-ids", "5,17,9,40", "--max-new-tokens", "3")
    code, said = command("check", "--engine", "onnx", "--", *request)
    assert code == 0 and said.count("optimisation") == 3, said
    words = ["tracekit", "record", "--engine", "onnx", *request]
    path = recorded_program(words, tmp_path / "run")
    assert tracekit.open(path).sequences[0].step_count == 3


def in_batches(folder: Path, out: Path, late: bool = True) -> Path:
    """A decoder with a cache, a mask and any number of rows. `late`: whether positions go on where the cache ends."""

    class Batched(transformers.LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor) -> Any:
            cache = transformers.DynamicCache()
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            places = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
            if not late:
                places = torch.arange(input_ids.shape[1])[None].expand(input_ids.shape)
            hidden = self.model(
                input_ids,
                attention_mask=attention_mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            return self.lm_head(hidden), *[part for layer in cache.layers for part in (layer.keys, layer.values)]

    model = Batched.from_pretrained(folder / "model", attn_implementation="eager").eval()
    past = tuple(torch.randn(2, 2, 4, 8) for _ in range(4))
    names = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    dynamic = torch.export.Dim.DYNAMIC
    return exported(
        model,
        out / "batched.onnx",
        (IDS[:, :3].repeat(2, 1), torch.ones(2, 7, dtype=torch.long), *past),
        input_names=["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
        dynamic_shapes={
            "input_ids": {0: dynamic, 1: dynamic},
            "attention_mask": {0: dynamic, 1: dynamic},
            "past": tuple({0: dynamic, 2: dynamic} for _ in past),
        },
    )


WAYS = {"at_once", "chunks", "second_request", "prefix_reused", "in_a_batch"}


@pytest.mark.parametrize("sound", [True, False])
def test_a_decoder_with_a_cache_is_checked_in_the_ways_of_its_inputs(llama: Path, tmp_path: Path, sound: bool) -> None:
    path = in_batches(llama, tmp_path, late=sound)
    words = [str(path), "--prompt-ids", "5,17,9,40,3,8", "--max-new-tokens", "5"]
    code, said = command("check", "--json", "--engine", "onnx", "--", *words)
    found = json.loads(said)["findings"]
    outcomes = {(each["way"], each["value"]): each["outcome"] for each in found}
    assert {way for way, _ in outcomes} >= WAYS, outcomes
    faults = {way for way, outcome in outcomes.items() if outcome == "fault"}
    if sound:
        assert code == 0 and not faults, outcomes
    else:
        assert code == 1 and {way for way, _ in faults} >= {"at_once", "chunks", "prefix_reused"}, outcomes


def test_ways_that_a_graph_has_no_inputs_for_are_refused_in_one_line(llama: Path, tmp_path: Path) -> None:
    for words in (["--chunk", "2"], ["--keep-prefix", "2"]):
        request = [str(llama / "m.onnx"), "--prompt-ids", "5,17", *words, "-o", str(tmp_path / "t.h5")]
        code, said = command("record", "--engine", "onnx", *request)
        assert code == 2 and words[0] in said and said.count("\n") == 0


# -------------------------------------------------------------------- graphs of other kinds


def graph_file(path: Path, nodes: list[Any], shape: list[int], held: dict[str, np.ndarray]) -> Path:
    """A graph from `x` of a shape to `y`."""
    ends = [onnx.helper.make_tensor_value_info(name, 1, sides) for name, sides in (("x", shape), ("y", None))]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def same_as_plain(path: Path, feeds: dict[str, Any], out: Path) -> Trace:
    """Its recording, of a run that gives what the plain one gives."""
    plain = ort.InferenceSession(path).run(None, feeds)
    given = tracekit_onnx.record(path, feeds, out)
    assert all(np.array_equal(one, other) for one, other in zip(plain, given, strict=True))
    trace = tracekit.open(out)
    assert trace.status == "complete"
    return trace


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
def test_what_is_inside_a_loop_is_said_not_to_be_recorded(tmp_path: Path, kind: str) -> None:
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    inside = make("MatMul", ["h", "cell.weight"], ["hh"], "/cell/MatMul")
    if kind == "Loop":
        held = [info("i", 7, []), info("c", 9, []), info("h", 1, None)]
        ends = [info("co", 9, []), info("hh", 1, None)]
        body = onnx.helper.make_graph([inside, make("Identity", ["c"], ["co"])], "b", held, ends)
        loop = [make("Loop", ["turns", "true", "a"], ["z"], "/loop/Loop", body=body)]
    else:
        added = [make("Add", ["hh", "e"], ["s"]), make("Identity", ["s"], ["o"])]
        ends = [info("s", 1, [4]), info("o", 1, [4])]
        body = onnx.helper.make_graph([inside, *added], "b", [info("h", 1, [4]), info("e", 1, [4])], ends)
        scan = make("Scan", ["zero", "rows"], ["last_state", "all"], "/loop/Scan", body=body, num_scan_inputs=1)
        loop = [make("Squeeze", ["a", "axes"], ["rows"]), scan, make("Unsqueeze", ["all", "axes"], ["z"])]
    first, last = (
        make("MatMul", list(at[:2]), [at[2]], at[3])
        for at in (("x", "first.weight", "a", "/first/MatMul"), ("z", "last.weight", "y", "/last/MatMul"))
    )
    weights = {
        f"{name}.weight": np.eye(4, dtype=np.float32) + number for number, name in enumerate(("first", "cell", "last"))
    }
    held_too = {"turns": np.array(3), "true": np.array(True), "axes": np.array([0]), "zero": np.zeros(4, np.float32)}
    path = graph_file(tmp_path / "m.onnx", [first, *loop, last], [1, 3, 4], weights | held_too)
    trace = same_as_plain(path, {"x": np.ones((1, 3, 4), np.float32)}, tmp_path / "t.h5")
    assert {"first", "last"} <= set(trace.sequences[0].sites)
    assert trace.sites["cell"].skipped == f"it is inside a {kind}, which runs it again and again"
    assert set(weights) <= set(trace.weights)


def test_an_image_is_one_position_and_a_node_of_no_scope_is_a_module(tmp_path: Path) -> None:
    """As Paddle and other converters write graphs: nothing says which module a node is from."""
    draw = np.random.default_rng(0)
    held = {
        "w_0": draw.standard_normal((8, 3, 3, 3), np.float32),
        "w_1": draw.standard_normal((4, 8, 1, 1), np.float32),
    }
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "w_0"], ["a"], "p2o.Conv.0"),
        make("Relu", ["a"], ["b"]),
        make("Conv", ["b", "w_1"], ["y"]),
    ]
    path = graph_file(tmp_path / "m.onnx", nodes, [2, 3, 8, 8], held)
    image = draw.standard_normal((2, 3, 8, 8), np.float32)
    trace = same_as_plain(path, {"x": image}, tmp_path / "t.h5")
    assert [sequence.positions for sequence in trace.sequences] == [1, 1]
    assert {"p2o.Conv.0": (1, 288), "y": (1, 144)}.items() <= {
        name: trace[1].site(name).values.shape for name in trace.sequences[1].sites
    }.items()
    put_wrong = onnx.load_model(path)
    put(tensor(put_wrong, "w_1"), held["w_1"] * np.float32(1.01))
    onnx.save_model(put_wrong, tmp_path / "wrong.onnx")
    found = tracekit.diff(trace, same_as_plain(tmp_path / "wrong.onnx", {"x": image}, tmp_path / "w.h5"))
    assert (found.verdict, found.cause, found.site) == ("divergence", "weights", "y")
    assert "y.weight" in found.text


def test_what_onnx_runtime_makes_of_a_graph_is_recorded_or_said(llama: Path, tmp_path: Path) -> None:
    """Optimised offline, in its own operators; quantised to integers, in its own and as QuantizeLinear pairs."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    onnx.save_model(onnx.load_model(llama / "m.onnx"), tmp_path / "m.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(tmp_path / "m.onnx", options)
    fused = same_as_plain(tmp_path / "fused.onnx", FEEDS["llama"], tmp_path / "fused.h5")
    assert len(fused.sequences[0].sites) >= 25
    nameless = tracekit.diff(llama / "call.h5", fused)  # the nodes have lost the scopes that they were named by
    assert nameless.verdict == "withheld"
    assert any(isinstance(each, ResultsNotCompared) for each in nameless.evidence)

    quantization.quantize_dynamic(tmp_path / "m.onnx", tmp_path / "int8.onnx")
    integers = same_as_plain(tmp_path / "int8.onnx", FEEDS["llama"], tmp_path / "int8.h5")
    whole = [name for name, site in integers.sites.items() if site.module_class == "MatMulInteger"]
    assert len(whole) == 15 and all(integers.sites[name].skipped == "gives no floats" for name in whole)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([FEEDS["llama"]])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    quantization.quantize_static(tmp_path / "m.onnx", tmp_path / "pairs.onnx", Reader())
    pairs = same_as_plain(tmp_path / "pairs.onnx", FEEDS["llama"], tmp_path / "pairs.h5")
    assert {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"} <= set(pairs.sequences[0].sites)
    assert not pairs.weights  # integers are no parameter of the program


# -------------------------------------------------------------------- TorchScript


def scripted(path: Path, module: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(path)
        return torch.jit.load(path).eval()


def test_torchscript_is_compared_with_its_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Listener().eval(), torch.randn(3, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), tmp_path / "l.onnx", dynamo=False, input_names=["x"])
    program = scripted(tmp_path / "l.jit", module)
    with torch.no_grad():
        plain = program(x)
        with tracekit_torch.record_script(program, tmp_path / "jit.h5"):
            assert torch.equal(program(x), plain)
            with pytest.raises(RuntimeError):
                program(torch.ones(3))  # an error of the program is the program's
            assert torch.equal(program(x), plain)
        assert torch.equal(program(x), plain)
    trace = recorded(tmp_path / "l.onnx", {"x": x.numpy()}, tmp_path / "ort.h5")
    with tracekit.open(tmp_path / "jit.h5") as reference:
        assert len(reference.sequences) == 2 and reference.status == "complete"
        sites = set(reference.sequences[0].sites)
        assert {"encoder.0", "encoder.0:in", "encoder.2", "encoder.2:in", "out"} <= sites
        assert reference.sites["out"].input == "encoder.2"
    with torch.no_grad(), tracekit_torch.record_script(program, tmp_path / "once.h5"):
        program(x)
    assert tracekit.diff(tmp_path / "once.h5", trace).verdict == "parity"
    model = onnx.load_model(tmp_path / "l.onnx")
    held = tensor(model, "encoder.2.weight")
    put(held, onnx.numpy_helper.to_array(held) * np.float32(1.01))
    onnx.save_model(model, tmp_path / "edited.onnx")
    found = tracekit.diff(tmp_path / "once.h5", recorded(tmp_path / "edited.onnx", {"x": x.numpy()}, tmp_path / "e.h5"))
    assert found.verdict == "divergence" and "encoder.2" in str(found)


SILERO = os.environ.get("TRACEKIT_SILERO", "")
"""The folder `silero_vad/data` of the package silero-vad 6.2.3."""


@pytest.mark.skipif(not SILERO, reason="TRACEKIT_SILERO names no folder")
@pytest.mark.parametrize(("rate", "samples", "context"), [(16000, 512, 64), (8000, 256, 32)])
def test_a_voice_detector_in_three_files(rate: int, samples: int, context: int, tmp_path: Path) -> None:
    """Real, not planted: the half for 8 kHz of `silero_vad_op18_ifless.onnx` is of another training."""
    x = (np.random.default_rng(0).standard_normal((1, samples)) * 0.1).astype(np.float32)
    program = torch.jit.load(f"{SILERO}/silero_vad.jit").eval()
    with torch.no_grad(), tracekit_torch.record_script(program, tmp_path / "jit.h5"):
        program(torch.from_numpy(x), rate)
    whole = np.concatenate([np.zeros((1, context), np.float32), x], axis=1)
    feeds = {"input": whole, "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(rate)}
    found = {}
    for name in ("silero_vad", "silero_vad_op18_ifless"):
        recorded(Path(SILERO) / f"{name}.onnx", feeds, tmp_path / f"{name}.h5")
        found[name] = tracekit.diff(tmp_path / "jit.h5", tmp_path / f"{name}.h5")
    assert found["silero_vad"].verdict == "parity"
    told = found["silero_vad_op18_ifless"].to_json()
    if rate == 16000:
        assert told["verdict"] == "parity"
    else:
        assert (told["cause"], told["site"]) == ("layer", "_model_8k.encoder.0.reparam_conv")
