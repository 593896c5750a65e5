"""Parameters of any kind of checkpoint, by the names of its file.

A module of `tracekit/checkpoints/kinds/` brings a kind as `KIND`, another package by the entry points
`tracekit.checkpoints`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import STORAGE, to_float
from tracekit.errors import TraceError
from tracekit.plugins import plugins
from tracekit.trace import Json

GROUP = "tracekit.checkpoints"
FOLDER = "tracekit.checkpoints.kinds"
HEAD = 16
"""First bytes of a file that a kind may know it by."""


class StoredNumbers(Protocol):
    """A tensor of a file: `dtype` is torch's word; `bits` are what is stored, bfloat16 as uint16."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def bits(self) -> NDArray[Any]: ...


class Parameters:
    """The tensors of a checkpoint, and the settings that it declares as a `config.json` has them; `dtype` is torch's
    word or a quantisation's name. A kind whose files hold more than plain tensors overrides what is otherwise there.
    """

    one_added = False
    """Whether norms that multiply by 1 + weight are stored as that sum."""

    def __init__(self, path: str, tensors: Mapping[str, StoredNumbers], config: Json | None = None) -> None:
        self.path = path
        self.config: Json = config or {}
        self._tensors = dict(tensors)

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def dtype(self, name: str) -> str:
        return self._tensors[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def bits(self, name: str) -> NDArray[Any]:
        """As it is stored. Raises KeyError."""
        return self._tensors[name].bits

    def values(self, name: str, first: int, stop: int) -> NDArray[Any]:
        """Elements [first, stop) of the flattened tensor as floats. `first` is a multiple of `pairing.BLOCK`."""
        bits = self.bits(name)
        flat = bits.reshape(-1) if bits.flags.c_contiguous else bits.ravel()
        return _floats(np.asarray(flat[first:stop]), self.dtype(name))

    def numbers(self, name: str) -> NDArray[Any]:
        """A whole tensor as a program computes with it: float32 (float64 stays)."""
        return _floats(self.bits(name), self.dtype(name))

    def called(self, name: str) -> str | None:
        """The name here of what a program calls `name`; None where there is none."""
        return name if name in self._tensors else None

    def settings(self, name: str) -> bool:
        """Whether a tensor belongs to an exported graph, not to the model."""
        return False

    def quantisation(self, name: str) -> str | None:
        """What blocks a tensor is stored in; None of plain numbers."""
        return None

    def block_minima(self, name: str) -> NDArray[np.float32] | None:
        """The smallest value that each block of a quantised tensor can hold, [rows, blocks], where its blocks state
        one; None of others."""
        return None

    def held_otherwise(self, name: str) -> Iterator[NDArray[Any]]:
        """Other numbers that an engine which loads this file may hold as this parameter."""
        return iter(())


class CheckpointKind(Protocol):
    """One format."""

    @property
    def reads(self) -> str:
        """What it reads, for a message: `safetensors (*.safetensors, or a folder of them)`."""

    def knows(self, path: Path, head: bytes) -> bool:
        """Whether a file that begins with `head`, or a folder (then `head` is empty), is of this kind."""

    def open(self, path: Path) -> Parameters:
        """Raises TraceError, in one sentence, where it is damaged."""


def open_parameters(path: str | os.PathLike[str]) -> Parameters:
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


def _floats(bits: NDArray[Any], dtype: str) -> NDArray[Any]:
    return to_float(bits, dtype) if dtype in STORAGE else bits.astype(np.float32)  # numbers of four bits


def declared_settings(path: Path) -> Json:
    """What `config.json` declares, of the checkpoint or of the model inside it (CosyVoice keeps that of Qwen2); empty
    where there is none."""
    folder = path if path.is_dir() else path.parent
    inner = sorted(folder.glob("*/config.json"))
    file = folder / "config.json"
    if not file.exists():
        if len(inner) != 1:
            return {}
        file = inner[0]
    try:
        declared = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        raise TraceError(f"{file}: is no JSON; fetch the checkpoint again") from None
    if not isinstance(declared, dict):
        raise TraceError(f"{file}: holds no settings; fetch the checkpoint again")
    return declared
