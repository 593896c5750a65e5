"""A folder of dumps, as a hook of a script writes them: `model.layers.0.mlp.npy`, or .safetensors files of such names.

Every .npy file is a site named by its stem, every tensor of a .safetensors file one named by its key. A tensor is
[rows, width], or [1, rows, width] with a batch of one; a row of numbers is one position. Rows count from position 0.
`token_ids` or `input_ids`, integers, are the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from tracekit.dtypes import FROM_SAFETENSORS, STORAGE
from tracekit.errors import TraceError
from tracekit.formats.log import LogWriter, Tensor, TensorLike

PROMPT = ("token_ids", "input_ids")
CLASS = "dumped"
"""Class of a site of which nothing is known but its values."""


class SiteDumps:
    """One sequence without steps: what was dumped says nothing of sampling."""

    reads = "folders of site dumps (*.npy, *.safetensors)"

    def knows(self, path: Path) -> bool:
        return path.is_dir() and next(_files(path), None) is not None

    def log(self, path: Path, scratch: Path) -> Path:
        prompt: dict[str, TensorLike] = {}
        sites: dict[str, Tensor] = {}
        for file in sorted(_files(path), key=_natural):
            for name, tensor in _tensors(file):
                if name in sites:
                    raise TraceError(f"{file}: {name} is dumped twice in {path}; keep one of them")
                if name in PROMPT:
                    prompt["prompt/token_ids"] = _ids(file, name, tensor)
                else:
                    sites[name] = _rows(file, name, tensor)
        with LogWriter(scratch / "dumps.tklog") as log:
            log.open("dumps", recorder={"imported_from": path.name})
            log.sites([{"name": name, "class": CLASS, "order": order} for order, name in enumerate(sites)])
            log.sequence(0, prompt)
            for name, tensor in sites.items():
                log.call(0, 0, tensor.shape[0], {name: tensor})
            log.end_sequence(0, 0, "done")
        return scratch / "dumps.tklog"


IMPORTER = SiteDumps()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix in (".npy", ".safetensors"))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", path.name)]


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: its length is checked against the file
            word = next((name for name, kind in STORAGE.items() if kind == array.dtype), str(array.dtype))
            yield path.stem, Tensor(word, array.shape, np.ascontiguousarray(array).tobytes())
            return
        for name, entry in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            word = FROM_SAFETENSORS.get(entry["dtype"], entry["dtype"])
            yield name, Tensor(word, tuple(entry["shape"]), bytes(entry["data"]))
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise TraceError(f"{path}: cannot be read as tensors ({error}); dump it again") from None


def _rows(path: Path, name: str, tensor: Tensor) -> Tensor:
    shape = tensor.shape[1:] if len(tensor.shape) == 3 and tensor.shape[0] == 1 else tensor.shape
    shape = (1, *shape) if len(shape) == 1 else shape
    if len(shape) != 2 or tensor.dtype not in STORAGE:
        said = f"{name} is {tensor.dtype} {list(tensor.shape)}"
        raise TraceError(f"{path}: {said}, where a site is numbers [rows, width]; dump one sequence at a time")
    return Tensor(tensor.dtype, shape, tensor.data)


def _ids(path: Path, name: str, tensor: Tensor) -> NDArray[np.int64]:
    if tensor.dtype not in ("int32", "int64"):
        raise TraceError(f"{path}: {name} is {tensor.dtype}, where token ids are integers; dump them as int64")
    return np.frombuffer(tensor.data, STORAGE[tensor.dtype]).astype(np.int64)
