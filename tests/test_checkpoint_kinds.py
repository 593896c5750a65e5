"""Checkpoints of every format, paired by content where their names differ; hostile ones in one line."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.speech_traces import tracekit
from tracekit.checkpoints.pairing import Order, PairedBy, pair_tensors
from tracekit.checkpoints.parameters import open_parameters

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
Tensors = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Half(torch.nn.Module):
    """One sampling rate's part of a model that listens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(width, 16, 3)
        self.rnn = torch.nn.LSTMCell(16, 8)
        self.out = torch.nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(self.conv(x).mean(-1))[0])


class Both(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self._model = Half(20)
        self._model_8k = Half(10)

    def forward(self, x: torch.Tensor, rate: int) -> torch.Tensor:
        return self._model(x) if rate == 16000 else self._model_8k(x)


@pytest.fixture
def tensors() -> Tensors:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Both()).save("both.jit")
    return {name: value.numpy() for name, value in Both().state_dict().items()}


def with_branches(tensors: Tensors, path: str) -> str:
    """As spox writes it: a branch for each rate, weights as constants in it, under names of its own."""

    def branch(prefix: str, name: str) -> Any:
        held = {f"{name}_{key.removeprefix(prefix)}": value for key, value in tensors.items() if key.startswith(prefix)}
        nodes = [
            onnx.helper.make_node("Constant", [], [key], value=onnx.numpy_helper.from_array(value, key))
            for key, value in held.items()
        ]
        axis = onnx.numpy_helper.from_array(np.arange(3), "axes")
        nodes.append(onnx.helper.make_node("Constant", [], [f"{name}_axes"], value=axis))
        return onnx.helper.make_graph(nodes, name, [], [])

    branches = {"then_branch": branch("_model.", "then"), "else_branch": branch("_model_8k.", "else")}
    node = onnx.helper.make_node("If", ["condition"], ["y"], "If_0", **branches)
    onnx.save_model(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])), path)
    return path


def with_initialisers(tensors: Tensors, path: str) -> str:
    held = [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()]
    onnx.save_model(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], held)), path)
    return path


# -------------------------------------------------------------------- pairs


def test_torchscript_and_a_graph_with_branches_hold_the_same_numbers(tensors: Tensors):
    with_branches(tensors, "branches.onnx")
    code, said = tracekit("weights", "both.jit", "branches.onnx")
    assert code == 0 and "SAME  16 tensors compared" in said
    assert "16 paired by content" in said and "2 constants of the second's graph have no partner" in said
    assert tracekit("weights", "branches.onnx", "both.jit")[0] == 0


def test_one_half_of_a_model_that_differs_is_said_at_a_glance(tensors: Tensors):
    trained = {
        name: value + np.float32(0.01) * (np.arange(value.size) % 7).reshape(value.shape).astype(np.float32)
        if name.startswith("_model_8k.rnn")
        else value
        for name, value in tensors.items()
    }
    with_initialisers({name.removeprefix("_"): value for name, value in trained.items()}, "other.onnx")
    code, said = tracekit("weights", "both.jit", "other.onnx")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert code == 1 and "_model.* 8 tensors all equal" in lines
    assert any(line.startswith("_model_8k.* 8 tensors 4 of 8 differ, by up to 0.06 (") for line in lines)
    assert "16 paired by the words of their names" in said


def test_a_file_of_one_half_is_paired_with_that_half(tensors: Tensors):
    """Both halves have all its names, and most of its shapes."""
    half = {name.removeprefix("_model_8k."): value for name, value in tensors.items() if name.startswith("_model_8k.")}
    save_file(half, "half.safetensors")
    told = json.loads(tracekit("weights", "both.jit", "half.safetensors", "--json")[1])
    assert (told["compared"], told["values"], told["extra"]) == (8, [], [])
    assert {name.split(".")[0] for name in told["missing"]} == {"_model"}


def test_a_half_of_another_model_matches_neither(tensors: Tensors):
    random = np.random.default_rng(0)
    other = {
        name.removeprefix("_model."): random.standard_normal(value.shape).astype(np.float32)
        for name, value in tensors.items()
        if name.startswith("_model.")
    }
    save_file(other, "other.safetensors")
    code, said = tracekit("weights", "both.jit", "other.safetensors")
    assert code == 1 and "8 of 8 differ" in said and "unrelated: no nearer" in said


def test_anonymous_and_transposed_matrices_are_found(tensors: Tensors):
    """Exporters call a weight `onnx::MatMul_12` and store it for x @ W."""
    linear = {f"layers.{at}.weight": np.random.default_rng(at).standard_normal((24, 16)) for at in range(3)}
    linear |= {f"layers.{at}.square": np.random.default_rng(9 + at).standard_normal((16, 16)) for at in range(3)}
    linear = {name: value.astype(np.float32) for name, value in linear.items()}
    save_file(linear, "model.safetensors")
    turned = {f"onnx::MatMul_{at}": np.ascontiguousarray(value.T) for at, value in enumerate(linear.values())}
    with_initialisers(turned, "model.onnx")
    code, said = tracekit("weights", "model.safetensors", "model.onnx")
    assert code == 0 and "6 paired by content" in said and "6 are transposed in the second" in said
    rounded = {name: value.astype(np.float16) for name, value in turned.items()}
    rounded["onnx::MatMul_4"][3, 5] += 1
    with_initialisers(rounded, "half.onnx")
    told = json.loads(tracekit("weights", "model.safetensors", "half.onnx", "--json")[1])
    assert [row["by"] for row in told["renamed"]] == ["nearest"] * 6 and told["missing"] == told["extra"] == []
    (worst,) = [row for row in told["values"] if row["note"] is None]
    assert worst["name"] == "layers.1.square" and worst["index"] == [5, 3]


def test_no_pair_is_claimed_that_another_would_fit_as_well():
    random = np.random.default_rng(0)
    base = random.standard_normal((32, 32)).astype(np.float32)
    near = base + np.float32(1e-3) * random.standard_normal((32, 32)).astype(np.float32)
    save_file({"a.weight": base, "b.weight": near, "ones": np.ones(8, np.float32)}, "one.safetensors")
    save_file({"x": (base + near) / 2, "y": random.standard_normal((32, 32)).astype(np.float32)}, "two.safetensors")
    told = json.loads(tracekit("weights", "one.safetensors", "two.safetensors", "--json")[1])
    assert told["compared"] == 0 and len(told["missing"]) == 3 and len(told["extra"]) == 2


def test_simple_numbers_and_repeated_ones_are_on_both_sides_and_which_is_which_is_not_told():
    shared = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    one = {"a.bias": np.zeros(8, np.float32), "b.bias": np.zeros(8, np.float32), "c": shared, "d": shared.copy()}
    save_file(one, "one.safetensors")
    save_file({f"q{at}": value for at, value in enumerate(one.values())}, "two.safetensors")
    code, said = tracekit("weights", "one.safetensors", "two.safetensors")
    assert code == 0 and "4 of the first and 4 of the second hold the same numbers, and which is which" in said


def test_a_single_number_is_not_paired_by_being_near():
    """The bias of the 8 kHz half is nearer to the 16 kHz half's of another version than that half's own is."""
    random = np.random.default_rng(0)
    weights = {f"{half}.out.weight": random.standard_normal(128).astype(np.float32) for half in ("a", "b")}
    save_file(weights | {"a.out.bias": np.float32([-0.62]), "b.out.bias": np.float32([-0.59])}, "one.safetensors")
    save_file({"final.weight": weights["a.out.weight"] * 1.1, "final.bias": np.float32([-0.575])}, "two.safetensors")
    pairing = pair_tensors(open_parameters("one.safetensors"), open_parameters("two.safetensors"))
    assert {(pair.one, pair.other, pair.by) for pair in pairing.pairs} == {
        ("a.out.weight", "final.weight", PairedBy.NEAREST),
        ("a.out.bias", "final.bias", PairedBy.MODULE),
    }


def test_swapped_layers_are_named_by_what_holds_their_numbers():
    random = np.random.default_rng(0)
    layers = {f"layers.{at}.weight": random.standard_normal((8, 8)).astype(np.float32) for at in range(3)}
    save_file(layers, "one.safetensors")
    swapped = layers | {"layers.0.weight": layers["layers.1.weight"], "layers.1.weight": layers["layers.0.weight"]}
    save_file(swapped, "two.safetensors")
    assert "the second holds it as layers.1.weight" in tracekit("weights", "one.safetensors", "two.safetensors")[1]


def test_gates_in_another_order_are_the_same_numbers(tensors: Tensors):
    """ONNX's LSTM wants the gates in the order input, output, forget, cell."""
    weight = tensors["_model.rnn.weight_ih"]
    gates = np.split(weight, 4)
    save_file({"rnn.weight_ih": weight}, "one.safetensors")
    with_initialisers({"onnx::LSTM_9": np.concatenate([gates[at] for at in (0, 3, 1, 2)])[None]}, "two.onnx")
    (pair,) = pair_tensors(open_parameters("one.safetensors"), open_parameters("two.onnx")).pairs
    assert (pair.by, pair.order) == (PairedBy.CONTENT, Order.OTHER)
    assert "the same numbers in another order" in tracekit("weights", "one.safetensors", "two.onnx")[1]


# -------------------------------------------------------------------- formats


def test_every_dtype_and_every_way_to_store_it():
    numbers = np.array([0.5, -2.0, 3.0, 1.5], np.float32)
    make, kinds = onnx.helper.make_tensor, onnx.TensorProto
    held = {
        "float": make("float", kinds.FLOAT, [4], numbers),
        "raw": make("raw", kinds.FLOAT, [4], numbers.tobytes(), raw=True),
        "double": make("double", kinds.DOUBLE, [2, 2], numbers),
        "half": make("half", kinds.FLOAT16, [4], numbers),
        "brain": make("brain", kinds.BFLOAT16, [4], numbers),
        "eight": make("eight", kinds.FLOAT8E4M3FN, [4], numbers),
        "byte": make("byte", kinds.INT8, [4], [1, -2, 3, -4]),
        "nibble": make("nibble", kinds.INT4, [3], [1, -8, 7]),
        "pairs": make("pairs", kinds.UINT4, [3], [1, 15, 7]),
        "long": make("long", kinds.UINT64, [1], [2**40]),
    }
    onnx.save_model(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], list(held.values()))), "a.onnx")
    read = open_parameters("a.onnx")
    assert [read.values(name, 0, 4).tolist() for name in ("float", "raw", "double", "half", "brain", "eight")] == [
        numbers.tolist()
    ] * 6
    assert read.values("byte", 0, 4).tolist() == [1, -2, 3, -4] and read.values("long", 0, 1).tolist() == [2**40]
    assert read.values("nibble", 0, 3).tolist() == [1, -8, 7] and read.values("pairs", 0, 3).tolist() == [1, 15, 7]
    assert [read.dtype(name) for name in ("brain", "eight", "nibble")] == ["bfloat16", "float8_e4m3fn", "int4"]


def test_external_data_is_read_from_the_models_folder(tensors: Tensors):
    save_file(tensors, "model.safetensors")
    model = onnx.load_model(with_initialisers(tensors, "inline.onnx"))
    Path("export").mkdir()
    onnx.save_model(
        model, "export/model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0
    )
    assert Path("export/model.onnx_data").exists()
    assert tracekit("weights", "model.safetensors", "export/model.onnx")[0] == 0
    Path("export/model.onnx_data").unlink()
    code, said = tracekit("weights", "model.safetensors", "export/model.onnx")
    assert code == 2 and "which is not there; put it beside the model" in said


def test_a_pickled_module_is_read_as_its_state_dict(tensors: Tensors):
    save_file({name: value.copy() for name, value in tensors.items()}, "model.safetensors")
    for zipped in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(Both(), "module.pt", _use_new_zipfile_serialization=zipped)
        code, said = tracekit("weights", "model.safetensors", "module.pt")
        assert code == 0 and "SAME  16 tensors compared" in said


def test_views_of_one_storage_are_read_as_they_are():
    whole = torch.arange(24.0).reshape(4, 6)
    torch.save({"turned": whole.T, "columns": whole[:, 2:5], "bits": whole.bfloat16(), "last": whole[3]}, "views.pt")
    read = open_parameters("views.pt")
    assert read.values("turned", 0, 24).tolist() == whole.T.reshape(-1).tolist()
    assert read.values("columns", 3, 9).tolist() == whole[:, 2:5].reshape(-1)[3:9].tolist()
    assert read.values("bits", 0, 24).tolist() == whole.reshape(-1).tolist()
    assert read.values("last", 0, 6).tolist() == whole[3].tolist()


# -------------------------------------------------------------------- files that nobody vouches for


def outside(location: str, **more: str) -> bytes:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=1)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return model_of(tensor)


def model_of(tensor: Any) -> bytes:
    made: bytes = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    return made


HOSTILE = {
    "cut": (lambda: model_of(onnx.helper.make_tensor("w", 1, [4], [1.0] * 4))[:-9], "is no sound ONNX file"),
    "empty": (lambda: b"", "is an ONNX file without a graph"),
    "giant": (
        lambda: model_of(onnx.TensorProto(name="w", data_type=1, dims=[2**40], raw_data=b"1234")),
        "than its shape",
    ),
    "overflow": (lambda: model_of(onnx.TensorProto(name="w", data_type=1, dims=[2**62, 4])), "than its shape"),
    "negative": (lambda: model_of(onnx.TensorProto(name="w", data_type=1, dims=[-4, -1], raw_data=b"1234")), "shape"),
    "unknown": (lambda: model_of(onnx.TensorProto(name="w", data_type=8, dims=[1])), "data type 8 of ONNX"),
    "absolute": (lambda: outside("/etc/passwd"), "in a file outside its folder"),
    "above": (lambda: outside("a/../../secret"), "in a file outside its folder"),
    "windows": (lambda: outside("..\\secret"), "in a file outside its folder"),
    "nowhere": (lambda: outside(""), "in a file outside its folder"),
    "long": (lambda: outside("data.bin", length=str(2**40)), "more or fewer bytes than its shape says"),
    "beyond": (lambda: outside("data.bin", offset="8"), "more or fewer bytes than its shape says"),
    "before": (lambda: outside("data.bin", offset="-4"), "more or fewer bytes than its shape says"),
    "no text": (
        lambda: model_of(onnx.TensorProto(name="wxyz", data_type=1, dims=[0])).replace(b"wxyz", b"\xff\xfexy"),
        "sound",
    ),
    "device": (lambda: outside("pipe"), "which is not there"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_gets_one_line(name: str):
    make, said = HOSTILE[name]
    Path("data.bin").write_bytes(bytes(16))
    Path("bad.onnx").write_bytes(make())
    code, line = tracekit("weights", "bad.onnx", "bad.onnx")
    assert code == 2 and line.startswith("bad.onnx: ") and said in line and "\n" not in line


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').mkdir('pwned')",)


def archive(pickled: bytes, **entries: bytes) -> None:
    with zipfile.ZipFile("bad.jit", "w") as file:
        file.writestr("a/data.pkl", pickled)
        for name, data in entries.items():
            file.writestr(f"a/{name.replace('__', '/')}", data)


def stored(first: int, shape: str, strides: str, count: int) -> bytes:
    """A tensor of float32, as torch's pickler writes it."""
    storage = f"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{count}\ntQ"
    return f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I{first}\n({shape}t({strides}tI00\n(dtR.".encode()


def test_hostile_archives_get_one_line():
    cases: list[tuple[bytes, str]] = [
        (pickle.dumps(Evil(), 2), "wants to run"),
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "wants to run os.system"),
        (stored(0, f"I{2**40}\n", "I1\n", 4), "is no sound checkpoint"),
        (stored(0, f"I{2**40}\n", "I0\n", 4), "is no sound checkpoint"),
        (stored(2, "I4\n", "I1\n", 4), "is no sound checkpoint"),
        (stored(0, "I4\n", "I-1\n", 4), "is no sound checkpoint"),
        (stored(0, "I40\n", "I1\n", 40), "is no sound checkpoint"),
        (b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"}\x94.", "is no sound checkpoint"),
        (b"\x80\x02}" + b"(" * 50_000 + b"t" * 50_000 + b"K\x01s.", "is no sound checkpoint"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "holds a NoneType, not a state dict"),
        (b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b".", "is no sound checkpoint"),
        (b"\x80\x02]q\x00h\x00a.", "holds a list, not a state dict"),
    ]
    for pickled, said in cases:
        archive(pickled, data__0=bytes(16))
        code, line = tracekit("weights", "bad.jit", "bad.jit")
        assert code == 2 and line.startswith("bad.jit: ") and said in line and "\n" not in line, (pickled[:40], line)
    assert not Path("pwned").exists()


def test_a_list_in_itself_is_walked_once():
    archive(b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00a]q\x00h\x00asb.", constants__pkl=b"\x80\x02).")
    with zipfile.ZipFile("bad.jit", "a") as file:
        file.writestr("a/constants.pkl", b"\x80\x02).")
    assert "holds no tensors" in tracekit("weights", "bad.jit", "bad.jit")[1]


def test_compressed_entries_are_not_unpacked():
    with zipfile.ZipFile("bad.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\x80\x02}." + bytes(1 << 22))
    assert "holds compressed or encrypted entries" in tracekit("weights", "bad.pt", "bad.pt")[1]
