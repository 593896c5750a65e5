"""What a program was told of its prompt's positions: which of them are masked, and where each of them stands.

A batch that is padded on the right, a mask with holes, or one that says of each position which ones it attends to
(packed texts, a prefix that sees all of itself). Padding on the left is no part of a sequence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracekit.inspection.positions import prompt_length
from tracekit.trace import Sequence

MASK, PLACES = "attention_mask", "position_ids"
"""Inputs of a sequence's prompt, a number each position, of a mask also a row of them (docs/format.md)."""


def unmasked(sequence: Sequence) -> NDArray[np.bool_] | None:
    """bool [positions]: the positions that later ones may attend to; None where nothing is masked."""
    mask, length = sequence.inputs.get(MASK), prompt_length(sequence)
    if mask is None or mask.shape != (length,) or np.all(mask):
        return None
    seen = np.ones(max(sequence.positions, length), dtype=bool)
    seen[:length] = np.asarray(mask) != 0
    return seen[: sequence.positions]


def sees(sequence: Sequence) -> NDArray[np.bool_] | None:
    """bool [positions, positions]: which ones each position attends to, where the program's mask says that of each of
    them; those after the prompt see what its last one does, and those before them. None where no mask says so."""
    mask, length = sequence.inputs.get(MASK), prompt_length(sequence)
    if mask is None or mask.shape != (length, length) or not length:
        return None
    count = max(sequence.positions, length)
    out = np.tril(np.ones((count, count), dtype=bool))
    out[:length, :length] = np.asarray(mask) != 0
    out[length:, :length] = out[length - 1, :length]
    return out[: sequence.positions, : sequence.positions]


def places(sequence: Sequence) -> NDArray[np.int64] | None:
    """i64 [positions]: where a prompt with a mask says that its tokens stand, those after it one by one; None where it
    does not say so."""
    told, seen, length = sequence.inputs.get(PLACES), unmasked(sequence), prompt_length(sequence)
    each = sees(sequence)
    seen = each[min(length, len(each)) - 1] if each is not None and len(each) else seen
    if told is None or seen is None or told.shape != (length,) or told.dtype.kind not in "iu":
        return None
    if not seen[:length].any() or told.min() < 0 or told.max() >= length:
        return None
    last = int(told[: len(seen)][seen[:length]].max())
    after = np.arange(last + 1, last + 1 + max(0, sequence.positions - length))
    return np.concatenate([told.astype(np.int64), after])[: sequence.positions]
