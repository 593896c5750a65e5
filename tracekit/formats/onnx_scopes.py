"""Which module of the exported program a node belongs to, as the exporter left it.

torch.onnx's dynamo exporter writes `pkg.torch.onnx.name_scopes` and `pkg.torch.onnx.class_hierarchy` into a node's
metadata; the exporter before it, and optimum, name nodes `/model/layers.0/self_attn/q_proj/MatMul`. A node without
either is told by the parameter that it reads, if it is called `X.weight`. Else a node that is a module by itself (a
convolution; what ONNX Runtime fused) is one under its own name.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto

SCOPES = "pkg.torch.onnx.name_scopes"
CLASSES = "pkg.torch.onnx.class_hierarchy"
BY_PARAMETER = {
    "Conv": "Conv",
    "ConvTranspose": "ConvTranspose",
    "Gemm": "Linear",
    "MatMul": "Linear",
    "Gather": "Embedding",
    "LayerNormalization": "LayerNorm",
    "RMSNormalization": "RMSNorm",
    "BatchNormalization": "BatchNorm",
    "GroupNormalization": "GroupNorm",
    **{name: name for name in ("LSTM", "GRU", "RNN", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv")},
}
"""Operators that are a module by themselves, and its class."""
FUSED = "com.microsoft"
"""Domain of the operators that ONNX Runtime puts in place of several."""
LONGEST = 1 << 16
"""Characters of metadata that are read."""


@dataclass(frozen=True)
class Scope:
    """A module: its path, those of the modules around it, and the classes of all where the exporter says them."""

    path: str
    around: tuple[str, ...] = ()
    kinds: tuple[tuple[str, str], ...] = ()


def scope_of(node: NodeProto) -> Scope | None:
    """The innermost module that a node was exported from; None where nothing says it."""
    said = {entry.key: entry.value for entry in node.metadata_props} if hasattr(node, "metadata_props") else {}
    names, classes = _list(said.get(SCOPES)), _list(said.get(CLASSES))
    if len(names) > 1:
        *around, path, _ = names  # the last one is the operation itself
        kinds = zip(names, classes, strict=False) if len(classes) == len(names) else ()
        told = tuple((name, kind.rpartition(".")[2]) for name, kind in kinds)
        return Scope(path, tuple(name for name in around if name), told[:-1]) if path else None
    _, slash, rest = node.name.partition("/")
    words = rest.split("/")[:-1]  # after the last one comes the operator
    if not slash or not words:
        return None
    paths: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        # Children of a Sequential have its name before theirs: `/encoder/encoder.0/Conv`.
        own = word.removeprefix(f"{before}.") if before else word
        paths.append(f"{paths[-1]}.{own}" if paths else own)
    return Scope(paths[-1], tuple(paths[:-1]))


def parameter_scope(node: NodeProto, parameters: frozenset[str]) -> Scope | None:
    """The module that an operator is by itself: that whose `weight` it reads, else one of the node's own name."""
    read = [name for name in node.input if name in parameters]
    if not read or (node.op_type not in BY_PARAMETER and node.domain != FUSED):
        return None
    weights = [name.removesuffix(".weight") for name in read if name.endswith(".weight")]
    if node.op_type in BY_PARAMETER and len(weights) == 1:
        return Scope(weights[0])
    return Scope(node.name or node.output[0])


def _list(text: str | None) -> list[str]:
    """A list of texts, as Python writes it."""
    if not text or len(text) > LONGEST:
        return []
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [str(each) for each in value] if isinstance(value, list) else []
