"""A linear layer: x W' + b, its inputs as they are or rounded to an engine's blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tracekit.auditing.block_formats import BLOCK, FORMATS, is_known
from tracekit.auditing.matrix import Matrix, in_two_sums, linear
from tracekit.auditing.not_audited import NotAudited
from tracekit.auditing.operations.operation import Effort, Given, Module, Operation, Shape
from tracekit.auditing.rounding import Floats, Result, as_stored


@dataclass(frozen=True)
class Linear(Operation):
    """x W' + b. `inputs_first`: the weight is stored as [inputs, outputs], as transformers' `Conv1D` does."""

    kind = "linear"
    classes = frozenset({"Linear"})

    inputs_first: bool = False
    inputs_as: str | None = None
    """The format that the engine rounds the inputs to (`block_formats`)."""
    minima: bool = False
    """Whether the smallest values of the weight's blocks are multiplied apart."""

    @property
    def transposed(self) -> bool:
        return self.inputs_first

    @property
    def in_repro(self) -> bool:
        return not self.inputs_first and self.inputs_as is None

    def prepared(self, inputs: list[Floats]) -> list[Floats]:
        if self.inputs_as is None or not is_known(self.inputs_as, inputs[0].shape[1]):
            return inputs
        read = FORMATS[self.inputs_as][0](inputs[0])
        return [np.hstack([read.values, read.sums]) if self.minima else read.values, *inputs[1:]]

    @property
    def reads_minima(self) -> bool:
        return self.minima

    def result(self, given: Given) -> Result:
        closely = given.effort is not Effort.QUICK
        if not self.minima:
            made = linear(given.weights.matrix(), given.inputs[0], given.dtype, closely)
            return made if given.cast is None else replace(self._cast(given, given.cast, closely), others=(made,))
        width = given.inputs[0].shape[1] * BLOCK // (BLOCK + 1)
        return in_two_sums(given.weights.matrix(), given.inputs[0], width, given.dtype, closely)

    @staticmethod
    def _cast(given: Given, dtype: str, closely: bool) -> Result:
        """With weight, bias and inputs rounded first."""
        held = given.weights.matrix()
        bias = None if held.bias is None else as_stored(held.bias, dtype)
        return linear(Matrix(as_stored(held.weight, dtype), bias), as_stored(given.inputs[0], dtype), dtype, closely)

    def values(self, given: Given) -> Floats:
        matrix = given.weights.matrix()
        return given.inputs[0] @ matrix.weight.T + (0.0 if matrix.bias is None else matrix.bias)

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        source = inputs[0] if inputs else width
        return shapes.get("weight") == ((source, width) if self.inputs_first else (width, source))

    @classmethod
    def of_module(cls, attributes: Mapping[str, object]) -> Operation | NotAudited:
        return cls()

    @classmethod
    def candidates(cls, module: Module) -> Iterator[Operation]:
        widths = (module.width, module.inputs)
        if module.weight == widths:
            yield cls()
        if module.weight == widths[::-1]:
            yield cls(inputs_first=True)
