"""Ways to damage a log or an archive at random: bytes, whatever they mean, and values that a sound file never has."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from tracekit.formats.log import FRAME_HEAD, MAGIC

Damage = Callable[[random.Random, bytes], bytes]

WORDS = [
    *(bytes([byte]) * 8 for byte in (0, 0xFF, 0x7F, 0x80)),
    *(struct.pack("<q", number) for number in (1, -1, 2**31, 2**40, 2**62, -(2**63))),
    *(struct.pack("<d", number) for number in (float("nan"), float("inf"), 1e308, -0.0)),
]
"""Eight bytes that are extreme as a count, an offset or a number."""

DEEP: Any = 0
for _ in range(200):
    DEEP = [DEEP]
VALUES: list[Any] = [
    *(None, True, False, [], {}, "", "x", "0", "-1", "nan", [0], [None], [[]], {"": 0}, {"x": []}, DEEP),
    *(0, 1, -1, 2, 7, 255, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), -(2**64), 10**30),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *("\ud800", "\x1b[2J", "a\nb\r\n", "\0", "../" * 20, "é" * 3000, "float32", "float99", "bool"),
]
"""Anything that JSON can say where something else is expected."""


# Bytes, whatever they mean


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 4, 20, 200])):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def change_head(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        out[rng.randrange(min(4096, len(out)))] = rng.randrange(256)
    return bytes(out)


def overwrite_words(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        at = rng.randrange(max(1, len(out) - 8)) & ~7
        out[at : at + 8] = rng.choice(WORDS)
    return bytes(out)


def overwrite_pointers(rng: random.Random, data: bytes) -> bytes:
    """Eight bytes that look like a place in the file now name another place."""
    out = bytearray(data)
    places = [at for at in range(0, len(out) - 8, 8) if 0 < struct.unpack_from("<Q", out, at)[0] < len(out)]
    for at in rng.sample(places, min(len(places), rng.choice([1, 2, 8]))):
        struct.pack_into("<Q", out, at, rng.randrange(len(out) + 64))
    return bytes(out)


def swap_regions(rng: random.Random, data: bytes) -> bytes:
    length = min(rng.choice([8, 64, 512, 4096]), len(data) // 2)
    one, two = sorted(rng.sample(range(max(2, len(data) - length)), 2))
    out = bytearray(data)
    out[one : one + length], out[two : two + length] = data[two : two + length], data[one : one + length]
    return bytes(out)


def overwrite_block(rng: random.Random, data: bytes) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice([64, 512])
    filled = bytes(length) if rng.random() < 0.5 else rng.randbytes(length)
    return (data[:at] + filled + data[at + length :])[: len(data)]


def insert_or_delete(rng: random.Random, data: bytes) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice([1, 8, 100])
    return data[:at] + (rng.randbytes(length) + data[at:] if rng.random() < 0.5 else data[at + length :])


BYTES: list[Damage] = [
    cut,
    change_bytes,
    change_head,
    overwrite_words,
    overwrite_pointers,
    swap_regions,
    overwrite_block,
    insert_or_delete,
]


# Values


def damaged_json(rng: random.Random, value: Any) -> Any:
    """The value with one thing in it replaced, dropped or repeated."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        out = dict(value)
        if rng.random() < 0.1:
            del out[key]
        elif rng.random() < 0.05:
            out[rng.choice(["", "\ud800", key + " "])] = out.pop(key)
        else:
            out[key] = damaged_json(rng, value[key])
        return out
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        out = list(value)
        if rng.random() < 0.15:
            return out[:at] + out[at + 1 :]
        if rng.random() < 0.15:
            return [*out[:at], *out[at : at + 1] * 2, *out[at + 1 :]]
        out[at] = damaged_json(rng, value[at])
        return out
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.3:
        return value + rng.choice([1, -1, 1000, -1000])
    return rng.choice(VALUES)


def damaged_values(rng: random.Random, values: np.ndarray) -> np.ndarray:
    """The array with some numbers replaced, or another dtype, shape or length."""
    if not isinstance(values, np.ndarray):
        return np.asarray(0)  # an earlier edit left nothing to damage
    out = values.copy()
    kind = rng.randrange(7)
    if kind == 0:
        return out[: rng.randrange(len(out) + 1)] if out.ndim else out.reshape(1)
    if kind == 1:
        return out.reshape(-1) if rng.random() < 0.5 else out[None]
    if kind == 2 and out.dtype.kind in "iuf":
        with np.errstate(all="ignore"):
            return out.astype(rng.choice(["<i1", "<u8", "<i4", "<f2", "<f4", "<f8", ">i8", ">f4", "<c8", "?"]))
    if kind == 3:
        return np.concatenate([out, out]) if out.ndim else out
    if out.size and out.dtype.kind in "iuf":
        flat = out.reshape(-1)
        for _ in range(rng.choice([1, 2, 10])):
            with np.errstate(all="ignore"):
                extreme = np.frombuffer(rng.choice(WORDS)[: out.dtype.itemsize], out.dtype)[0]
                flat[rng.randrange(flat.size)] = rng.choice([extreme, flat[0], flat[-1], flat.dtype.type(50)])
    return out


# Logs: sound frames, hashes right, of which a header or a tensor is not


def split(data: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """(header, tensors' bytes) of each frame of a sound log."""
    out, at = [], 0
    while at < len(data):
        length = FRAME_HEAD.unpack_from(data, at)[2]
        payload = data[at + FRAME_HEAD.size :][:length]
        (header,) = struct.unpack_from("<Q", payload)
        out.append((json.loads(payload[8 : 8 + header]), payload[8 + header :]))
        at += FRAME_HEAD.size + length
    return out


def joined(frames: list[tuple[Any, bytes]], *, hashed: bool = True) -> bytes:
    out = []
    for header, tensors in frames:
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        payload = struct.pack("<Q", len(text)) + text + tensors
        payload += bytes(-len(payload) % 8)
        digest = xxhash.xxh3_64_intdigest(payload) if hashed else 0
        out.append(FRAME_HEAD.pack(MAGIC, 0, len(payload), digest) + payload)
    return b"".join(out)


def log_words(rng: random.Random, data: bytes) -> bytes:
    """One value of a frame's metadata is another."""
    frames: list[tuple[Any, bytes]] = list(split(data))
    at = rng.randrange(len(frames))
    header, tensors = frames[at]
    words = header["__metadata__"]
    name = rng.choice(list(words))
    if name == "kind":
        said: Any = rng.choice([*{frame["__metadata__"]["kind"] for frame, _ in frames}, "", "unknown"])
    else:
        said = json.dumps(damaged_json(rng, json.loads(words[name])))
    frames[at] = ({**header, "__metadata__": {**words, name: said}}, tensors)
    return joined(frames)


def log_header(rng: random.Random, data: bytes) -> bytes:
    """One value of a frame's safetensors header is another."""
    frames: list[tuple[Any, bytes]] = list(split(data))
    at = rng.randrange(len(frames))
    frames[at] = (damaged_json(rng, frames[at][0]), frames[at][1])
    return joined(frames)


def log_frames(rng: random.Random, data: bytes) -> bytes:
    """A frame is missing, comes twice, or comes too early."""
    frames = split(data)
    one, two = rng.randrange(len(frames)), rng.randrange(len(frames))
    kind = rng.randrange(3)
    if kind == 0:
        del frames[one]
    elif kind == 1:
        frames.insert(two, frames[one])
    else:
        frames[one], frames[two] = frames[two], frames[one]
    return joined(frames)


def log_tensors(rng: random.Random, data: bytes) -> bytes:
    """Extreme numbers in a frame's tensors, half of them in integers."""
    frames: list[tuple[Any, bytes]] = list(split(data))
    held = [(at, entry) for at, (header, _) in enumerate(frames) for name, entry in header.items() if name[0] != "_"]
    whole = [(at, entry) for at, entry in held if entry["dtype"][0] in "IU"]
    for at, entry in rng.choices(whole if whole and rng.random() < 0.5 else held, k=rng.choice([1, 3])):
        header, tensors = frames[at]
        begin, end = entry["data_offsets"]
        if end > begin:
            size = min(8, end - begin)
            place = begin + rng.randrange((end - begin) // size) * size
            frames[at] = (header, tensors[:place] + rng.choice(WORDS)[:size] + tensors[place + size :])
    return joined(frames)


def log_unhashed(rng: random.Random, data: bytes) -> bytes:
    return rng.choice([change_bytes, overwrite_words, swap_regions])(rng, joined(split(data), hashed=False))


LOGS: list[Damage] = [*BYTES[:5], *[log_words] * 6, *[log_header] * 2, log_frames, *[log_tensors] * 3, log_unhashed]


# Archives: sound HDF5, of which one object is not what a trace has there

Edit = Callable[[random.Random, h5py.File], None]


def _pick(rng: random.Random, file: h5py.File, kind: type) -> Any:
    found: list[Any] = [file] if kind is h5py.Group else []
    file.visititems(lambda name, item: found.append(item) if isinstance(item, kind) else None)
    return rng.choice(found)


def _named(file: h5py.File, endings: tuple[str, ...]) -> list[h5py.Dataset]:
    found: list[h5py.Dataset] = []
    file.visititems(lambda name, item: found.append(item) if name.endswith(endings) else None)
    return found


def _put(file: h5py.File, name: str, value: Any) -> None:
    del file[name]
    file[name] = value


def remove(rng: random.Random, file: h5py.File) -> None:
    del file[_pick(rng, file, rng.choice([h5py.Dataset, h5py.Group])).name]


def rename(rng: random.Random, file: h5py.File) -> None:
    item = _pick(rng, file, rng.choice([h5py.Dataset, h5py.Group]))
    file.move(item.name, item.name + rng.choice(["x", "%2", "%FF", "\u202e"]))


MOST_READ = 64 << 20
"""Bytes of a dataset that an edit begins with."""


def _held(item: h5py.Dataset) -> Any:
    """What a dataset holds; of one that an earlier edit made absurdly large, a few numbers; of an empty one, none."""
    if item.size is None:
        return np.zeros(0, item.dtype)
    return item[()] if item.size * item.dtype.itemsize <= MOST_READ else np.zeros(4, item.dtype)


def replace_values(rng: random.Random, file: h5py.File) -> None:
    item = _pick(rng, file, h5py.Dataset)
    if h5py.check_string_dtype(item.dtype) is not None:
        old = _held(item)
        if isinstance(old, np.ndarray) and old.size:
            new = damaged_values(rng, old) if rng.random() < 0.5 else old
            if new is old:
                new.reshape(-1)[rng.randrange(old.size)] = rng.choice([b"", b"\xff\xfe", b"{", b"nan", b"-1"])
            _put(file, item.name, new)
            return
        _put(file, item.name, np.bytes_(rng.choice([b"{", b"[]", b"\xff", b"null", b"[" * 100000, b"1e999"])))
        return
    try:
        values = _held(item)
    except (OSError, TypeError, ValueError):  # a type that numpy lacks
        values = np.zeros(item.shape, "<u2")
    _put(file, item.name, damaged_values(rng, values))


def replace_json(rng: random.Random, file: h5py.File) -> None:
    found: list[h5py.Dataset] = []
    file.visititems(
        lambda name, item: found.append(item) if name.split("/")[-1] in ("config", "site_table", "site_index") else None
    )
    item = rng.choice(found)
    try:
        value = json.loads(_held(item))
    except (ValueError, TypeError, AttributeError):
        return
    _put(file, item.name, np.bytes_(json.dumps(damaged_json(rng, value)).encode()))


def replace_column_json(rng: random.Random, file: h5py.File) -> None:
    """Events' details and weights' shapes are JSON in a column of strings."""
    found: list[h5py.Dataset] = []
    file.visititems(
        lambda name, item: found.append(item) if name.endswith(("events/detail", "weights/shape")) else None
    )
    if not found:
        return replace_json(rng, file)
    item = rng.choice(found)
    rows = list(np.asarray(_held(item)).reshape(-1))
    if not rows:
        return replace_json(rng, file)
    at = rng.randrange(len(rows))
    try:
        rows[at] = json.dumps(damaged_json(rng, json.loads(rows[at]))).encode()
    except (ValueError, TypeError):
        return None
    return _put(file, item.name, np.array(rows))


def replace_attribute(rng: random.Random, file: h5py.File) -> None:
    item = _pick(rng, file, h5py.Group)
    for _ in range(5):
        if len(item.attrs):
            break
        item = _pick(rng, file, h5py.Group)
    if not len(item.attrs):
        item = file
    name = rng.choice(list(item.attrs))
    if rng.random() < 0.15:
        del item.attrs[name]
        return
    item.attrs[name] = rng.choice(
        [
            0,
            -1,
            1,
            3,
            2**40,
            2**62,
            -(2**63),
            1.5,
            np.nan,
            "",
            "x",
            "complete",
            np.arange(3),
            np.float16(2),
            np.bool_(1),
            b"\xff",
        ]
    )


def replace_kind(rng: random.Random, file: h5py.File) -> None:
    """A dataset where a group was, a group where a dataset was, links, other storage."""
    item = _pick(rng, file, rng.choice([h5py.Dataset, h5py.Group]))
    name = item.name
    if name == "/":
        return
    del file[name]
    kind = rng.randrange(6)
    if kind == 0:
        file.create_group(name)
    elif kind == 1:
        file[name] = np.arange(3)
    elif kind == 2:
        file[name] = rng.choice([h5py.SoftLink("/"), h5py.SoftLink("/nowhere"), h5py.ExternalLink("x.h5", "/")])
    elif kind == 3:
        file[name] = h5py.Empty("f4")
    elif kind == 4:
        file.create_dataset(name, shape=(rng.choice([1 << 20, 1 << 40]), 32), dtype="<f4", chunks=(1024, 32))
    else:
        file[name] = file["/"]  # a hard link into a cycle


EDITS: list[Edit] = [
    remove,
    rename,
    *[replace_values] * 5,
    *[replace_json] * 6,
    replace_column_json,
    *[replace_attribute] * 2,
    replace_kind,
]


def edited(rng: random.Random, data: bytes, path: Path) -> bytes:
    """An archive with one to three edits; made at `path`."""
    path.write_bytes(data)
    with h5py.File(path, "r+") as file:
        for _ in range(rng.choice([1, 1, 1, 3])):
            if len(file) == 0:
                break
            try:
                rng.choice(EDITS)(rng, file)
            except (KeyError, ValueError, RuntimeError, OSError, TypeError):
                continue  # an earlier edit took what this one would change
    return path.read_bytes()


# Checkpoints


def safetensors_header(rng: random.Random, data: bytes) -> bytes:
    """One value of a safetensors header is another."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.dumps(damaged_json(rng, json.loads(data[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def zip_member(rng: random.Random, data: bytes) -> bytes:
    """One entry of torch's archive is damaged; the archive around it is sound."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice([name for name in entries if name.endswith(".pkl") or rng.random() < 0.1])
    entries[name] = rng.choice(BYTES)(rng, entries[name]) if entries[name] else b"\x80"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member, held in entries.items():
            archive.writestr(member, held)
    return out.getvalue()


def onnx_field(rng: random.Random, data: bytes) -> bytes:
    """One field of a tensor says something else."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    tensor = rng.choice(model.graph.initializer)
    kind = rng.randrange(5)
    if kind == 0:
        tensor.dims.append(rng.choice([0, -1, 2, 2**31, 2**62, -(2**63)]))
    elif kind == 1:
        tensor.data_type = rng.choice([0, 1, 7, 8, 10, 16, 21, 22, 23, 99, -1])
    elif kind == 2:
        tensor.raw_data = rng.choice(BYTES)(rng, tensor.raw_data or b"x")
    elif kind == 3:
        tensor.data_location = 1
        said = {"location": rng.choice(["", "..", "/etc/passwd", "a/../../b", "\0", "damaged.onnx", "nowhere.bin"])}
        said |= {
            "offset": rng.choice(["0", "-1", "x", str(2**62)]),
            "length": rng.choice(["0", "-1", str(2**62), "16"]),
        }
        for key, value in said.items():
            if rng.random() < 0.8:
                tensor.external_data.add(key=key, value=value)
    else:
        tensor.name = rng.choice(["", "../" * 20, "a\nb", "x" * 5000, model.graph.initializer[0].name])
    written: bytes = model.SerializeToString()
    return written


def damaged(rng: random.Random, data: bytes, suffix: str, scratch: Path) -> bytes:
    """A log (`.tklog`), an archive (`.h5`) or a checkpoint (any other), damaged."""
    if suffix == ".tklog":
        return rng.choice(LOGS)(rng, data)
    if suffix == ".safetensors":
        return rng.choice([*BYTES[:4], *[safetensors_header] * 6])(rng, data)
    if suffix == ".gguf":
        return rng.choice(BYTES)(rng, data)
    if suffix == ".onnx":
        return rng.choice([*BYTES, *[onnx_field] * 8])(rng, data)
    if suffix in (".pt", ".jit"):
        zipped = [zip_member] * 8 if data[:2] == b"PK" else []
        return rng.choice([*BYTES, *zipped])(rng, data)
    if rng.random() < 0.6:
        return edited(rng, data, scratch)
    return rng.choice(BYTES)(rng, data)
