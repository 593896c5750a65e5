"""A copy of a graph that gives the values of its modules besides its outputs.

A value inside a branch of an `If` becomes one more output of the branch and of the node; the other branch gives an
empty tensor in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracekit.formats.onnx_modules import Branch

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

FLOAT = 1
BRANCHES = ("then_branch", "else_branch")


@dataclass(frozen=True)
class Tapped:
    """The copy, and the output that each value (branch, name) became; what the graph is given stays what it is."""

    model: ModelProto
    outputs: dict[tuple[Branch, str], str]


def tapped(model: ModelProto, wanted: list[tuple[Branch, str]], types: dict[str, int]) -> Tapped:
    """The copy that gives the wanted values. `types`: value -> TensorProto's number of its format."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {value.name for value in copy.graph.input}
    known = {value.name for value in copy.graph.output}
    outputs: dict[tuple[Branch, str], str] = {}
    for number, (branch, name) in enumerate(dict.fromkeys(wanted)):
        top = _lifted(copy.graph, branch, name, types.get(name, FLOAT), number)
        outputs[branch, name] = top
        if top not in known and top not in given:
            known.add(top)
            copy.graph.output.append(onnx.ValueInfoProto(name=top))
    return Tapped(copy, outputs)


def _lifted(graph: GraphProto, branch: Branch, name: str, kind: int, number: int) -> str:
    """The name that a value inside a branch has in the outermost graph."""
    import onnx

    if not branch:
        return name
    (index, taken), rest = branch[0], branch[1:]
    node = graph.node[index]
    lifted = f"tracekit_{number}_{len(branch)}"
    for attribute in node.attribute:
        if attribute.name not in BRANCHES:
            continue
        inner = attribute.g
        if attribute.name == taken:
            value = _lifted(inner, rest, name, kind, number)
            made = any(value in each.output for each in inner.node)
            if not made or value in {each.name for each in inner.output}:
                copied = f"{lifted}_copy"
                inner.node.append(onnx.helper.make_node("Identity", [value], [copied]))
                value = copied
        else:
            value = f"{lifted}_none"
            empty = onnx.TensorProto(data_type=kind, dims=[0], name=value)
            inner.node.append(onnx.helper.make_node("Constant", [], [value], value=empty))
        inner.output.append(onnx.ValueInfoProto(name=value))
    node.output.append(lifted)
    return lifted
