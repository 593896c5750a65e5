"""Values that are written into a graph of llama.cpp while it is computed.

Where every node is asked for, llama.cpp computes one node at a time: when one is computed, nothing has read it. Which
module's input a node is shows only when the module is asked for, so a first run says which node holds which site
(`Placed`), and the run that writes compares (`Written`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import STORAGE, round_to
from tracekit.formats.log import LogWriter
from tracekit.trace import TraceError
from tracekit_llama_cpp.library import Library
from tracekit_llama_cpp.nodes import HEAD, Nodes
from tracekit_llama_cpp.options import Options
from tracekit_llama_cpp.plan import PLAIN, scattered, shape_of, span
from tracekit_llama_cpp.taps import Taken, Taps

Places = Mapping[str, int]
"""The place in the order of asking of the node that holds each site."""


class RightValues(Protocol):
    """What sites should hold, by what was computed before them."""

    sites: Mapping[str, int]
    """Sites to write, each with its values a row; `HEAD` stands for the logits."""
    needed: Collection[str]
    """Sites that these are computed from."""

    def fed(self, tokens: list[int]) -> None:
        """Tokens that the engine is given next."""

    def computed(self, site: str, first: int, values: NDArray[Any]) -> None:
        """Rows of a needed site, [rows, width] as recorded, of positions from `first` on."""

    def of(self, site: str, first: int, rows: int) -> NDArray[np.float64] | None:
        """What a site should hold at these positions, [rows, width]; None where nothing reads it."""


class Placed(Taps):
    """Records every node's graph one node at a time, and keeps which node holds which site."""

    def __init__(self, library: Library, nodes: Nodes, writer: LogWriter, options: Options) -> None:
        super().__init__(library, nodes, writer, options)
        self.places: dict[tuple[int, bool], Places] = {}
        """By the rows of a graph, and whether it is the last one of its call."""

    def _asked(self, node: Any) -> bool:
        super()._asked(node)
        return True

    def _flush(self) -> None:
        if self._key is not None and self.failure is None:
            self.places[self._key] = self._held()
        super()._flush()
        self._plans.clear()

    def _held(self) -> Places:
        places = {self._address(node.tensor): place for place, node in enumerate(self._asked_for)}
        held = {name: places[address] for address, name in self._names.items() if address in places}
        if held.get(HEAD) != len(places) - 1:
            held.pop(HEAD, None)  # its values are not the logits: something follows
        return held


class Written(Placed):
    """Writes the right values of sites as soon as their nodes are computed."""

    def __init__(
        self,
        library: Library,
        nodes: Nodes,
        writer: LogWriter,
        options: Options,
        right: RightValues,
        places: Mapping[tuple[int, bool], Places],
    ) -> None:
        super().__init__(library, nodes, writer, options)
        self._right, self._known = right, places
        self._done: dict[str, int] = {}  # site -> address of the node that was written

    def batch(self, position: int, tokens: Any) -> None:
        super().batch(position, tokens)
        self._right.fed(list(tokens))

    def _begin(self) -> None:
        super()._begin()
        self._done = {}

    def _due(self, place: int) -> str | None:
        """The site that the node at a place holds, where it is to be written. Graphs of another size have the same
        nodes."""
        assert self._key is not None
        places = self._known.get(self._key) or next(iter(self._known.values()))
        return next((site for site in self._right.sites if places.get(site) == place), None)

    def _computed(self, node: Any) -> None:
        address = self._address(node)
        own = [copy for copy in self._copies.get(address, ()) if copy[1] == node]
        super()._computed(node)
        site = None if self._key is None else self._due(len(self._asked_for) - 1)
        if site is None:
            return
        self._write(site, node)
        self._done[site] = address
        self._copies[address] = own
        super()._computed(node)

    def _write(self, site: str, node: Any) -> None:
        """Raises TraceError where the node is not of the site's width or format."""
        sides, steps = shape_of(self._ffi, node)
        rows, rest = divmod(math.prod(sides), self._right.sites[site])
        if rest or int(node.type) not in PLAIN:
            raise TraceError(f"{site}: its values cannot be written into llama.cpp's graph, which lays them out anew")
        self._hand_on()
        values = self._right.of(site, self._at + self._micro - rows, rows) if rows else None
        if values is None:
            return
        dtype, size = PLAIN[int(node.type)]
        whole = span(sides, steps, size)
        data = np.empty(whole, np.uint8)
        self._library.lib.ggml_backend_tensor_get(node, self._ffi.from_buffer(data), 0, whole)
        scattered(data, round_to(values, dtype), sides, steps)
        self._library.lib.ggml_backend_tensor_set(node, self._ffi.from_buffer(data), 0, whole)

    def _hand_on(self) -> None:
        """What is needed of the graph so far."""
        for name in self._right.needed:
            taken = self._values.get(name)
            if taken is not None:
                self._right.computed(name, self._at + self._micro - taken.copy.rows, _array(taken))

    def _flush(self) -> None:
        if self._key is not None and self.failure is None:
            self._hand_on()
            addresses = {name: address for address, name in self._names.items()}
            missed = [
                site
                for site in self._right.sites
                if site in addresses and self._done.get(site) != addresses[site] and self._micro
            ]
            if missed:
                self.failure = TraceError(f"{missed[0]}: is not where it was in llama.cpp's graph; nothing is repaired")
        super()._flush()


def _array(taken: Taken) -> NDArray[Any]:
    """Its values, [rows, width]."""
    return np.frombuffer(taken.data, STORAGE[taken.copy.dtype]).reshape(taken.copy.rows, -1)
