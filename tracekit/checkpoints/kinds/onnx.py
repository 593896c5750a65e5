"""ONNX files: initialisers and the values of `Constant` nodes, of the graph and of what its nodes hold."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

from tracekit.checkpoints.parameters import Parameters, declared_settings
from tracekit.formats.onnx_file import OnnxFile
from tracekit.formats.onnx_modules import Parameter, modules_of, value_types

SETTINGS = ("int64", "int32", "bool")
"""What shapes, axes and indices of a graph are of."""
IR_VERSION, AFTER = 0x08, b"\x12\x1a\x22\x28\x32\x3a\x42"
"""The first field of an ONNX file, and what may follow: producer, domain, version, graph, opsets."""


class OnnxParameters(Parameters):
    """The tensors under the exporter's names; a program's parameter is found by the module whose node reads it, however
    it is called and turned there. Raises TraceError as `OnnxFile` does."""

    def __init__(self, path: Path) -> None:
        self._file = OnnxFile(str(path))
        held = {name: tensor for name, tensor in self._file.tensors.items() if math.prod(tensor.shape) > 0}
        super().__init__(str(path), held, declared_settings(path))
        self._names = list(held)

    @property
    def names(self) -> list[str]:
        return self._names

    def called(self, name: str) -> str | None:
        held = self._of_modules.get(name)
        if held is None or (held.tensor.name == name and not held.transposed):
            return super().called(name)
        known = f"{held.tensor.name} of {name}"
        self._tensors[known] = held
        return known

    @cached_property
    def _of_modules(self) -> dict[str, Parameter]:
        modules = modules_of(self._file, value_types(self._file))
        return {held.name: held for module in modules for held in module.parameters.values()}

    def settings(self, name: str) -> bool:
        """An axis, a shape, a single number, or what an exporter filled with one number."""
        dtype, shape, bits = self.dtype(name), self.shape(name), self.bits(name)
        return dtype in SETTINGS or not shape or bool((bits == bits.flat[0]).all())


class Onnx:
    reads = "ONNX (*.onnx)"

    def knows(self, path: Path, head: bytes) -> bool:
        if path.is_dir():
            return False
        begins = len(head) > 2 and head[0] == IR_VERSION and head[1] < 32 and head[2] in AFTER
        return path.suffix == ".onnx" or begins

    def open(self, path: Path) -> OnnxParameters:
        return OnnxParameters(path)


KIND = Onnx()
