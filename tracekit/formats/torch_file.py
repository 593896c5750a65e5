"""A file of `torch.save` or `torch.jit.save`, read without torch and without running anything that it holds.

Both are zip archives whose pickle `data.pkl` names storages, each a file of the archive, uncompressed; what
`torch.save` wrote before 1.6 is pickles with the storages after them. Sources: torch/serialization.py, and
torch/csrc/jit/serialization/{export_module,pickler,unpickler}.cpp.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import STORAGE
from tracekit.formats.inert_pickle import Name, Unread, UnsoundPickle, read_pickle
from tracekit.trace import TraceError

ZIP = b"PK\x03\x04"
LOCAL = struct.Struct("<26xHH")
"""A zip entry's local header: the lengths of its name and of its extra field."""
OLD_MAGIC = 0x1950A86A20F9469CFC6C
"""What the file of `torch.save` before 1.6 begins with."""
STORAGES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "Untyped": "uint8",
}
"""torch's classes of storages, without `Storage`."""
LISTS = ("intlist", "doublelist", "boollist", "tensorlist", "complexlist")
MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")
CLASSES = ("torch.", "__torch__.", "numpy.", "datetime.", "argparse.Namespace", "_codecs.encode", "copyreg.")
VALUES = ("set", "frozenset", "complex", "bytearray", "bytes", "int", "float", "bool", "str", "list", "dict", "slice")
"""What a checkpoint may name as called when it is read, and what of Python's builtins: nothing is called, and a file
that names anything else is more than data."""


@dataclass(eq=False)
class _Storage:
    dtype: str
    count: int  # elements of dtype
    data: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A strided view of a storage in the file."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements
    first: int  # element of the storage
    storage: _Storage = field(repr=False)

    @property
    def bits(self) -> NDArray[Any]:
        """As it is stored, a view of the mapped file; bfloat16 as uint16."""
        kind = STORAGE[self.dtype]
        assert self.storage.data is not None
        whole = self.storage.data[: len(self.storage.data) // kind.itemsize * kind.itemsize].view(kind)
        steps = tuple(stride * kind.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(whole[self.first :], self.shape, steps, writeable=False)


@dataclass(frozen=True)
class TorchFile:
    """What a file holds: dicts, lists, tuples, numbers, texts, `StoredTensor` and, for every other object, `Unread`."""

    root: Any
    constants: tuple[Any, ...]  # of TorchScript's code
    scripted: bool


class _Refused(Exception):
    """A file that is sound, and that wants something which is not done."""


def read_torch_file(path: str | os.PathLike[str]) -> TorchFile:
    """What a file holds. Raises TraceError, in one sentence, where it is damaged or names code that is not torch's."""
    try:
        with Path(path).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise TraceError(f"{path}: is no sound checkpoint of PyTorch (empty); fetch it again") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _zipped(Path(path), mapped) if mapped[:4] == ZIP else _old(mapped)
    except _Refused as error:
        raise TraceError(f"{path}: {error}") from None
    except (UnsoundPickle, zipfile.BadZipFile, ValueError, KeyError, OSError, NotImplementedError, struct.error):
        raise TraceError(f"{path}: is no sound checkpoint of PyTorch (damaged or cut short); fetch it again") from None


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, StoredTensor]]:
    """Every tensor in an object, once, with its dotted path: attributes, keys and indices. The modules of a pickled
    `torch.nn.Module` have the names of its state dict."""
    seen: set[int] = set()
    waiting = [(name, value)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, StoredTensor):
            yield place, value
            continue
        if id(value) in seen:
            continue
        parts = _parts(value)
        if parts:
            seen.add(id(value))
        waiting += [(f"{place}.{key}" if place else str(key), part) for key, part in reversed(parts)]


def _parts(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Unread):
        state = value.state
        if isinstance(state, dict) and "_parameters" in state:
            inner = [state.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
            return [part for each in inner if isinstance(each, dict) for part in each.items()]
        return _parts(state)
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


# -------------------------------------------------------------------- the two kinds of files


def _zipped(path: Path, mapped: mmap.mmap) -> TorchFile:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
    pickled = next((name for name in entries if name.endswith("/data.pkl")), None)
    if pickled is None:
        raise UnsoundPickle("data.pkl")
    top = pickled.removesuffix("data.pkl")
    order = entries.get(f"{top}byteorder")
    if order is not None and bytes(_entry(mapped, order)) != b"little":
        raise _Refused("holds big-endian tensors, which tracekit does not read; save it on a little-endian machine")
    scripted = f"{top}constants.pkl" in entries

    def read(name: str, folder: str) -> Any:
        storages: dict[str, _Storage] = {}

        def persistent(said: Any) -> _Storage:
            dtype, key, count = _storage_id(said)
            if key not in storages:
                data = _entry(mapped, entries[f"{top}{folder}/{key}"])
                storages[key] = _Storage(dtype, count, data)
            if storages[key].dtype != dtype:
                return _Storage(dtype, count, storages[key].data)
            return storages[key]

        return read_pickle(_Bytes(_entry(mapped, entries[name])), persistent, _make)

    root = read(pickled, "data")
    constants = read(f"{top}constants.pkl", "constants") if scripted else ()
    return TorchFile(root, constants if isinstance(constants, tuple) else (constants,), scripted)


def _entry(mapped: mmap.mmap, info: zipfile.ZipInfo) -> NDArray[np.uint8]:
    """An uncompressed entry's bytes, a view of the file."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise _Refused("holds compressed or encrypted entries, which torch does not write; save it again with torch")
    head = mapped[info.header_offset : info.header_offset + 30]
    if head[:4] != ZIP or len(head) < 30:
        raise UnsoundPickle("entry")
    start = info.header_offset + 30 + sum(LOCAL.unpack(head))
    if start + info.file_size > len(mapped):
        raise UnsoundPickle("entry")
    return np.frombuffer(mapped, np.uint8, info.file_size, start)


def _old(mapped: mmap.mmap) -> TorchFile:
    storages: dict[str, _Storage] = {}

    def persistent(said: Any) -> Any:
        if isinstance(said, tuple) and len(said) > 1 and said[0] == "module":
            return said[1]  # a class with its source
        dtype, key, count = _storage_id(said)
        return storages.setdefault(key, _Storage(dtype, count))

    def read() -> Any:
        return read_pickle(mapped, persistent, _make)

    if read() != OLD_MAGIC:
        raise UnsoundPickle("magic")
    _, _, root, keys = read(), read(), read(), read()
    for key in keys:
        storage = storages[str(key)]
        (count,) = struct.unpack("<q", mapped.read(8))
        size = count * STORAGE[storage.dtype].itemsize
        if count != storage.count or size > len(mapped) - mapped.tell():
            raise UnsoundPickle("storage")
        storage.data = np.frombuffer(mapped, np.uint8, size, mapped.tell())
        mapped.seek(size, os.SEEK_CUR)
    if any(storage.data is None for storage in storages.values()):
        raise UnsoundPickle("storage")
    return TorchFile(root, (), scripted=False)


class _Bytes:
    """Bytes as a file that reads no more than there is."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data, self._at = data.tobytes(), 0

    def read(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        self._at += len(part)
        return part

    def readline(self) -> bytes:
        end = self._data.find(b"\n", self._at)
        return self.read((len(self._data) if end < 0 else end + 1) - self._at)


# -------------------------------------------------------------------- tensors


def _storage_id(said: Any) -> tuple[str, str, int]:
    """dtype, key and elements of a persistent id `("storage", class, key, device, elements, ...)`."""
    if not isinstance(said, tuple) or len(said) < 5 or said[0] != "storage" or not isinstance(said[1], Name):
        raise UnsoundPickle("persistent id")
    kind = said[1].path.rpartition(".")[2].removesuffix("Storage")
    if kind not in STORAGES:
        raise _Refused(f"holds a tensor of {said[1].path}, which tracekit does not read; save it as plain floats")
    if not isinstance(said[4], int) or said[4] < 0:
        raise UnsoundPickle("persistent id")
    return STORAGES[kind], str(said[2]), said[4]


def _make(path: str, arguments: tuple[Any, ...]) -> Any:
    """What torch's own functions would give; an `Unread` for classes; anything else is refused."""
    name = path.rpartition(".")[2]
    if path.startswith("torch._utils._rebuild") or path.startswith("torch._tensor._rebuild"):
        return _rebuilt(name, arguments)
    if path in MAPPINGS:
        pairs = next((each for each in arguments if isinstance(each, list | tuple)), ())
        return {pair[0]: pair[1] for pair in pairs if isinstance(pair[0], str | int)}
    if path.startswith("torch.jit._pickle."):
        known = name.removeprefix("build_") in LISTS or name == "restore_type_tag"
        return arguments[0] if known and arguments else Unread(path, arguments)
    if path == "torch.Size":
        return arguments[0] if arguments else ()
    if path == "copyreg._reconstructor" and isinstance(arguments[0], Name):
        return Unread(arguments[0].path, arguments[1:])
    builtin = path.partition(".")[0] in ("builtins", "__builtin__") and name in VALUES
    if not (builtin or path.startswith(CLASSES)):
        raise _Refused(
            f"wants to run {path} when it is read, which is refused; save model.state_dict(), or use safetensors"
        )
    return Unread(path, arguments)


def _rebuilt(name: str, arguments: tuple[Any, ...]) -> Any:
    if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return arguments[0]
    if name == "_rebuild_from_type_v2" and isinstance(arguments[0], Name):
        return _make(arguments[0].path, arguments[2])
    if name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        storage, first, shape, strides = arguments[:4]
        dtype = arguments[6] if name == "_rebuild_tensor_v3" else None
        return _tensor(storage, first, shape, strides, dtype)
    raise _Refused(f"holds a tensor made by {name}, which tracekit does not read; save it as a plain, dense tensor")


def _tensor(storage: Any, first: Any, shape: Any, strides: Any, dtype: Any) -> StoredTensor:
    """Raises UnsoundPickle where a view goes beyond its storage, or would be larger than that."""
    if not isinstance(storage, _Storage) or not all(isinstance(each, list | tuple) for each in (shape, strides)):
        raise UnsoundPickle("tensor")
    if not all(isinstance(each, int) and 0 <= each < 2**62 for each in (first, *shape, *strides)):
        raise UnsoundPickle("tensor")
    held = storage.dtype if dtype is None else dtype.path.removeprefix("torch.")
    if held not in STORAGE:
        raise _Refused(f"holds a tensor of {held}, which tracekit does not read; save it as plain floats")
    size = storage.count * STORAGE[storage.dtype].itemsize
    room = size // STORAGE[held].itemsize
    count = math.prod(shape)
    last = first + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if count and (last >= room or count > room):
        raise UnsoundPickle("tensor")
    if storage.data is not None and len(storage.data) < size:
        raise UnsoundPickle("tensor")
    return StoredTensor(held, tuple(shape), tuple(strides), first if count else 0, storage)
