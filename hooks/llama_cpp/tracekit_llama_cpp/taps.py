"""The values of a graph's nodes while llama.cpp computes them: which are asked for, and copies of them.

llama.cpp reuses memory as soon as a value was read for the last time, so everything is copied when the node was
computed; the input of a product is copied when that product was computed, which is before its memory is reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.formats.log import LogWriter
from tracekit.trace import INPUT_SUFFIX, LOGITS, Json
from tracekit_llama_cpp.library import Library
from tracekit_llama_cpp.nodes import HEAD, Kind, Module, Nodes
from tracekit_llama_cpp.options import Options
from tracekit_llama_cpp.plan import Copy, Node, Plan, dense

CLASSES = {Kind.TABLE: "Embedding", Kind.PRODUCT: "Linear", Kind.BIASED: "Linear", Kind.NORM: "RMSNorm"}


@dataclass(frozen=True)
class Taken:
    """A tensor that was copied, and its values, row after row."""

    copy: Copy
    data: NDArray[np.uint8]


class Taps:
    """Copies of the nodes of forward calls, those of one sequence after the other.

    Each node is asked for before it is computed, in the order of the computation; what it is, and which copies it
    takes, is found then. A later graph for as many rows is answered from what was found (`Plan`), in C where that is
    compiled (`follow.c`), else here.
    """

    def __init__(self, library: Library, nodes: Nodes, writer: LogWriter, options: Options) -> None:
        self._library, self._nodes, self._writer, self._options = library, nodes, writer, options
        self._ffi = library.ffi
        self._in_python = library.ffi.callback("eval_callback", self._called, error=True, onerror=self._failed)
        self._in_c = self._compiled()
        self.callback = self._in_python if self._in_c is None else self._in_c
        self.state = library.ffi.new("struct tracekit_state *")
        """What the callback is called with."""
        self.state.get, self.state.other = library.lib.ggml_backend_tensor_get, self._in_python
        self.failure: BaseException | None = None
        self.sequence = 0
        """Index of the sequence that is computed."""
        self._table: dict[str, Json] = {}
        self._said = 0  # rows of the table that are written
        self._at = 0  # position of the micro-batch
        self._left = 0  # tokens of the call that no graph has begun with
        self._plans: dict[tuple[int, bool], Plan] = {}  # by rows, and whether it is the last graph of its call
        self._plan: Plan | None = None
        self._lost = False
        self._arena = np.empty(0, np.uint8)
        self._base: Any = None  # its address
        self._begin()

    def _begin(self) -> None:
        """A graph begins."""
        self._micro = 0  # its rows
        self._names: dict[int, str] = {}  # address of a node -> the site that its values are
        # Address of a node -> site, tensor and the one whose second side is its rows, to be copied when it is computed.
        self._copies: dict[int, list[tuple[str, Any, Any]]] = {}
        self._sums: dict[int, Taken | None] = {}  # sums that nothing has read so far
        self._values: dict[str, Taken] = {}
        self._asked_for: list[Node] = []  # nodes since the embedding was asked for
        self._key: tuple[int, bool] | None = None

    def _compiled(self) -> Any:
        """The callback in C, None where there is none."""
        return self._library.follow

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
        plan = self._plan
        self._leave()
        if plan is not None:
            if self.state.place < plan.count:
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
        copies = {name: one.copy for name, one in self._values.items()}
        found = Plan(self._library, self._asked_for, copies, self._micro)
        values = {name: one.data for name, one in self._values.items()}
        found.write_found(self._writer, values, self.sequence, self._at)
        if self._key is not None and self.failure is None:
            self._plans[self._key] = found
        self._at += self._micro
        self._begin()

    def _follow(self, node: Any, rows: int) -> bool:
        """A graph for so many rows begins with a node. Whether there is a plan for it."""
        self._left -= rows
        self._key = rows, self._left == 0
        plan = self._plans.get(self._key) or self._for_rows(node, rows)
        if plan is None or node != plan.nodes[0]:
            return False
        if self._arena.nbytes != plan.nbytes + plan.scratch:
            self._arena = np.empty(plan.nbytes + plan.scratch, np.uint8)
            self._base = self._ffi.from_buffer("char[]", self._arena)
        self._plan, self.state.place = plan, 1
        if self._in_c is not None:
            self.state.plan, self.state.arena, self.state.scratch = plan.in_c, self._base, self._base + plan.nbytes
        return True

    def _for_rows(self, node: Any, rows: int) -> Plan | None:
        """The plan of a graph for another number of rows that began with the same node, made one for so many. Another
        graph's memory may be gone. One that is not its call's last has values without rows, which no plan holds."""
        assert self._key is not None
        others = [plan for (_, last), plan in self._plans.items() if last and plan.nodes[0] == node]
        known = (other.for_rows(rows) for other in others) if self._key[1] else iter(())
        plan = next((made for made in known if made is not None), None)
        if plan is not None:
            self._plans[self._key] = plan
        return plan

    def _leave(self) -> None:
        """No plan is followed."""
        self._plan, self.state.plan = None, self._ffi.NULL

    # ------------------------------------------------------------------ nodes

    def _called(self, node: Any, ask: bool, _: Any) -> bool:
        plan, place = self._plan, int(self.state.place)
        if plan is None or (ask and place == plan.count):
            return self._found(node, ask)
        if not ask:
            return plan.computed(place - 1, self._arena, self._base) or self._lose()
        if node != plan.nodes[place] or node.op != plan.operations[place]:
            return not self._lose()
        self.state.place = place + 1
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
        self._asked_for.append(Node.of(self._ffi, node))
        return wanted

    def _lose(self) -> bool:
        """The graph is not the one that it was for as many rows: the rest of the call is not recorded, and said."""
        self._writer.lost("values of a forward call: llama.cpp's graph is not the one that it was for as many rows")
        self._lost = True
        self._leave()
        self._plans.clear()
        self._begin()
        return True

    def _failed(self, kind: Any, error: BaseException, trace: Any) -> None:
        """The run goes on without being recorded."""
        self.failure = error
        self._leave()

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
        counted = found.source if found.kind is Kind.NORM else node  # the second side of a norm of heads is the heads
        self._names[address] = found.name
        self._describe(found)
        if self._options.keeps(found.name) and found.name != HEAD:
            copies.append((found.name, node, counted))
        if copies:
            self._copies[address] = copies
        return bool(copies)

    def _input(self, found: Module) -> list[tuple[str, Any, Any]]:
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
        return [] if name in self._values else [(name, found.read, found.read)]

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
            self._sums[address] = self._taken(node, node)
        for name, tensor, counted in self._copies.pop(address, ()):
            value = self._taken(tensor, counted)
            if value is not None:
                self._values[name] = value

    # ------------------------------------------------------------------ values

    def _address(self, node: Any) -> int:
        return int(self._ffi.cast("intptr_t", node))

    def _taken(self, node: Any, counted: Any) -> Taken | None:
        """A tensor's values; None of a format that holds no plain numbers."""
        copy = Copy.of(self._ffi, len(self._asked_for) - 1, node, counted)
        if copy is None:
            return None
        data = np.empty(copy.whole, np.uint8)
        self._library.lib.ggml_backend_tensor_get(node, self._ffi.from_buffer(data), 0, copy.whole)
        if not copy.in_order:
            data = dense(data, copy.sides, copy.steps, copy.itemsize)
        return Taken(copy, data)
