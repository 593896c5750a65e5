"""Parameters of a model that was cast to a narrow format first and to a wide one afterwards, as an oracle's are."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.dtypes import UNIT_ROUNDOFF, round_to
from tracekit.trace import Trace

NARROW = ("bfloat16", "float16", "float32")
"""Formats that a model may have been loaded in, before it was recorded in a wider one."""


def narrowed(trace: Trace, checkpoint: Checkpoint, name: str, found: str) -> str | None:
    """The format that a parameter went through: `name` in the trace, `found` in the checkpoint. Only where the recorder
    says that it ran the model in a dtype other than its own, and only where the digest proves it; else None."""
    held, recorder = trace.weights.get(name), trace.config.get("recorder")
    asked = recorder.get("dtype") if isinstance(recorder, dict) else None
    if held is None or held.digest is None or asked != held.dtype or asked not in UNIT_ROUNDOFF:
        return None
    if checkpoint.may_hold(found, held.dtype, held.digest):
        return None
    options = (dtype for dtype in NARROW if UNIT_ROUNDOFF[dtype] > UNIT_ROUNDOFF[asked])
    return next((dtype for dtype in options if _digest(checkpoint.values(found, dtype), asked) == held.digest), None)


def _digest(numbers: NDArray[Any], dtype: str) -> int:
    """XXH3-64 of values in a format that holds them exactly."""
    bits = np.ascontiguousarray(round_to(numbers, dtype))
    return xxhash.xxh3_64_intdigest(bits.reshape(-1).view(np.uint8).data)
