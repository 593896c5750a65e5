"""A linear layer: x W' + b."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tracekit.auditing.matrix import linear
from tracekit.auditing.operations.operation import Given, Module, Operation, Shape
from tracekit.auditing.rounding import Floats, Result


@dataclass(frozen=True)
class Linear(Operation):
    """x W' + b. `inputs_first`: the weight is stored as [inputs, outputs], as transformers' `Conv1D` does."""

    kind = "linear"
    classes = frozenset({"Linear"})

    inputs_first: bool = False

    @property
    def transposed(self) -> bool:
        return self.inputs_first

    @property
    def in_repro(self) -> bool:
        return not self.inputs_first

    def result(self, given: Given) -> Result:
        return linear(given.weights.matrix(), given.inputs[0], given.dtype, given.closely)

    def values(self, given: Given) -> Floats:
        matrix = given.weights.matrix()
        return given.inputs[0] @ matrix.weight.T + (0.0 if matrix.bias is None else matrix.bias)

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        source = inputs[0] if inputs else width
        return shapes.get("weight") == ((source, width) if self.inputs_first else (width, source))

    @classmethod
    def of_module(cls, attributes: Mapping[str, object]) -> Operation | str:
        return cls()

    @classmethod
    def candidates(cls, module: Module) -> Iterator[Operation]:
        widths = (module.width, module.inputs)
        if module.weight == widths:
            yield cls()
        if module.weight == widths[::-1]:
            yield cls(inputs_first=True)
