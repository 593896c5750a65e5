"""The values of a graph's nodes while llama.cpp computes them: which are asked for, and copies of them.

llama.cpp reuses memory as soon as a value was read for the last time, so everything is copied when the node was
computed; the input of a product is copied when that product was computed, which is before its memory is reused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tracekit.formats.log import LogWriter, Tensor
from tracekit.trace import INPUT_SUFFIX, LOGITS, Json
from tracekit_llama_cpp.library import Library
from tracekit_llama_cpp.nodes import HEAD, Kind, Module, Nodes
from tracekit_llama_cpp.options import Options
from tracekit_llama_cpp.plan import Plan, Taken, dense, shape_of, span

PLAIN = {0: ("float32", 4), 1: ("float16", 2), 28: ("float64", 8), 30: ("bfloat16", 2)}
"""ggml's number of a format: torch's word and its bytes."""
CLASSES = {Kind.TABLE: "Embedding", Kind.PRODUCT: "Linear", Kind.BIASED: "Linear", Kind.NORM: "RMSNorm"}


class Taps:
    """Copies of the nodes of forward calls, those of one sequence after the other.

    Each node is asked for before it is computed, in the order of the computation; what it is, and which copies it
    takes, is found then. A later graph for as many rows is answered from what was found (`Plan`).
    """

    def __init__(self, library: Library, nodes: Nodes, writer: LogWriter, options: Options) -> None:
        self._library, self._nodes, self._writer, self._options = library, nodes, writer, options
        self._ffi = library.ffi
        self.callback = library.ffi.callback("eval_callback", self._called, error=True, onerror=self._failed)
        self.failure: BaseException | None = None
        self.sequence = 0
        """Index of the sequence that is computed."""
        self._table: dict[str, Json] = {}
        self._said = 0  # rows of the table that are written
        self._at = 0  # position of the micro-batch
        self._left = 0  # tokens of the call that no graph has begun with
        self._plans: dict[tuple[int, bool], Plan] = {}  # by rows, and whether it is the last graph of its call
        self._plan: Plan | None = None
        self._place = 0  # in the plan
        self._lost = False
        self._arena = np.empty(0, np.uint8)
        self._base: Any = None  # its address
        self._begin()

    def _begin(self) -> None:
        """A graph begins."""
        self._micro = 0  # its rows
        self._names: dict[int, str] = {}  # address of a node -> the site that its values are
        self._copies: dict[int, list[tuple[str, Any, int]]] = {}  # address -> site, tensor, rows: to be copied then
        self._sums: dict[int, Taken | None] = {}  # sums that nothing has read so far
        self._values: dict[str, Taken] = {}
        self._asked_for: list[Any] = []  # nodes since the embedding was asked for
        self._key: tuple[int, bool] | None = None

    # ------------------------------------------------------------------ forward calls

    def batch(self, position: int, tokens: Sequence[int]) -> None:
        """A call of `llama_decode` begins, of these tokens from `position` on."""
        self._at, self._left, self._lost = position, len(tokens), False
        self._begin()

    def done(self) -> None:
        """The call is over. Raises what went wrong in it."""
        self._flush()
        if self.failure is not None:
            raise self.failure

    def _flush(self) -> None:
        """A graph is over: what was copied of it is written."""
        plan, self._plan = self._plan, None
        if plan is not None:
            if self._place < plan.count:
                self._lose()
                return
            plan.write(self._writer, self._arena, self.sequence, self._at)
            self._at += plan.micro
            self._begin()
            return
        rows = list(self._table.values())[self._said :]
        if rows:
            self._writer.sites(rows)
            self._said = len(self._table)
        for count in sorted({one.rows for one in self._values.values()}, reverse=True):
            kept = {name: one.value for name, one in self._values.items() if one.rows == count}
            # Fewer rows than the call has: llama.cpp drops the others before the last layer's feed-forward block.
            self._writer.call(self.sequence, self._at + self._micro - count, count, kept)
        if self._key is not None and self.failure is None:
            self._plans[self._key] = Plan(self._library, self._asked_for, self._values, self._micro)
        self._at += self._micro
        self._begin()

    def _follow(self, node: Any, rows: int) -> bool:
        """A graph for so many rows begins with a node. Whether there is a plan for it."""
        self._left -= rows
        self._key = rows, self._left == 0
        plan = self._plans.get(self._key)
        if plan is None or node != plan.nodes[0]:
            return False
        self._plan, self._place = plan, 1
        if self._arena.nbytes != plan.nbytes:
            self._arena = np.empty(plan.nbytes, np.uint8)
            self._base = self._ffi.from_buffer(self._arena)
        return True

    # ------------------------------------------------------------------ nodes

    def _called(self, node: Any, ask: bool, _: Any) -> bool:
        plan, place = self._plan, self._place
        if plan is None or (ask and place == plan.count):
            return self._found(node, ask)
        if not ask:
            return plan.computed(place - 1, self._arena, self._base) or self._lose()
        if node != plan.nodes[place] or node.op != plan.operations[place]:
            return not self._lose()
        self._place = place + 1
        return plan.wanted[place]

    def _found(self, node: Any, ask: bool) -> bool:
        """As llama.cpp asks, where there is no plan, or the graph of one is over."""
        if self.failure is not None or self._lost:
            return not ask
        if self._plan is not None:
            self._flush()
        if not ask:
            self._computed(node)
            return True
        wanted = self._asked(node)
        self._asked_for.append(node)
        return wanted

    def _lose(self) -> bool:
        """The graph is not the one that it was for as many rows: the rest of the call is not recorded, and said."""
        self._writer.lost("values of a forward call: llama.cpp's graph is not the one that it was for as many rows")
        self._lost, self._plan = True, None
        self._plans.clear()
        self._begin()
        return True

    def _failed(self, kind: Any, error: BaseException, trace: Any) -> None:
        """The run goes on without being recorded."""
        self.failure, self._plan = error, None

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
            self._asked_for = []
            if self._follow(node, self._micro):
                assert self._plan is not None
                return self._plan.wanted[0]
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
                self._values[name] = held
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
            self._sums[address] = self._taken(node, int(node.ne[1]))
        for name, tensor, rows in self._copies.pop(address, ()):
            value = self._taken(tensor, rows)
            if value is not None:
                self._values[name] = value

    # ------------------------------------------------------------------ values

    def _address(self, node: Any) -> int:
        return int(self._ffi.cast("intptr_t", node))

    def _taken(self, node: Any, rows: int) -> Taken | None:
        """A tensor's values, [rows, width]; None of a format that holds no plain numbers."""
        plain = PLAIN.get(int(node.type))
        if plain is None or not rows:
            return None
        dtype, size = plain
        sides, steps = shape_of(self._ffi, node)
        count, whole = math.prod(sides), span(sides, steps, size)
        data = np.empty(whole, np.uint8)
        self._library.lib.ggml_backend_tensor_get(node, self._ffi.from_buffer(data), 0, whole)
        if whole != count * size:
            data = dense(data, sides, steps, size)
        return Taken(len(self._asked_for) - 1, node, Tensor(dtype, (rows, count // rows), data), rows)
