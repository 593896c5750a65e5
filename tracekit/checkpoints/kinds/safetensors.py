"""Safetensors files, one or a folder's, read without running anything.

Source of the format: https://github.com/huggingface/safetensors (8 bytes of header length, JSON, tensors).
"""

from __future__ import annotations

import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tracekit.checkpoints.parameters import Parameters, declared_settings
from tracekit.dtypes import FROM_SAFETENSORS, MOST_DIMENSIONS, STORAGE
from tracekit.trace import TraceError

INDEX = "model.safetensors.index.json"
SPEECH_MODELS = ("llm.rl.safetensors", "llm.safetensors")
"""Of a CosyVoice folder, which holds other models and speech tokens besides, the language model: the first that is
there."""


@dataclass(frozen=True)
class _Entry:
    file: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def bits(self) -> NDArray[Any]:
        """A view of the file."""
        return np.frombuffer(self.file, STORAGE[self.dtype], math.prod(self.shape), self.start).reshape(self.shape)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    index = path / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise TraceError(f"{index}: is no index of safetensors files; fetch the checkpoint again") from None
        if any(os.path.sep in str(name) for name in names):
            raise TraceError(f"{index}: names a file outside its folder; fetch the checkpoint again")
        return [path / str(name) for name in names]
    found = sorted(path.glob("*.safetensors"))
    speech = [path / name for name in SPEECH_MODELS if path / name in found]
    return speech[:1] or found


def _read_header(path: Path) -> dict[str, _Entry]:
    """Where each tensor of a file lies. The library checks the header; the bytes are mapped here, since it gives numpy
    no bfloat16 and no float8, and none of its views without torch."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with safe_open(path, framework="np") as header:
            rows = [(name, header.get_slice(name)) for name in header.offset_keys()]
            told = [(name, row.get_dtype(), tuple(row.get_shape())) for name, row in rows]
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None
    except SafetensorError as error:
        why = str(error).rpartition("header: ")[2]
        raise TraceError(f"{path}: is no sound safetensors file ({why}); fetch the checkpoint again") from None
    entries: dict[str, _Entry] = {}
    # Tensors lie one after the other and fill the file to its end: the library has checked it.
    start = len(mapped)
    for name, word, shape in reversed(told):
        dtype = FROM_SAFETENSORS.get(word)
        if dtype is None:
            raise TraceError(f"{path}: {name} is of dtype {word}, which tracekit does not read; convert the checkpoint")
        if len(shape) > MOST_DIMENSIONS:
            raise TraceError(f"{path}: {name} has {len(shape)} dimensions; convert the checkpoint")
        start -= math.prod(shape) * STORAGE[dtype].itemsize
        entries[name] = _Entry(mapped, dtype, shape, start)
    return dict(reversed(entries.items()))


class Safetensors:
    reads = "safetensors (*.safetensors, or a folder of them)"

    def knows(self, path: Path, head: bytes) -> bool:
        if path.is_dir():
            return (path / INDEX).exists() or any(path.glob("*.safetensors"))
        return path.suffix == ".safetensors"

    def open(self, path: Path) -> Parameters:
        entries: dict[str, _Entry] = {}
        for file in _files(path):
            entries |= _read_header(file)
        return Parameters(str(path), entries, declared_settings(path))


KIND = Safetensors()
