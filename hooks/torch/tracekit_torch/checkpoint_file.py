"""A PyTorch checkpoint (`.pt`, `.bin`), read without running anything that it holds."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from tracekit.trace import TraceError

INDEX = "pytorch_model.bin.index.json"
SINGLE = "pytorch_model.bin"
NESTED = ("state_dict", "model", "module")
"""Where programs put a state dict that they save beside an epoch or an optimizer."""


class TorchParameters:
    """The tensors of a state dict; see `tracekit.checkpoints.compare.Parameters`.

    Files of torch's zip format are mapped, not loaded. Raises TraceError where a file is damaged, wants to run code, or
    holds no tensors.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._tensors: dict[str, torch.Tensor] = {}
        for file in torch_files(Path(path)):
            self._tensors |= _state(file)

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def dtype(self, name: str) -> str:
        return str(self._tensors[name].dtype).removeprefix("torch.")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def values(self, name: str, first: int, stop: int) -> NDArray[Any]:
        part = self._tensors[name].reshape(-1)[first:stop]
        values: NDArray[Any] = part.to(torch.float64 if part.dtype.itemsize >= 8 else torch.float32).numpy()
        return values


def torch_files(path: Path) -> list[Path]:
    """The files of a checkpoint in torch's format: the path itself, or a folder's; none where there are none."""
    if not path.is_dir():
        return [path]
    index = path / INDEX
    if not index.exists():
        return [path / SINGLE] if (path / SINGLE).exists() else []
    try:
        names = sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise TraceError(f"{index}: is no index of a checkpoint's files; fetch the checkpoint again") from None
    if any(os.path.sep in name for name in names):
        raise TraceError(f"{index}: names a file outside its folder; fetch the checkpoint again")
    return [path / name for name in names]


def _state(file: Path) -> dict[str, torch.Tensor]:
    state = _load(file)
    if not isinstance(state, dict):
        raise TraceError(f"{file}: holds a {type(state).__name__}, not a state dict; save model.state_dict()")
    tensors = _tensors_of(state)
    nested = next((state[key] for key in NESTED if isinstance(state.get(key), dict)), None)
    if not tensors and nested is not None:
        tensors = _tensors_of(nested)
    if not tensors:
        raise TraceError(f"{file}: holds no tensors; give a checkpoint that holds a state dict")
    return tensors


def _tensors_of(state: dict[Any, Any]) -> dict[str, torch.Tensor]:
    """Tensors with plain storage; an epoch or a step beside them is passed over."""
    dense = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return {name: value.detach() for name, value in dense.items() if value.layout == torch.strided}


def _load(file: Path) -> Any:
    """Whatever the file holds, of the types that torch takes for data only."""
    try:
        with file.open("rb") as opened:
            zipped = opened.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise TraceError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged or hostile file makes torch raise almost anything
        raise TraceError(f"{file}: {_why(str(error))}") from None


def _why(said: str) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)", said)
    if wanted:
        return (
            f"wants to run {wanted[1]} when it is read, which is refused; save model.state_dict(), or use safetensors"
        )
    return "is no sound checkpoint of PyTorch (damaged or cut short); fetch it again"
