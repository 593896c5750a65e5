"""An ONNX file: its graphs, and its tensors as views that are checked before anything of their size is allocated.

Source of the format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, and docs/ExternalData.md.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import STORAGE, to_float
from tracekit.trace import TraceError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
    17: "float8_e4m3fn",
    19: "float8_e5m2",
}
"""TensorProto.DataType -> torch's word."""
HALVES = {21: "uint4", 22: "int4"}
"""Two numbers a byte, the first in its low bits."""
FIELDS = {
    **{"float32": "float_data", "float64": "double_data", "int64": "int64_data"},
    **{"uint32": "uint64_data", "uint64": "uint64_data"},
}
"""Where a tensor without raw bytes keeps its numbers; the others in `int32_data`."""
BITS = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
"""What `int32_data` holds as the integers of its bits."""


@dataclass(frozen=True)
class Place:
    """Where in a file a tensor's bytes lie."""

    data: bytes | mmap.mmap
    start: int
    size: int


class OnnxTensor:
    """An initialiser, or the value of a `Constant` node. Its lengths are checked when it is made."""

    def __init__(self, name: str, proto: TensorProto, place: Place | None) -> None:
        self.name = name
        self.shape = tuple(int(side) for side in proto.dims)
        self.code = int(proto.data_type)
        self._proto, self._place = proto, place

    @property
    def dtype(self) -> str:
        return DTYPES.get(self.code) or HALVES[self.code]

    @property
    def bits(self) -> NDArray[Any]:
        """As it is stored, same shape; bfloat16 as uint16, numbers of four bits as int8 or uint8."""
        count = math.prod(self.shape)
        kind = np.dtype("u1") if self.code in HALVES else STORAGE[self.dtype]
        if self._place is None:
            numbers = np.array(getattr(self._proto, FIELDS.get(self.dtype, "int32_data")))
            as_bits = self.dtype in BITS
            bits = numbers.astype(f"u{kind.itemsize}").view(kind) if as_bits else numbers.astype(kind)
        else:
            bits = np.frombuffer(self._place.data, kind, self._place.size // kind.itemsize, self._place.start)
        return (self._unpacked(bits)[:count] if self.code in HALVES else bits).reshape(self.shape)

    def _unpacked(self, pairs: NDArray[np.uint8]) -> NDArray[Any]:
        numbers = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1)
        if self.dtype == "uint4":
            return numbers
        return ((numbers.astype(np.int8) ^ 8) - 8).astype(np.int8)

    def values(self, first: int, stop: int) -> NDArray[Any]:
        """Elements [first, stop) of the flattened tensor as floats."""
        part = self.bits.reshape(-1)[first:stop]
        return part.astype(np.float32) if self.code in HALVES else to_float(part, self.dtype)


class OnnxFile:
    """Raises TraceError, in one sentence, where the library is missing or the file is damaged."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._external: dict[str, mmap.mmap] = {}
        self.model = _load(path)
        found = [*self._of_graph(self.model.graph, ())]
        for function in self.model.functions:
            found += self._constants(function.node, (function.name,))
        times = Counter(name for _, name, _ in found)
        self.tensors = {}
        if not all(isinstance(word, str) for scope, name, _ in found for word in (*scope, name)):
            raise _unsound(path)  # protobuf gives bytes where a text is none
        for scope, name, proto in found:
            known = "/".join((*scope, name)) if times[name] > 1 and scope else name
            self.tensors[known] = self._tensor(known, proto)

    def _of_graph(
        self, graph: GraphProto, scope: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], str, TensorProto]]:
        if graph.sparse_initializer:
            raise TraceError(f"{self.path}: holds sparse initialisers, which tracekit does not read")
        yield from ((scope, proto.name, proto) for proto in graph.initializer)
        yield from self._constants(graph.node, scope)

    def _constants(self, nodes: Any, scope: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, TensorProto]]:
        for node in nodes:
            if node.op_type == "Constant" and node.output:
                proto = constant_of(node)
                if proto is not None:
                    yield scope, node.output[0], proto
            for attribute in node.attribute:
                for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    yield from self._of_graph(graph, (*scope, node.name or node.op_type, attribute.name))

    def _tensor(self, name: str, proto: TensorProto) -> OnnxTensor:
        code = int(proto.data_type)
        if code not in DTYPES and code not in HALVES:
            raise TraceError(f"{self.path}: {name} is of data type {code} of ONNX, which tracekit does not read")
        count = _count(proto)
        size = None if count is None else -(-count // 2) if code in HALVES else count * STORAGE[DTYPES[code]].itemsize
        if size is None:
            raise self._lies(name)
        if proto.data_location == 1:
            return OnnxTensor(name, proto, self._outside(name, proto, size))
        if proto.HasField("raw_data"):
            if len(proto.raw_data) != size:
                raise self._lies(name)
            return OnnxTensor(name, proto, Place(proto.raw_data, 0, size))
        held = len(getattr(proto, FIELDS.get(DTYPES.get(code, ""), "int32_data")))
        if held != (size if code in HALVES else count):
            raise self._lies(name)
        return OnnxTensor(name, proto, None)

    def _outside(self, name: str, proto: TensorProto, size: int) -> Place:
        """A tensor in a file beside this one. Raises TraceError where it names one elsewhere, or is longer than it."""
        said = {entry.key: entry.value for entry in proto.external_data}
        location = said.get("location", "")
        if not isinstance(location, str):
            raise _unsound(self.path)
        place = PurePosixPath(location)
        if not location or place.is_absolute() or ".." in place.parts or "\\" in location or "\0" in location:
            raise TraceError(
                f"{self.path}: {name} is in a file outside its folder ({location!r}), which is refused; export it again"
            )
        try:
            offset, length = int(said.get("offset", "0")), int(said.get("length", size))
        except ValueError:
            raise self._lies(name) from None
        if location not in self._external:
            file = Path(self.path).parent / location
            if not file.is_file():
                raise TraceError(f"{self.path}: {name} is in {file}, which is not there; put it beside the model")
            with file.open("rb") as opened:
                try:
                    self._external[location] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
                except ValueError:
                    raise self._lies(name) from None
        data = self._external[location]
        if length != size or not 0 <= offset <= len(data) - size:
            raise self._lies(name)
        return Place(data, offset, size)

    def _lies(self, name: str) -> TraceError:
        return TraceError(f"{self.path}: {name} has more or fewer bytes than its shape says; export the model again")


def constant_of(node: NodeProto) -> TensorProto | None:
    """The value of a `Constant` node; None of a text, or of one that is sparse."""
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == "value":
            value: TensorProto = attribute.t
            return value
        if attribute.name == "value_float":
            return helper.make_tensor("", 1, [], [attribute.f])
        if attribute.name == "value_int":
            return helper.make_tensor("", 7, [], [attribute.i])
        if attribute.name == "value_floats":
            return helper.make_tensor("", 1, [len(attribute.floats)], attribute.floats)
        if attribute.name == "value_ints":
            return helper.make_tensor("", 7, [len(attribute.ints)], attribute.ints)
    return None


def _count(proto: TensorProto) -> int | None:
    return math.prod(proto.dims) if all(side >= 0 for side in proto.dims) else None


def _unsound(path: str) -> TraceError:
    return TraceError(f"{path}: is no sound ONNX file (damaged or cut short); export it again")


def _load(path: str) -> ModelProto:
    try:
        import onnx
    except ImportError:
        raise TraceError(f"{path}: reading ONNX needs a library; pip install 'tracekit[onnx]'") from None
    try:
        model = onnx.ModelProto()
        model.ParseFromString(Path(path).read_bytes())
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception:  # protobuf has an error of its own, which is no ValueError
        raise _unsound(path) from None
    if not model.HasField("graph"):
        raise TraceError(f"{path}: is an ONNX file without a graph; export it again")
    return model
