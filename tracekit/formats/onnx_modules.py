"""The modules of a graph: what each gives, what it reads, and its parameters.

What a module gives is the one value of floats that its nodes make and others read. A module of which several values are
read (a rotary table's cosine and sine) is left out: which of them the program calls its output is not known. So are
those inside `Loop` and `Scan`, which have as many values as there are turns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tracekit.formats.onnx_file import OnnxFile, OnnxTensor
from tracekit.formats.onnx_scopes import BY_PARAMETER, FUSED, Scope, parameter_scope, scope_of
from tracekit.trace import INPUT_SUFFIX, Json

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

FLOATS = (1, 10, 11, 16)
"""TensorProto's numbers of the floats that are recorded: float32, float16, float64, bfloat16."""
PACKED = (2, 3, 21, 22)
"""Those of the integers that weights are quantised to: uint8, int8, uint4, int4."""
QUANTISED = ("DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv")
"""Operators that read such weights, and no plain ones."""
LOOPS = ("Loop", "Scan")
EPS = ("epsilon",)
CONVOLUTIONS = ("Conv", "ConvTranspose")
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
"""Operators that move no number."""

Branch = tuple[tuple[int, str], ...]
"""Where a graph is: index of a node in the graph around it and the node's attribute, outermost first."""


@dataclass(frozen=True)
class Parameter:
    """A tensor of the file that a module reads, and how it has to be turned to be the module's own."""

    name: str
    tensor: OnnxTensor
    transposed: bool = False

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape[::-1] if self.transposed else self.tensor.shape

    @property
    def bits(self) -> NDArray[Any]:
        """The module's own, a view of the file."""
        return self.tensor.bits.T if self.transposed else self.tensor.bits


@dataclass
class Module:
    """A module, its output and its input as values of the graph `branch`."""

    name: str
    kind: str
    branch: Branch
    order: int
    output: str | None
    input: str | None
    views: tuple[str, ...] = ()
    """What the input is a reshaped view of, nearest first."""
    why_not: str | None = None
    parameters: dict[str, Parameter] = field(default_factory=dict)
    attributes: Json = field(default_factory=dict)


@dataclass
class _Nodes:
    """One graph: its nodes, and who makes and reads each value; `loop`: the operator that runs it again and again."""

    graph: GraphProto
    branch: Branch
    loop: str | None = None
    makers: dict[str, int] = field(default_factory=dict)
    readers: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        for index, node in enumerate(self.graph.node):
            self.makers |= dict.fromkeys(node.output, index)
            for name in _read(node):
                self.readers[name].add(index)
        for output in self.graph.output:
            self.readers[output.name].add(-1)


def modules_of(file: OnnxFile, types: dict[str, int]) -> list[Module]:
    """All modules that have or contain parameters, in the order in which they end. `types`: value -> TensorProto's
    number of its format, where it is known."""
    found: list[Module] = []
    for nodes in _graphs(file.model.graph, ()):
        outside = {module.name for module in found} if nodes.loop else ()
        found += [module for module in _Reader(file, nodes, types).modules() if module.name not in outside]
    _tell_apart(found)
    return found


def _graphs(graph: GraphProto, branch: Branch, loop: str | None = None) -> Iterator[_Nodes]:
    """A graph and those that its nodes hold; what is inside a loop is said to be where the loop is."""
    yield _Nodes(graph, branch, loop)
    for index, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                around = loop or (node.op_type if node.op_type in LOOPS else None)
                yield from _graphs(attribute.g, branch if around else (*branch, (index, attribute.name)), around)


def _read(node: NodeProto) -> Iterator[str]:
    """What a node reads, its inner graphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in graph.node:
                yield from _read(inner)
            yield from (output.name for output in graph.output)


def _tell_apart(found: list[Module]) -> None:
    """Modules of the same name in several branches get that of their branch before it."""
    places = defaultdict(set)
    for module in found:
        places[module.name].add(module.branch)
    for module in found:
        if len(places[module.name]) > 1 and module.branch:
            module.name = ".".join([*(attribute for _, attribute in module.branch), module.name])


class _Reader:
    """The modules of one graph."""

    def __init__(self, file: OnnxFile, nodes: _Nodes, types: dict[str, int]) -> None:
        self._file, self._nodes, self._types = file, nodes, types
        self._named = frozenset(file.tensors)
        held = frozenset(name for name in self._named if self._is_parameter(name) or self._is_packed(name))
        self._unpacked = {
            node.output[0]
            for node in nodes.graph.node
            if node.op_type == "DequantizeLinear" and self._is_packed(node.input[0])
        }
        self._scopes: dict[int, Scope] = {}
        for index, node in enumerate(nodes.graph.node):
            if node.op_type != "Constant":
                scope = scope_of(node) or parameter_scope(node, held)
                if scope is not None:
                    self._scopes[index] = scope

    def modules(self) -> list[Module]:
        inside: dict[str, list[int]] = defaultdict(list)
        kinds: dict[str, str] = {}
        for index, scope in self._scopes.items():
            for name in (*scope.around, scope.path):
                inside[name].append(index)
            kinds |= dict(scope.kinds)
        out = [self._module(name, indices, kinds.get(name)) for name, indices in inside.items()]
        kept = [module for module in out if self._holds_parameters(inside[module.name])]
        return sorted(kept, key=lambda module: (module.order, -module.name.count(".")))

    def _holds_parameters(self, indices: list[int]) -> bool:
        nodes = self._nodes.graph.node
        read = (name for index in indices for name in nodes[index].input)
        return any(self._is_parameter(name) or self._is_packed(name) or name in self._unpacked for name in read)

    def _is_packed(self, name: str) -> bool:
        tensor = self._file.tensors.get(name)
        return tensor is not None and tensor.code in PACKED and len(tensor.shape) > 1

    def _is_parameter(self, name: str) -> bool:
        tensor = self._file.tensors.get(name)
        return tensor is not None and tensor.code in FLOATS and bool(tensor.shape)

    def _is_float(self, name: str) -> bool:
        return self._types.get(name, 1) in FLOATS

    def _module(self, name: str, indices: list[int], kind: str | None) -> Module:
        nodes, own = self._nodes.graph.node, set(indices)
        made = [value for index in indices for value in nodes[index].output if value]
        left = [value for value in made if self._is_float(value) and self._nodes.readers[value] - own]
        if len(left) > 1:
            # What is not made with the module's parameters is shared by several modules: masks, rotary angles.
            computed = self._from_parameters(indices)
            left = [value for value in left if value in computed] or left
        if len(left) > 1:
            # What only the caller reads is kept for a later call: keys and values.
            left = [value for value in left if self._nodes.readers[value] - own - {-1}] or left
        entering = dict.fromkeys(
            value
            for index in indices
            for value in _read(nodes[index])
            if self._nodes.makers.get(value, -1) not in own and value not in self._named and self._is_float(value)
        )
        entering = {value: None for value in entering if not self._is_constant(value)}
        why = None if len(left) == 1 else f"{len(left)} of its values are read by others" if left else "gives no floats"
        if self._nodes.loop is not None:
            left, entering, why = [], {}, f"it is inside a {self._nodes.loop}, which runs it again and again"
        order = self._nodes.makers[left[0]] if len(left) == 1 else max(indices)
        direct = [index for index in indices if self._scopes[index].path == name]
        only = direct[0] if len(direct) == 1 else None
        if kind is None:
            single = {BY_PARAMETER.get(nodes[index].op_type) for index in direct} - {None}
            kind = single.pop() if len(single) == 1 and len(direct) <= 2 else "module"
        module = Module(name, kind or "module", self._nodes.branch, order, None, None, why_not=why)
        module.output = left[0] if len(left) == 1 else None
        module.input = next(iter(entering)) if direct and len(entering) == 1 else None
        module.views = tuple(self._views(module.input))
        for index in direct:
            self._add_parameters(module, nodes[index])
        held = module.parameters.get("weight")
        if module.kind in CONVOLUTIONS and held is not None:
            module.kind += f"{len(held.tensor.shape) - 2}d"
        if only is not None or module.kind.endswith("Norm"):
            module.attributes = self._constants(direct)
        return module

    def _views(self, value: str | None) -> Iterator[str]:
        while value in self._nodes.makers:
            node = self._nodes.graph.node[self._nodes.makers[value]]
            if node.op_type not in VIEWS:
                return
            value = node.input[0]
            yield value

    def _from_parameters(self, indices: list[int]) -> set[str]:
        """Values that nodes of a module make with its parameters."""
        made: set[str] = set()
        for index in sorted(indices):
            node = self._nodes.graph.node[index]
            if any(name in made or self._is_parameter(name) for name in _read(node)):
                made |= set(node.output)
        return made

    def _is_constant(self, value: str) -> bool:
        maker = self._nodes.makers.get(value)
        return value in self._unpacked or (maker is not None and self._nodes.graph.node[maker].op_type == "Constant")

    def _add_parameters(self, module: Module, node: NodeProto) -> None:
        if node.domain == FUSED or node.op_type in QUANTISED:
            return  # their tensors are packed, or scales: no parameter of the program
        for at, name in enumerate(node.input):
            if not self._is_parameter(name):
                continue
            tensor = self._file.tensors[name]
            role = name.rpartition(".")[2]
            owned = name == f"{module.name}.{role}"
            if not owned:
                role = "bias" if node.op_type == "Add" or at > 1 else "weight"
                if node.op_type == "Add" and module.kind.endswith("RMSNorm"):
                    continue
            turned = node.op_type == "MatMul" and at == 1 and len(tensor.shape) == 2
            if node.op_type == "Gemm" and at == 1:
                turned = not any(each.name == "transB" and each.i for each in node.attribute)
            module.parameters.setdefault(role, Parameter(f"{module.name}.{role}", tensor, turned))

    def _constants(self, direct: list[int]) -> Json:
        """A norm's epsilon: an attribute, or the number that is added under the root."""
        nodes = self._nodes.graph.node
        for index in direct:
            for attribute in nodes[index].attribute:
                if attribute.name in EPS:
                    return {"eps": _short(attribute.f)}
        roots = {name for index in direct if nodes[index].op_type == "Sqrt" for name in nodes[index].input}
        for index in direct:
            if nodes[index].op_type == "Add" and set(nodes[index].output) & roots:
                for name in nodes[index].input:
                    tensor = self._file.tensors.get(name)
                    if tensor is not None and not tensor.shape and tensor.code in FLOATS:
                        return {"eps": _short(float(tensor.values(0, 1)[0]))}
        return {}


def value_types(file: OnnxFile) -> dict[str, int]:
    """Value -> TensorProto's number of its format, of all graphs."""
    import onnx

    try:
        model = onnx.shape_inference.infer_shapes(file.model)
    except Exception:  # what it cannot say is taken for floats
        model = file.model
    found: dict[str, int] = {}
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.tensor_type.elem_type:
                found[value.name] = value.type.tensor_type.elem_type
        graphs += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return found


def input_site(module: Module) -> str:
    """The name of a module's input as a site of its own."""
    return module.name + INPUT_SUFFIX


def _short(value: float) -> float:
    """A float32 as the decimal number that it stands for."""
    return float(f"{value:.7g}")
