"""Parameters of any kind of checkpoint, by name: what a comparison reads.

A module of `tracekit/checkpoints/kinds/` brings a kind as `KIND`, another package by the entry points
`tracekit.checkpoints`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from tracekit.errors import TraceError
from tracekit.plugins import plugins

GROUP = "tracekit.checkpoints"
FOLDER = "tracekit.checkpoints.kinds"
HEAD = 16
"""First bytes of a file that a kind may know it by."""


class Parameters(Protocol):
    """A checkpoint of any kind. `dtype` is torch's word or a quantisation's name."""

    path: str

    @property
    def names(self) -> list[str]: ...
    def dtype(self, name: str) -> str: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def values(self, name: str, first: int, stop: int) -> NDArray[Any]:
        """Elements [first, stop) of the flattened tensor as floats. `first` is a multiple of `BLOCK`."""


class CheckpointKind(Protocol):
    """One format."""

    @property
    def reads(self) -> str:
        """What it reads, for a message: `safetensors (*.safetensors, or a folder of them)`."""

    def knows(self, path: Path, head: bytes) -> bool:
        """Whether a file that begins with `head`, or a folder (then `head` is empty), is of this kind."""

    def open(self, path: Path) -> Parameters:
        """Raises TraceError, in one sentence, where it is damaged."""


def open_parameters(path: str) -> Parameters:
    """A checkpoint by what its file or folder holds. Raises TraceError, in one sentence, for anything else."""
    place = Path(path)
    head = b""
    if not place.is_dir():
        try:
            with place.open("rb") as file:
                head = file.read(HEAD)
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    known: tuple[CheckpointKind, ...] = plugins(GROUP, FOLDER, "KIND")
    found = next((kind for kind in known if kind.knows(place, head)), None)
    if found is None:
        raise TraceError(f"{path}: is no checkpoint that tracekit reads: {'; '.join(kind.reads for kind in known)}")
    return found.open(place)
