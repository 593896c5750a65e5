"""What a node of llama.cpp's graph computes, under the checkpoint's names.

Nodes are told by the parameters that they read, not by their names, which differ between architectures: a product with
`blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj`, whatever the graph calls it. What enters a module is told by
the tensor itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum
from struct import pack, unpack
from typing import Any

import numpy as np

from tracekit.checkpoints.gguf import huggingface_name
from tracekit_llama_cpp.library import Library

MOST_VIEWS = 8
"""Views of views that are followed."""
LAYER_OUTPUT = "l_out-"
HEAD, TIED = "lm_head", "model.embed_tokens"
"""The module that gives the logits, and the table that is its weight too where they are tied."""


class Kind(Enum):
    """What a node is to the recorder."""

    TABLE = "embedding"
    PRODUCT = "linear layer"
    BIASED = "linear layer with its bias"
    NORM = "norm"
    SUM = "sum of two activations, a multiple of one, or rows of one"


@dataclass(frozen=True)
class Module:
    """A node that is a module's output, or a sum between modules."""

    kind: Kind
    name: str  # of the module; of a sum, that of the layer whose output it is, else empty
    parameters: dict[str, str]
    source: Any = None  # the node that computed what the module read
    read: Any = None  # what it read, which may be a reshaped view of that
    eps: float | None = None


class Nodes:
    """The nodes of one model's graphs. `parameters`: names of the file's tensors."""

    def __init__(self, library: Library, architecture: str, parameters: Collection[str]) -> None:
        self._ffi, self._library, self._architecture = library.ffi, library, architecture
        self._parameters = frozenset(parameters)
        self._names = frozenset(huggingface_name(name, architecture) for name in parameters)
        self._operations: dict[int, str] = {}
        self._known: dict[bytes, str | None] = {}

    def operation(self, node: Any) -> str:
        """ggml's name of what a node computes."""
        number = int(node.op)
        if number not in self._operations:
            self._operations[number] = self._library.text(self._library.lib.ggml_op_name(number))
        return self._operations[number]

    def parameter(self, node: Any) -> str | None:
        """The Hugging Face name of a parameter that a node is; None of what is computed."""
        if node == self._ffi.NULL or node.op:
            return None
        name = self._ffi.string(node.name)
        if name not in self._known:
            said = name.decode(errors="replace")
            known = said in self._parameters
            self._known[name] = huggingface_name(said, self._architecture) if known else None
        return self._known[name]

    def origin(self, node: Any) -> Any:
        """The node that computed a tensor's values: reshaped ones followed back."""
        for _ in range(MOST_VIEWS):
            source = node.src[0]
            if self.operation(node) != "RESHAPE" or source == self._ffi.NULL:
                break
            node = source
        return node

    def module(self, node: Any) -> Module | None:
        """What a node is; None where the recorder has no name for it."""
        match self.operation(node):
            case "GET_ROWS":
                return self._of_weight(node, Kind.TABLE) or self._between(node)
            case "MUL_MAT":
                found = self._of_weight(node, Kind.PRODUCT)
                return None if found is not None and f"{found.name}.bias" in self._names else found
            case "ADD":
                return self._biased(node) or self._sum(node)
            case "SCALE":
                return self._between(node)
            case "MUL":
                return self._norm(node) or self._between(node)
        return None

    def _of_weight(self, node: Any, kind: Kind) -> Module | None:
        weight = self.parameter(node.src[0])
        if weight is None or not weight.endswith(".weight"):
            return None
        name = weight.removesuffix(".weight")
        if kind is Kind.TABLE:
            return Module(kind, name, {"weight": weight})
        if name == TIED:
            name = HEAD
        return Module(kind, name, {"weight": weight}, self.origin(node.src[1]), node.src[1])

    def _biased(self, node: Any) -> Module | None:
        bias = self.parameter(node.src[1])
        product = self.origin(node.src[0])
        if bias is None or not bias.endswith(".bias") or self.operation(product) != "MUL_MAT":
            return None
        found = self._of_weight(product, Kind.BIASED)
        if found is None or found.name != bias.removesuffix(".bias"):
            return None
        both = found.parameters | {"bias": bias}
        return replace(found, kind=Kind.BIASED, parameters=both)

    def _norm(self, node: Any) -> Module | None:
        weight = self.parameter(node.src[1])
        normal = node.src[0]
        if weight is None or not weight.endswith(".weight") or self.operation(normal) != "RMS_NORM":
            return None
        (eps,) = unpack("<f", pack("<i", normal.op_params[0]))
        name = weight.removesuffix(".weight")
        source = self.origin(normal.src[0])
        return Module(Kind.NORM, name, {"weight": weight}, source, source, float(str(np.float32(eps))))

    def _between(self, node: Any) -> Module | None:
        """An activation times a number (Gemma's embeddings), or some of its rows (those whose logits are asked for)."""
        other = node.src[1]
        held = other == self._ffi.NULL or (not other.op and self.parameter(other) is None)
        return Module(Kind.SUM, "", {}) if node.src[0].op and held else None

    def _sum(self, node: Any) -> Module | None:
        if any(self.parameter(node.src[index]) is not None for index in (0, 1)):
            return None
        name = self._ffi.string(node.name).decode(errors="replace")
        number = name.removeprefix(LAYER_OUTPUT)
        layer = name != number and number.isdecimal()
        return Module(Kind.SUM, f"model.layers.{number}" if layer else "", {})
