"""Tensors in a file of `torch.save`, without torch and without unpickling: nothing in the file is run.

The zip format of torch 1.6 and later: `<name>/data.pkl` says what there is, `<name>/data/<key>` holds the bytes of each
storage. The pickle's opcodes are read one by one (`pickletools`, which only takes them apart); dicts, lists, numbers
and strings are built, and of all that a pickle may call, what makes up a tensor is understood by its name. Anything
else is refused. Source of the format: torch/serialization.py, torch/_utils.py.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracekit.dtypes import STORAGE
from tracekit.errors import TraceError
from tracekit.formats.log import Tensor

HEAD = b"PK\x03\x04"
TORCH = ("torch", "torch.storage")
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
"""torch's class of a storage -> the dtype of its elements."""
LARGEST_PICKLE = 64 << 20
"""Bytes of `data.pkl`: a dump says what one tensor is."""


DAMAGED = (zipfile.BadZipFile, ValueError, LookupError, TypeError, EOFError, RuntimeError, AttributeError)
"""What a cut or altered file makes of reading it."""
MOST_COPIES = 4
"""How often the bytes of a file may be held: tensors may share a storage, as tied parameters do."""


@dataclass(frozen=True)
class _Global:
    """A name that a pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class _Stored:
    """A storage in the file."""

    dtype: str
    key: str
    elements: int


class _Mark:
    """Where a list of items begins on the stack."""


class _Refused(Exception):
    """What a file holds that is not read."""


def torch_file(path: Path) -> Any:
    """What a file holds: dicts, lists, tuples, numbers, strings, and `Tensor` for tensors. Raises TraceError where the
    file is damaged, of an older format, or would run anything else."""
    try:
        with path.open("rb") as file:
            if file.read(len(HEAD)) != HEAD:
                raise TraceError(f"{path}: is no zip file of torch.save; save it with torch 1.6 or later")
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive).read()
    except _Refused as error:
        raise TraceError(f"{path}: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ):
        raise TraceError(f"{path}: is no sound file of torch.save (damaged or cut short); save it again") from None


class _Reader:
    """One file. The stack machine of a pickle, of which only what builds data is there."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._left = MOST_COPIES * max(1 << 16, *(entry.file_size for entry in archive.infolist()))

    def read(self) -> Any:
        pickled = self._bytes("data.pkl", LARGEST_PICKLE)
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return self._stack.pop()
            act = ACTS.get(opcode.name)
            if act is None:
                raise _Refused(f"holds what is no tensor or plain number (opcode {opcode.name}); dump tensors alone")
            act(self, argument)
        raise ValueError

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def top(self) -> Any:
        return self._stack[-1]

    def items(self) -> list[Any]:
        """What stands above the last mark, taken off with it."""
        at = max(index for index, value in enumerate(self._stack) if isinstance(value, _Mark))
        found = self._stack[at + 1 :]
        del self._stack[at:]
        return found

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self.top()

    def get(self, index: int) -> None:
        self.push(self._memo[index])

    def set_items(self, flat: list[Any]) -> None:
        into = self.top()
        if not isinstance(into, dict):
            raise TypeError
        into |= dict(zip(flat[::2], flat[1::2], strict=True))

    def append(self, values: list[Any]) -> None:
        into = self.top()
        if not isinstance(into, list):
            raise TypeError
        into += values

    def stored(self) -> None:
        """A persistent id: ("storage", class, key, device, elements)."""
        word, kind, key, _, elements = self.pop()
        dtype = STORAGES.get(kind.name) if isinstance(kind, _Global) and kind.module in TORCH else None
        if word != "storage" or dtype is None or not isinstance(key, str) or type(elements) is not int:
            raise _Refused(f"holds a storage of {kind}, which tracekit does not read; dump floats or integers")
        self.push(_Stored(dtype, key, elements))

    def call(self) -> None:
        """A call of a function that the pickle names."""
        arguments, what = self.pop(), self.pop()
        build = CALLS.get(str(what)) if isinstance(what, _Global) else None
        if build is None:
            raise _Refused(f"wants to run {what} when it is read, which is refused; dump tensors alone")
        self.push(build(self, *arguments))

    def tensor(
        self, stored: _Stored, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
    ) -> Tensor:
        """`torch._utils._rebuild_tensor_v2`; what follows are gradients and hooks."""
        return self._view(stored, stored.dtype, offset, shape, strides)

    def typed(
        self, stored: _Stored, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
    ) -> Tensor:
        """`torch._utils._rebuild_tensor_v3`: of untyped bytes, with the dtype among what follows."""
        word = next((each.name for each in rest if isinstance(each, _Global)), "")
        if word not in STORAGE:
            raise _Refused(f"holds a tensor of torch.{word}, which tracekit does not read; dump floats or integers")
        return self._view(stored, word, offset, shape, strides)

    def _view(
        self, stored: _Stored, dtype: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> Tensor:
        """A tensor whose every element lies inside its storage, copied to C order."""
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or not all(type(each) is int and each >= 0 for each in numbers):
            raise ValueError
        kind = STORAGE[dtype]
        data = self._bytes(f"data/{stored.key}", None)
        last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        if math.prod(shape) and (last + 1) * kind.itemsize > len(data):
            raise ValueError
        if math.prod(shape) * kind.itemsize > len(data):
            raise _Refused("holds a tensor that repeats its rows; dump it with .contiguous()")
        self._left -= math.prod(shape) * kind.itemsize
        if self._left < 0:
            raise _Refused("holds the same values again and again; dump each tensor once")
        base = np.frombuffer(data, kind)[offset:] if math.prod(shape) else np.empty(0, kind)
        steps = tuple(stride * kind.itemsize for stride in strides)
        array = np.lib.stride_tricks.as_strided(base, shape, steps, writeable=False)
        return Tensor(dtype, shape, np.ascontiguousarray(array).tobytes())

    def _bytes(self, name: str, limit: int | None) -> bytes:
        """An entry, which is stored as it is: its length is part of the file's own."""
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise _Refused("is compressed, as torch.save never leaves it; save it again")
        if limit is not None and entry.file_size > limit:
            raise _Refused(f"says what it holds in {entry.file_size} bytes; dump tensors alone")
        return self._archive.read(entry)


Act = Callable[[_Reader, Any], None]


def _of_tuple(count: int) -> Act:
    def act(reader: _Reader, argument: Any) -> None:
        values = [reader.pop() for _ in range(count)]
        reader.push(tuple(values[::-1]))

    return act


def _constant(value: Any) -> Act:
    return lambda reader, argument: reader.push(value)


def _pair(reader: _Reader, argument: Any) -> None:
    value, key = reader.pop(), reader.pop()
    reader.set_items([key, value])


def _named(reader: _Reader, argument: Any) -> None:
    name, module = reader.pop(), reader.pop()
    reader.push(_Global(str(module), str(name)))


def _built(reader: _Reader, argument: Any) -> None:
    """State of an object that a call made, such as the metadata of an ordered dict: not asked for."""
    reader.pop()


ACTS: dict[str, Act] = {
    "PROTO": lambda reader, argument: None,
    "FRAME": lambda reader, argument: None,
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
        lambda reader, argument: reader.push(argument),
    ),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_DICT": lambda reader, argument: reader.push({}),
    "EMPTY_LIST": lambda reader, argument: reader.push([]),
    "EMPTY_TUPLE": _constant(()),
    "MARK": lambda reader, argument: reader.push(_Mark()),
    "TUPLE": lambda reader, argument: reader.push(tuple(reader.items())),
    "TUPLE1": _of_tuple(1),
    "TUPLE2": _of_tuple(2),
    "TUPLE3": _of_tuple(3),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda reader, argument: reader.put(argument)),
    "MEMOIZE": lambda reader, argument: reader.put(None),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda reader, argument: reader.get(argument)),
    "SETITEM": _pair,
    "SETITEMS": lambda reader, argument: reader.set_items(reader.items()),
    "APPEND": lambda reader, argument: reader.append([reader.pop()]),
    "APPENDS": lambda reader, argument: reader.append(reader.items()),
    "GLOBAL": lambda reader, argument: reader.push(_Global(*argument.split(" ", 1))),
    "STACK_GLOBAL": _named,
    "BINPERSID": lambda reader, argument: reader.stored(),
    "REDUCE": lambda reader, argument: reader.call(),
    "BUILD": _built,
}
"""Opcode -> what it does to the stack."""

CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _Reader.tensor,
    "torch._utils._rebuild_tensor_v3": _Reader.typed,
    "torch._utils._rebuild_parameter": lambda reader, data, *rest: data,
    "collections.OrderedDict": lambda reader, *pairs: {},
    "torch.Size": lambda reader, sides: tuple(sides),
}
"""What a pickle may call -> what is made in its place."""
