"""Safetensors files, one or a folder's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.dtypes import to_float


class SafetensorsParameters:
    """See `tracekit.checkpoints.parameters.Parameters`; raises TraceError as `Checkpoint` does."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._checkpoint = Checkpoint(path)

    @property
    def names(self) -> list[str]:
        return self._checkpoint.names

    def dtype(self, name: str) -> str:
        return self._checkpoint.dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.shape(name)

    def values(self, name: str, first: int, stop: int) -> NDArray[Any]:
        return to_float(self._checkpoint.bits(name).reshape(-1)[first:stop], self.dtype(name))


class Safetensors:
    reads = "safetensors (*.safetensors, or a folder of them)"

    def knows(self, path: Path, head: bytes) -> bool:
        return any(path.glob("*.safetensors")) if path.is_dir() else path.suffix == ".safetensors"

    def open(self, path: Path) -> SafetensorsParameters:
        return SafetensorsParameters(str(path))


KIND = Safetensors()
