"""Token ids of a trace as a file that other programs read: safetensors, text or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from tracekit.formats.whole_file import write_whole
from tracekit.generations import generated
from tracekit.trace import Trace, TraceError

TokenIds = dict[str, NDArray[np.int64]]


def generated_ids(trace: Trace) -> TokenIds:
    """`sequence_0`, `sequence_1`, ... -> i64 [n]: what each generation gave its caller."""
    return {f"sequence_{one.index}": generated(trace, one).astype(np.int64) for one in trace.sequences}


def write_token_ids(ids: Mapping[str, NDArray[np.int64]], path: Path) -> None:
    """Write by the suffix: `.safetensors` (I64 tensors), `.json` (an object of lists), `.txt` (a line a tensor).

    Raises TraceError for another suffix, or where the file cannot be written.
    """
    if path.suffix == ".safetensors":
        data = save({name: np.ascontiguousarray(array) for name, array in ids.items()})
    elif path.suffix == ".json":
        data = (json.dumps({name: array.tolist() for name, array in ids.items()}) + "\n").encode()
    elif path.suffix == ".txt":
        data = (ids_text(ids) + "\n").encode()
    else:
        raise TraceError(f"{path}: has no suffix that says a format; name it .safetensors, .json or .txt")
    write_whole(path, data)


def ids_text(ids: Mapping[str, NDArray[np.int64]]) -> str:
    """A line a tensor, its ids with spaces between."""
    return "\n".join(" ".join(map(str, array.tolist())) for array in ids.values())
