"""ONNX files: initialisers and the values of `Constant` nodes, of the graph and of what its nodes hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tracekit.formats.onnx_file import OnnxFile

SETTINGS = ("int64", "int32", "bool")
"""What shapes, axes and indices of a graph are of."""
IR_VERSION, AFTER = 0x08, b"\x12\x1a\x22\x28\x32\x3a\x42"
"""The first field of an ONNX file, and what may follow: producer, domain, version, graph, opsets."""


class OnnxParameters:
    """See `tracekit.checkpoints.parameters.Parameters`; raises TraceError as `OnnxFile` does."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._tensors = {name: tensor for name, tensor in OnnxFile(path).tensors.items() if math.prod(tensor.shape) > 0}

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def dtype(self, name: str) -> str:
        return self._tensors[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def values(self, name: str, first: int, stop: int) -> NDArray[Any]:
        return self._tensors[name].values(first, stop)

    def settings(self, name: str) -> bool:
        """Whether a tensor belongs to the graph, not to the model: an axis, a shape, a single number, or what an
        exporter filled with one number."""
        tensor = self._tensors[name]
        return tensor.dtype in SETTINGS or not tensor.shape or bool((tensor.bits == tensor.bits.flat[0]).all())


class Onnx:
    reads = "ONNX (*.onnx)"

    def knows(self, path: Path, head: bytes) -> bool:
        if path.is_dir():
            return False
        begins = len(head) > 2 and head[0] == IR_VERSION and head[1] < 32 and head[2] in AFTER
        return path.suffix == ".onnx" or begins

    def open(self, path: Path) -> OnnxParameters:
        return OnnxParameters(str(path))


KIND = Onnx()
