"""What is copied of a graph, found once: later graphs of the same size are answered from it, node by node.

llama.cpp asks of each of a thousand nodes for each token; deciding what a node is takes longer than to compute it. A
graph for as many rows has the same nodes at the same addresses, which is checked node by node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from struct import unpack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracekit.formats.log import Layout, LogWriter
from tracekit_llama_cpp.library import Library

PLAIN = {0: ("float32", 4), 1: ("float16", 2), 28: ("float64", 8), 30: ("bfloat16", 2)}
"""ggml's number of a format: torch's word and its bytes."""


class Node(NamedTuple):
    """A node when it was asked for: what it computes, in which format, and from which tensors."""

    tensor: Any
    operation: int
    format: int
    sources: bytes

    @classmethod
    def of(cls, ffi: Any, tensor: Any) -> Node:
        """As it is now."""
        return cls(tensor, tensor.op, tensor.type, ffi.buffer(tensor.src)[:])


@dataclass(frozen=True)
class Copy:
    """A tensor that is copied after a node (its place in the order of asking), as it was then: the next graph has its
    own sides in the same memory."""

    index: int
    tensor: Any
    counted: Any  # the tensor whose second side is the number of rows
    rows: int
    dtype: str
    itemsize: int
    sides: list[int]
    steps: list[int]
    shape: Any  # the bytes of ggml's sides and strides, as they are now
    known: bytes  # as they were

    @classmethod
    def of(cls, ffi: Any, index: int, tensor: Any, counted: Any) -> Copy | None:
        """As it is now; None of a format that holds no plain numbers, and of no rows."""
        plain, rows = PLAIN.get(int(tensor.type)), int(counted.ne[1])
        if plain is None or not rows:
            return None
        # The two arrays lie one after the other, so that one comparison tells whether any number of them changed.
        shape = ffi.buffer(tensor.ne, 64)
        known = shape[:]
        numbers = unpack("=8q", known)
        return cls(index, tensor, counted, rows, *plain, list(numbers[:4]), list(numbers[4:]), shape, known)

    @cached_property
    def size(self) -> int:
        """Bytes of its values."""
        return math.prod(self.sides) * self.itemsize

    @cached_property
    def whole(self) -> int:
        """Bytes from the first value to the end of the last."""
        return span(self.sides, self.steps, self.itemsize)

    @cached_property
    def in_order(self) -> bool:
        """Whether its values lie one after the other; those of a permuted tensor need not, though none is left out."""
        expected = self.itemsize
        for side, step in zip(self.sides, self.steps, strict=True):
            if side != 1 and step != expected:
                return False
            expected *= side
        return True


@dataclass(frozen=True)
class _Group:
    """Tensors of one number of rows: one frame."""

    rows: int
    names: tuple[str, ...]
    layout: Layout
    first: int
    stop: int


class Plan:
    """The nodes of a graph in the order of asking, whether each is wanted, and what is copied when it is computed."""

    def __init__(self, library: Library, nodes: list[Node], copies: Mapping[str, Copy], micro: int) -> None:
        """`micro`: rows of the graph."""
        self._library, self._known, self._sites, self.micro = library, nodes, copies, micro
        self._get = library.lib.ggml_backend_tensor_get
        self.nodes, self.count = [node.tensor for node in nodes], len(nodes)
        self.operations = [node.operation for node in nodes]
        self._copies: dict[int, list[tuple[Copy, int]]] = {}  # by place, each with where it goes in the arena
        self._groups: list[_Group] = []
        offset = 0
        for rows in sorted({copy.rows for copy in copies.values()}, reverse=True):
            # Fewer rows than the graph has: llama.cpp drops the others before the last layer's feed-forward block.
            of = {name: copy for name, copy in copies.items() if copy.rows == rows}
            shapes = {name: (rows, copy.size // copy.itemsize // rows) for name, copy in of.items()}
            layout = Layout.of([(name, copy.dtype, shapes[name]) for name, copy in of.items()])
            first = offset
            for copy in of.values():
                self._copies.setdefault(copy.index, []).append((copy, offset))
                offset += copy.size
            self._groups.append(_Group(rows, tuple(of), layout, first, offset))
        self.nbytes = offset
        self.wanted = [index in self._copies for index in range(len(nodes))]
        self.scratch = max((copy.whole for copy in copies.values()), default=0)
        """Bytes of the largest tensor that is copied, with what lies between its values."""

    def for_rows(self, micro: int) -> Plan | None:
        """The plan of the graph that begins now, where it has the same operations on the same tensors for another
        number of rows; None of any other graph. Every node is laid out by the time that the first is asked for."""
        ffi = self._library.ffi
        if any(Node.of(ffi, node.tensor) != node for node in self._known):
            return None
        copies = {name: Copy.of(ffi, copy.index, copy.tensor, copy.counted) for name, copy in self._sites.items()}
        there = {name: copy for name, copy in copies.items() if copy is not None}
        return Plan(self._library, self._known, there, micro) if len(there) == len(copies) else None

    @cached_property
    def in_c(self) -> Any:
        """The same for `follow.c`: a `struct tracekit_plan *`."""
        ffi = self._library.ffi
        copies: list[Any] = []
        copied = [0]
        for index in range(self.count):
            for copy, first in self._copies.get(index, ()):
                sizes = {"first": first, "size": copy.size, "whole": copy.whole, "item": copy.itemsize}
                shape = {"ne": copy.sides, "nb": copy.steps, "in_order": copy.in_order}
                copies.append({"tensor": copy.tensor, **shape, **sizes})
            copied.append(len(copies))
        fields = {
            "nodes": ffi.new("struct ggml_tensor *[]", self.nodes),
            "operations": ffi.new("int[]", self.operations),
            "copied": ffi.new("int32_t[]", copied),
            "copies": ffi.new("struct tracekit_copy[]", copies),
        }
        self._held = fields  # the struct does not keep them
        return ffi.new("struct tracekit_plan *", {"count": self.count, **fields})

    def computed(self, index: int, arena: NDArray[np.uint8], base: Any) -> bool:
        """Copy what is to be copied after a node. False where a tensor is no longer of the shape that it was."""
        ffi, get = self._library.ffi, self._get
        for copy, first in self._copies[index]:
            if copy.shape[:] != copy.known:
                return False
            if copy.in_order:
                get(copy.tensor, base + first, 0, copy.size)
            else:
                data = np.empty(copy.whole, np.uint8)
                get(copy.tensor, ffi.from_buffer(data), 0, copy.whole)
                arena[first : first + copy.size] = dense(data, copy.sides, copy.steps, copy.itemsize)
        return True

    def write(self, writer: LogWriter, arena: NDArray[np.uint8], sequence: int, position: int) -> None:
        """The frames of a graph whose first row is at a position of a sequence."""
        for group in self._groups:
            self._frame(writer, group, sequence, position, [arena[group.first : group.stop].data])

    def write_found(self, writer: LogWriter, found: Mapping[str, Any], sequence: int, position: int) -> None:
        """As `write`, of a graph whose values were copied one by one: their bytes by their sites."""
        for group in self._groups:
            self._frame(writer, group, sequence, position, [found[name] for name in group.names])

    def _frame(self, writer: LogWriter, group: _Group, sequence: int, position: int, buffers: list[Any]) -> None:
        at = position + self.micro - group.rows
        metadata = {"sequence": sequence, "position": at, "rows": group.rows}
        writer.write_packed("call", metadata, group.layout, buffers)


def shape_of(ffi: Any, tensor: Any) -> tuple[list[int], list[int]]:
    """ggml's sides and strides of a tensor, the innermost first."""
    return ffi.unpack(tensor.ne, 4), ffi.unpack(tensor.nb, 4)


def span(sides: list[int], steps: list[int], size: int) -> int:
    """Bytes from the first element of a strided tensor to the end of the last."""
    (a, b, c, d), (along_a, along_b, along_c, along_d) = sides, steps
    return (a - 1) * along_a + (b - 1) * along_b + (c - 1) * along_c + (d - 1) * along_d + size


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
