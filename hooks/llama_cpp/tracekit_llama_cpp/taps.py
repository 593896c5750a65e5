"""The values of a graph's nodes while llama.cpp computes them: which are asked for, and copies of them.

llama.cpp reuses memory as soon as a value was read for the last time, so everything is copied when the node was
computed; the input of a product is copied when that product was computed, which is before its memory is reused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.formats.log import LogWriter, Tensor
from tracekit.trace import INPUT_SUFFIX, LOGITS, Json
from tracekit_llama_cpp.library import Library
from tracekit_llama_cpp.nodes import HEAD, Kind, Module, Nodes
from tracekit_llama_cpp.options import Options

PLAIN = {0: ("float32", 4), 1: ("float16", 2), 28: ("float64", 8), 30: ("bfloat16", 2)}
"""ggml's number of a format: torch's word and its bytes."""
CLASSES = {Kind.TABLE: "Embedding", Kind.PRODUCT: "Linear", Kind.BIASED: "Linear", Kind.NORM: "RMSNorm"}


class Taps:
    """Copies of the nodes of one sequence's forward calls.

    Each node is asked for before it is computed, in the order of the computation; what it is, and which copies it
    takes, is found then.
    """

    def __init__(self, library: Library, nodes: Nodes, writer: LogWriter, options: Options) -> None:
        self._library, self._nodes, self._writer, self._options = library, nodes, writer, options
        self._ffi = library.ffi
        self.callback = library.ffi.callback("eval_callback", self._called, error=True, onerror=self._failed)
        self.failure: BaseException | None = None
        self._table: dict[str, Json] = {}
        self._said = 0  # rows of the table that are written
        self._at = 0  # position of the micro-batch
        self._begin()

    def _begin(self) -> None:
        """A graph begins."""
        self._micro = 0  # its rows
        self._names: dict[int, str] = {}  # address of a node -> the site that its values are
        self._copies: dict[int, list[tuple[str, Any, int]]] = {}  # address -> site, tensor, rows: to be copied then
        self._sums: dict[int, Tensor | None] = {}  # sums that nothing has read so far
        self._values: dict[str, tuple[Tensor, int]] = {}  # with its rows

    # ------------------------------------------------------------------ forward calls

    def batch(self, position: int) -> None:
        """A call of `llama_decode` begins, of tokens from `position` on."""
        self._at = position
        self._begin()

    def done(self) -> None:
        """The call is over. Raises what went wrong in it."""
        self._flush()
        if self.failure is not None:
            raise self.failure

    def _flush(self) -> None:
        rows = list(self._table.values())[self._said :]
        if rows:
            self._writer.sites(rows)
            self._said = len(self._table)
        for count in sorted({count for _, count in self._values.values()}, reverse=True):
            kept = {name: value for name, (value, of) in self._values.items() if of == count}
            # Fewer rows than the call has: llama.cpp drops the others before the last layer's feed-forward block.
            self._writer.call(0, self._at + self._micro - count, count, kept)
        self._at += self._micro
        self._begin()

    # ------------------------------------------------------------------ nodes

    def _called(self, node: Any, ask: bool, _: Any) -> bool:
        if ask:
            return self.failure is None and self._asked(node)
        if self.failure is None:
            self._computed(node)
        return True

    def _failed(self, kind: Any, error: BaseException, trace: Any) -> None:
        """The run goes on without being recorded."""
        self.failure = error

    def _asked(self, node: Any) -> bool:
        found = self._nodes.module(node)
        if found is None:
            return False
        address = self._address(node)
        if found.kind is Kind.TABLE:
            if self._names:
                if set(self._names.values()) == {found.name}:
                    return False  # looked up again in the same graph, for rows that are no tokens
                self._flush()
            self._micro = int(node.ne[1])
        if found.kind is Kind.SUM and not found.name:
            self._sums[address] = None
            return self._options.level == "all"
        copies = [] if found.source is None else self._input(found)
        rows = int(node.ne[1])
        if found.kind is Kind.NORM:
            rows = int(found.source.ne[1])  # the second side of a norm of heads is the heads
        self._names[address] = found.name
        self._describe(found)
        if self._options.keeps(found.name) and found.name != HEAD:
            copies.append((found.name, node, rows))
        if copies:
            self._copies[address] = copies
        return bool(copies)

    def _input(self, found: Module) -> list[tuple[str, Any, int]]:
        """The copy of what a module reads, where it is no site that is known by now."""
        source = found.source
        address = self._address(source)
        if address in self._names:
            return []
        name = found.name + INPUT_SUFFIX
        if not self._options.keeps(name):
            return []
        if address in self._sums:
            held = self._sums.pop(address)
            if held is not None:
                self._values[name] = held, held.shape[0]
        elif found.kind is Kind.NORM:
            return []  # its memory is the norm's own by the time that the norm is computed
        self._names[address] = name
        self._row(name, "input", {})
        return [] if name in self._values else [(name, found.read, int(found.read.ne[1]))]

    def _describe(self, found: Module) -> None:
        fields: Json = {"parameters": found.parameters or None}
        if found.source is not None:
            fields["input"] = self._names.get(self._address(found.source))
        if found.eps is not None:
            fields["attributes"] = {"eps": found.eps}
        if found.name == HEAD:
            fields["recorded_as"] = LOGITS
        self._row(found.name, CLASSES.get(found.kind, "layer"), fields)

    def _row(self, name: str, kind: str, fields: Json) -> None:
        if name not in self._table:
            row = {"name": name, "class": kind, "order": len(self._table)}
            self._table[name] = row | {key: value for key, value in fields.items() if value is not None}

    def _computed(self, node: Any) -> None:
        address = self._address(node)
        if address in self._sums:
            self._sums[address] = self._copy(node, int(node.ne[1]))
        for name, tensor, rows in self._copies.pop(address, ()):
            value = self._copy(tensor, rows)
            if value is not None:
                self._values[name] = value, rows

    # ------------------------------------------------------------------ values

    def _address(self, node: Any) -> int:
        return int(self._ffi.cast("intptr_t", node))

    def _copy(self, node: Any, rows: int) -> Tensor | None:
        """A tensor's values, [rows, width]; None of a format that holds no plain numbers."""
        plain = PLAIN.get(int(node.type))
        if plain is None or not rows:
            return None
        dtype, size = plain
        sides, steps = list(node.ne), list(node.nb)
        count = sides[0] * sides[1] * sides[2] * sides[3]
        whole = sum((side - 1) * step for side, step in zip(sides, steps, strict=True)) + size
        data = np.empty(whole, np.uint8)
        self._library.lib.ggml_backend_tensor_get(node, self._ffi.from_buffer(data), 0, whole)
        if whole != count * size:
            data = dense(data, sides, steps, size)
        return Tensor(dtype, (rows, count // rows), data)


def dense(data: NDArray[np.uint8], sides: list[int], steps: list[int], size: int) -> NDArray[np.uint8]:
    """The bytes of a strided tensor, row after row. `sides` and `steps` are ggml's: the first one is the innermost."""
    shape, strides = (*reversed(sides), size), (*reversed(steps), 1)
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(data, shape, strides, writeable=False)).reshape(-1)
