"""Token ids of a trace as a file that other programs read: safetensors, text or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from tracekit.extra.cosyvoice3.speech import PROMPT_SPEECH, generated
from tracekit.formats.whole_file import write_whole
from tracekit.trace import Trace, TraceError

TokenIds = dict[str, NDArray[np.int64]]


def generated_ids(trace: Trace) -> TokenIds:
    """`sequence_0`, `sequence_1`, ... -> i64 [n]: what each generation gave its caller; a speech generation's stop
    token is not among it."""
    return {f"sequence_{one.index}": generated(trace, one).astype(np.int64) for one in trace.sequences}


def prompt_speech_ids(trace: Trace, sequence: int | None = None) -> TokenIds:
    """`speech_token_ids` -> i64 [n]: the prompt's speech tokens, of one sequence or of all where they are the same.

    Raises TraceError where there are none, or different ones and no sequence is asked for.
    """
    found = [one for one in trace.sequences if sequence in (None, one.index) and PROMPT_SPEECH in one.inputs]
    if not found:
        where = "" if sequence is None else f"sequence {sequence} of "
        raise TraceError(f"{where}{trace.path}: holds no prompt speech tokens; record a CosyVoice program")
    ids = [one.inputs[PROMPT_SPEECH].astype(np.int64) for one in found]
    if not all(np.array_equal(ids[0], other) for other in ids):
        raise TraceError(f"{trace.path}: its sequences have different prompt speech tokens; choose one with --sequence")
    return {PROMPT_SPEECH: ids[0]}


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
