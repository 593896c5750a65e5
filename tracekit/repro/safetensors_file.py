"""Tensors in a safetensors file, dtypes that numpy lacks included."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tracekit.dtypes import SAFETENSORS, STORAGE
from tracekit.formats.log import Tensor, TensorLike
from tracekit.trace import Json

_WORDS = {storage: word for word, storage in reversed(STORAGE.items())}


def write_tensors(path: Path, tensors: Mapping[str, TensorLike], metadata: Json | None = None) -> None:
    """Write a safetensors file; `metadata` values are kept as JSON texts."""
    # Widest first: every tensor then begins at a multiple of its own size.
    parts = {name: _as_tensor(value) for name, value in tensors.items()}
    order = sorted(parts, key=lambda name: -STORAGE[parts[name].dtype].itemsize)
    header: Json = {"__metadata__": {name: json.dumps(value) for name, value in (metadata or {}).items()}}
    data = b""
    for name in order:
        part = parts[name]
        offsets = [len(data), len(data) + len(part.data)]
        header[name] = {"dtype": SAFETENSORS[part.dtype], "shape": list(part.shape), "data_offsets": offsets}
        data += part.data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _as_tensor(value: TensorLike) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.ascontiguousarray(value)
    plain = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Tensor(_WORDS[plain.dtype], plain.shape, plain.reshape(-1).view(np.uint8).data)
