"""A graph's inputs from a file of arrays."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.trace import TraceError


def read_inputs(path: str) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npz` file by name; nothing in it is run. Raises TraceError where it is none."""
    try:
        with np.load(path, allow_pickle=False) as held:
            if not isinstance(held, np.lib.npyio.NpzFile):
                raise TraceError(f"{path}: is one array; give a .npz file with the graph's names")
            return {name: held[name] for name in held.files}
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError):
        raise TraceError(f"{path}: is no sound .npz file of plain arrays; write it with numpy.savez") from None
