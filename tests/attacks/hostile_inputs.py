"""Files that state absurd things in sound containers: checkpoints, configurations and archives.

`make_hostile` has files whose containers lie. Here safetensors, GGUF, ONNX, zip, JSON and YAML are
what they should be, and what they hold is not.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(dtype: str, shape: list[object], offsets: list[int]) -> dict[str, object]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


class _Runs:
    def __reduce__(self) -> object:
        return (exec, ("open('/tmp/tracekit-was-here', 'w').close()",))


def gguf(tensors: int = 0, keys: int = 0, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body


def _string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _onnx(**changes: object) -> bytes:
    import onnx

    tensor = onnx.numpy_helper.from_array(np.zeros((2, 2), np.float32), "w")
    for name, value in changes.items():
        if name == "external":
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, each in dict(value).items():  # type: ignore[call-overload]
                tensor.external_data.add(key=key, value=each)
        elif name == "dims":
            tensor.ClearField("dims")
            tensor.dims.extend(value)  # type: ignore[arg-type]
        else:
            setattr(tensor, name, value)
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    return bytes(onnx.helper.make_model(graph).SerializeToString())


def checkpoints() -> dict[str, bytes]:
    """Checkpoints by file name."""
    deep_pickle = b"\x80\x04" + b"(" * 100_000 + b"."
    memo = b"\x80\x04" + b"".join(b"\x85\x94" for _ in range(10)) + b"."
    doubling = (
        b"\x80\x04]\x94" + b"".join(b"h" + bytes([0]) + b"h" + bytes([0]) + b"\x86\x94" for _ in range(60)) + b"."
    )
    return {
        "header-2-63.safetensors": struct.pack("<Q", 2**63) + b"{}",
        "header-deep.safetensors": safetensors(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "header-list.safetensors": safetensors([1]),
        "shape-huge.safetensors": safetensors(_entry("F32", [2**62, 2**62], [0, 4]), bytes(4)),
        "shape-negative.safetensors": safetensors(_entry("F32", [-1], [0, 4]), bytes(4)),
        "shape-float.safetensors": safetensors(_entry("F32", [1.0], [0, 4]), bytes(4)),
        "shape-zero-huge.safetensors": safetensors(_entry("F32", [0, 2**62], [0, 0])),
        "dims-many.safetensors": safetensors(_entry("F32", [1] * 100, [0, 4]), bytes(4)),
        "dtype-unknown.safetensors": safetensors(_entry("F128", [1], [0, 16]), bytes(16)),
        "nan.safetensors": safetensors(_entry("F32", [2], [0, 8]), struct.pack("<2f", float("nan"), float("inf"))),
        "name-odd.safetensors": safetensors(
            {"../../\n\x1b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
        ),
        "tensors-2-62.gguf": gguf(2**62),
        "keys-2-62.gguf": gguf(0, 2**62),
        "string-2-62.gguf": gguf(0, 1, _string(b"x", 2**62)),
        "array-2-62.gguf": gguf(0, 1, _string(b"general.alignment") + struct.pack("<IIQ", 9, 4, 2**62)),
        "array-nested.gguf": gguf(0, 1, _string(b"x") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20_000),
        "alignment-zero.gguf": gguf(
            1,
            1,
            _string(b"general.alignment") + struct.pack("<II", 4, 0) + _string(b"w") + struct.pack("<IQIQ", 1, 4, 0, 0),
        ),
        "dims-2-31.gguf": gguf(1, 0, _string(b"w") + struct.pack("<I", 2**31)),
        "type-unknown.gguf": gguf(1, 0, _string(b"w") + struct.pack("<IQIQ", 1, 4, 999, 0)),
        "offset-2-63.gguf": gguf(1, 0, _string(b"w") + struct.pack("<IQIQ", 1, 4, 0, 2**63)),
        "runs.pt": zipped({"archive/data.pkl": pickle.dumps(_Runs()), "archive/version": b"3"}),
        "runs-old.pt": pickle.dumps(_Runs(), 2),
        "deep.pt": zipped({"archive/data.pkl": deep_pickle, "archive/version": b"3"}),
        "memo.pt": zipped({"archive/data.pkl": memo, "archive/version": b"3"}),
        "doubling.pt": zipped({"archive/data.pkl": doubling, "archive/version": b"3"}),
        "bomb.pt": zipped({"archive/data.pkl": bytes(1 << 28), "archive/version": b"3"}, zipfile.ZIP_DEFLATED),
        "no-pickle.pt": zipped({"archive/version": b"3"}),
        "empty.pt": b"",
        "external-up.onnx": _onnx(external={"location": "../../../../etc/passwd"}),
        "external-absolute.onnx": _onnx(external={"location": "/etc/passwd"}),
        "external-huge.onnx": _onnx(external={"location": "x.bin", "offset": "-1", "length": str(2**62)}),
        "external-text.onnx": _onnx(external={"location": "x.bin", "offset": "many"}),
        "dims-huge.onnx": _onnx(dims=[2**62, 2**62]),
        "dims-negative.onnx": _onnx(dims=[-2, -2]),
        "type-unknown.onnx": _onnx(data_type=999),
        "text.onnx": b"this is no model\n" * 100,
    }


def folders() -> dict[str, dict[str, bytes]]:
    """Checkpoints that are folders of files."""
    sound = safetensors(_entry("F32", [1], [0, 4]), bytes(4))
    index = lambda value: {"model.safetensors.index.json": json.dumps(value).encode()}  # noqa: E731
    return {
        "index-up": index({"weight_map": {"w": "../../../../etc/passwd"}}),
        "index-absolute": index({"weight_map": {"w": "/etc/passwd"}}),
        "index-missing": index({"weight_map": {"w": "model-1.safetensors"}}),
        "index-number": index({"weight_map": {"w": 7}}),
        "index-list": index({"weight_map": [1]}),
        "index-deep": {"model.safetensors.index.json": b'{"weight_map":' + b"[" * 100_000 + b"]" * 100_000 + b"}"},
        "index-newline": index({"weight_map": {"w": "a\nb.safetensors"}}) | {"a\nb.safetensors": sound},
        "nothing": {"readme.txt": b"x"},
        "config-only": {"config.json": b"{}"},
    }


def configs() -> dict[str, bytes]:
    """Configurations by file name."""
    odd = {
        "layers": {"num_hidden_layers": 10**9, "hidden_size": 32},
        "heads": {"num_attention_heads": -4, "num_key_value_heads": 0, "hidden_size": 32},
        "nan": {"rope_theta": float("nan"), "rms_norm_eps": float("inf"), "hidden_size": 32},
        "texts": {"hidden_size": "many", "num_attention_heads": "4", "eos_token_id": "2"},
        "nested": {"rope_scaling": {"rope_type": ["yarn"], "factor": {"a": 1}}, "hidden_size": 32},
        "huge": {"hidden_size": 10**400, "vocab_size": -(10**30)},
        "null": {"hidden_size": None, "rope_theta": None, "architectures": None},
        "odd-type": {"model_type": ["llama"], "architectures": {"x": 1}, "hidden_size": 32},
    }
    aliases = b"a: &a [x, x]\n" + b"".join(
        f"{chr(98 + index)}: &{chr(98 + index)} [*{chr(97 + index)}, *{chr(97 + index)}]\n".encode()
        for index in range(24)
    )
    return {
        **{f"{name}/config.json": json.dumps(value).encode() for name, value in odd.items()},
        "deep/config.json": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "digits/config.json": b'{"hidden_size": ' + b"9" * 100_000 + b"}",
        "list/config.json": b"[]",
        "text/config.json": b"hello",
        "latin/config.json": b'{"a": "\xe9"}',
        "empty/config.json": b"",
        "aliases.yaml": b"llm: !new:x\n" + aliases,
        "runs.yaml": b"llm: !!python/object/apply:os.system ['touch /tmp/tracekit-was-here']\nsample_rate: 1\n",
        "apply.yaml": b"llm: !apply:os.system ['touch /tmp/tracekit-was-here']\n",
        "loop.yaml": b"llm: &a [*a]\n",
        "merge-loop.yaml": b"a: &a\n  <<: *a\n",
        "deep.yaml": b"a: " + b"[" * 20_000 + b"]" * 20_000,
        "deep-block.yaml": b"".join(b" " * index + b"a:\n" for index in range(3000)),
        "tabs.yaml": b"a:\n\t- b\n",
        "number.yaml": b"7",
        "date.yaml": b"a: 2001-99-99\n",
        "digits.yaml": b"a: " + b"9" * 100_000,
    }


def write(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write files by name."""
    out = []
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        out.append(path)
    return out


SITE = "sequences/0/sites/up"
Edit = Callable[[h5py.File], None]


def _replaced(path: str, **creation: object) -> Edit:
    def edit(file: h5py.File) -> None:
        del file[path]
        file.create_dataset(path, **creation)

    return edit


def _cycle(file: h5py.File) -> None:
    del file["sequences/0/sites"]
    file["sequences/0/sites"] = h5py.SoftLink("/sequences/0")
    file["sequences/0/loop"] = h5py.SoftLink("/sequences/0/loop")


def _hard_cycle(file: h5py.File) -> None:
    del file["sequences/0/sites"]
    file["sequences/0/sites"] = file["sequences"]


def _deep(file: h5py.File) -> None:
    group = file["sequences/0"]
    for _ in range(3000):
        group = group.create_group("0")


def _wide(file: h5py.File) -> None:
    for index in range(20_000):
        file["sequences"].create_group(f"x{index}")


def _text(value: object) -> np.bytes_:
    return np.bytes_(json.dumps(value).encode())


def _stated(**changes: object) -> Edit:
    """The trace states other hyper-parameters."""

    def edit(file: h5py.File) -> None:
        config = json.loads(bytes(file["config"][()]))
        config["model"] = {**config.get("model", {}), **changes}
        del file["config"]
        file["config"] = _text(config)

    return edit


def _many_sites(count: int) -> Edit:
    def edit(file: h5py.File) -> None:
        rows = [{"name": f"m.{index}", "class": "Linear", "order": index} for index in range(count)]
        del file["site_table"]
        file["site_table"] = _text(rows)

    return edit


def archives() -> dict[str, Edit]:
    """Ways to spoil a sound archive whose containers stay sound."""
    compound = np.zeros(9, dtype=[("real", "<f4"), ("imaginary", "<f4")])
    enum = h5py.enum_dtype({"a": 0, "b": 1}, basetype="i4")
    return {
        "soft-link-cycle": _cycle,
        "hard-link-cycle": _hard_cycle,
        "deep-groups": _deep,
        "many-groups": _wide,
        "compound": _replaced(SITE, data=np.zeros((9, 32), dtype=compound.dtype)),
        "enum": _replaced(SITE, shape=(9, 32), dtype=enum),
        "vlen": _replaced(SITE, shape=(9, 32), dtype=h5py.vlen_dtype(np.float32)),
        "objects": _replaced(SITE, shape=(9, 32), dtype=h5py.ref_dtype),
        "regions": _replaced(SITE, shape=(9, 32), dtype=h5py.regionref_dtype),
        "strings": _replaced(SITE, shape=(9, 32), dtype=h5py.string_dtype()),
        "opaque": _replaced(SITE, data=np.zeros((9, 32), dtype="V4")),
        "complex": _replaced(SITE, data=np.zeros((9, 32), dtype=np.complex64)),
        "scalar": _replaced(SITE, data=np.float32(0)),
        "empty-shape": _replaced(SITE, shape=None, dtype="<f4"),
        "no-width": _replaced(SITE, shape=(9, 0), dtype="<f4"),
        "tokens-compound": _replaced("sequences/0/steps/token", data=compound[:6]),
        "tokens-floats": _replaced("sequences/0/steps/token", data=np.full(6, np.nan)),
        "tokens-vlen": _replaced("sequences/0/steps/token", shape=(6,), dtype=h5py.vlen_dtype(np.int64)),
        "tokens-bomb": _replaced(
            "sequences/0/steps/token", shape=(1 << 34,), dtype="<i8", chunks=(1 << 20,), compression=9
        ),
        "logits-bomb": _replaced(
            "sequences/0/steps/logits", shape=(6, 1 << 32), dtype="<f4", chunks=(1, 1 << 20), compression=9
        ),
        "config-vlen": _replaced("config", data=["{}"], dtype=h5py.string_dtype()),
        "config-number": _replaced("config", data=np.float64(np.nan)),
        "config-deep": _replaced("config", data=np.bytes_(b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
        "config-nan": _stated(rope_theta=float("nan"), rms_norm_eps=float("-inf")),
        "config-huge": _stated(num_hidden_layers=10**9, hidden_size=10**12, vocab_size=10**18),
        "config-negative": _stated(num_attention_heads=-4, num_key_value_heads=0, head_dim=-1),
        "config-strings": _stated(num_attention_heads="four", rope_theta="1e4", rms_norm_eps=[1]),
        "many-sites": _many_sites(100_000),
    }
