"""A folder of dumps, as a hook of a script writes them: `model.layers.0.mlp.npy`, or .safetensors files of such names.

Every .npy file is a site named by its stem, every tensor of a .safetensors file one named by its key. A tensor is
[rows, width], or [1, rows, width] with a batch of one; a row of numbers is one position. Rows count from position 0.
`token_ids` or `input_ids`, integers, are the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError

import numpy as np

from tracekit.dtypes import STORAGE
from tracekit.errors import TraceError
from tracekit.formats.dumped import Dump, DumpedSequence, integers_of, natural_order, rows_of, safetensors_of
from tracekit.formats.log import Tensor

DAMAGED = (OSError, ValueError, EOFError, SyntaxError, TokenError, TypeError, OverflowError)
"""What numpy raises of a file that is none: it reads the header as a line of Python's literals."""
PROMPT = ("token_ids", "input_ids")


class SiteDumps:
    """One sequence without steps: what was dumped says nothing of sampling."""

    reads = "folders of site dumps (*.npy, *.safetensors)"

    def knows(self, path: Path) -> bool:
        return path.is_dir() and next(_files(path), None) is not None

    def log(self, path: Path, scratch: Path) -> Path:
        sequence = DumpedSequence()
        for file in sorted(_files(path), key=lambda file: natural_order(file.name)):
            for name, tensor in _tensors(file):
                if name in sequence.rows:
                    raise TraceError(f"{file}: {name} is dumped twice in {path}; keep one of them")
                if name in PROMPT:
                    sequence.prompt = integers_of(file, name, tensor)
                else:
                    sequence.add(name, 0, rows_of(file, name, tensor))
        return Dump("dumps", [sequence]).write(path, scratch)


IMPORTER = SiteDumps()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix in (".npy", ".safetensors"))


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        yield from safetensors_of(path).items()
        return
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: its length is checked against the file
    except DAMAGED as error:
        why = " ".join(str(error).split())
        raise TraceError(f"{path}: cannot be read as tensors ({why}); dump it again") from None
    word = next((name for name, kind in STORAGE.items() if kind == array.dtype), str(array.dtype))
    yield path.stem, Tensor(word, array.shape, np.ascontiguousarray(array).tobytes())
