"""What is copied of a graph, found once: later graphs of the same size are answered from it, node by node.

llama.cpp asks of each of a thousand nodes for each token; deciding what a node is takes longer than to compute it. A
graph for as many rows has the same nodes at the same addresses, which is checked node by node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.formats.log import Layout, LogWriter, Tensor
from tracekit_llama_cpp.library import Library


@dataclass(frozen=True)
class Taken:
    """A value of a graph: after which node (its place in the order of asking) it was copied, and which tensor it is."""

    index: int
    tensor: Any
    value: Tensor
    rows: int


@dataclass(frozen=True)
class _Copy:
    """A tensor, its sides and strides when it was first copied, and where in the arena its bytes go."""

    tensor: Any
    shape: Any  # the bytes of ggml's sides and strides, as they are now
    known: bytes  # as they were
    sides: list[int]
    steps: list[int]
    first: int
    size: int
    whole: int  # bytes from the first element to the end of the last
    itemsize: int


@dataclass(frozen=True)
class _Group:
    """Tensors of one number of rows: one frame."""

    rows: int
    layout: Layout
    first: int
    stop: int


class Plan:
    """The nodes of a graph in the order of asking, whether each is wanted, and what is copied when it is computed."""

    def __init__(self, library: Library, nodes: list[Any], taken: Mapping[str, Taken], micro: int) -> None:
        self._library, self.nodes, self.micro, self.count = library, nodes, micro, len(nodes)
        self._get = library.lib.ggml_backend_tensor_get
        self.operations = [int(node.op) for node in nodes]
        self._copies: dict[int, list[_Copy]] = {}
        self._groups: list[_Group] = []
        offset = 0
        for rows in sorted({one.rows for one in taken.values()}, reverse=True):
            of = {name: one for name, one in taken.items() if one.rows == rows}
            layout = Layout.of([(name, one.value.dtype, one.value.shape) for name, one in of.items()])
            first = offset
            for one in of.values():
                size = len(one.value.data)
                self._copies.setdefault(one.index, []).append(self._copy(one, offset, size))
                offset += size
            self._groups.append(_Group(rows, layout, first, offset))
        self.nbytes = offset
        self.wanted = [index in self._copies for index in range(len(nodes))]

    def _copy(self, one: Taken, first: int, size: int) -> _Copy:
        sides, steps = shape_of(self._library.ffi, one.tensor)
        itemsize = size // (one.value.shape[0] * one.value.shape[1])
        # The two arrays lie one after the other, so that one comparison tells whether any number of them changed.
        shape = self._library.ffi.buffer(one.tensor.ne, 64)
        return _Copy(one.tensor, shape, shape[:], sides, steps, first, size, span(sides, steps, itemsize), itemsize)

    def computed(self, index: int, arena: NDArray[np.uint8], base: Any) -> bool:
        """Copy what is to be copied after a node. False where a tensor is no longer of the shape that it was."""
        ffi, get = self._library.ffi, self._get
        for copy in self._copies[index]:
            if copy.shape[:] != copy.known:
                return False
            if copy.whole == copy.size:
                get(copy.tensor, base + copy.first, 0, copy.size)
            else:
                data = np.empty(copy.whole, np.uint8)
                get(copy.tensor, ffi.from_buffer(data), 0, copy.whole)
                arena[copy.first : copy.first + copy.size] = dense(data, copy.sides, copy.steps, copy.itemsize)
        return True

    def write(self, writer: LogWriter, arena: NDArray[np.uint8], sequence: int, position: int) -> None:
        """The frames of a graph whose first row is at a position of a sequence."""
        for group in self._groups:
            at = position + self.micro - group.rows
            metadata = {"sequence": sequence, "position": at, "rows": group.rows}
            writer.write_packed("call", metadata, group.layout, [arena[group.first : group.stop].data])


def shape_of(ffi: Any, tensor: Any) -> tuple[list[int], list[int]]:
    """ggml's sides and strides of a tensor, the innermost first."""
    return ffi.unpack(tensor.ne, 4), ffi.unpack(tensor.nb, 4)


def span(sides: list[int], steps: list[int], size: int) -> int:
    """Bytes from the first element of a strided tensor to the end of the last."""
    return sum((side - 1) * step for side, step in zip(sides, steps, strict=True)) + size


def dense(data: NDArray[np.uint8], sides: list[int], steps: list[int], size: int) -> NDArray[np.uint8]:
    """The bytes of a strided tensor, row after row. `sides` and `steps` are ggml's: the first one is the innermost."""
    shape, strides = (*reversed(sides), size), (*reversed(steps), 1)
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(data, shape, strides, writeable=False)).reshape(-1)


def scattered(data: NDArray[np.uint8], values: NDArray[Any], sides: list[int], steps: list[int]) -> None:
    """Put values, row after row, into the bytes of a strided tensor: the inverse of `dense`."""
    size = values.dtype.itemsize
    shape, strides = (*reversed(sides), size), (*reversed(steps), 1)
    view = np.lib.stride_tricks.as_strided(data, shape, strides)
    view[...] = np.ascontiguousarray(values).view(np.uint8).reshape(shape)
