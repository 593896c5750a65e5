"""What a forward call of a causal model covers: its positions, its padding, its logits."""

from __future__ import annotations

from typing import Any

import torch

from tracekit.trace import Json
from tracekit_torch.recorder import Recorder, Row


def left_padding(mask: torch.Tensor | None, batch: int) -> list[int]:
    """Leading zeros of each row of an attention mask [batch, length]; none without such a mask."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.shape[0] != batch or not mask.shape[1]:
        return [0] * batch
    return [int(row.argmax()) if bool(row.any()) else 0 for row in mask.ne(0).int().cpu()]


CACHE_NAMES = ("cache", "past_key_values")
"""What the argument that holds the cache is called: from transformers 5.24 on, and before; the old one still works."""


def cache_length(arguments: Json) -> int:
    """Positions that the cache of a call holds before it; 0 without one."""
    cache = next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2])


NOT_DRAWN = "nothing was drawn through torch for this token"


def is_largest(scores: torch.Tensor | None, row: int, token: int) -> bool:
    """Whether `token` has the largest of the scores [batch, V] of its row: greedy search needs no draw. True where the
    scores are not known."""
    if scores is None or not 0 <= token < scores.shape[-1]:
        return True
    values = scores[row]
    return bool(values[token] >= values.max())


def output_logits(output: Any) -> torch.Tensor | None:
    """The logits [batch, time, vocabulary] of a model's output object or tuple."""
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple):
        logits = next((item for item in output if isinstance(item, torch.Tensor) and item.dim() == 3), None)
    return logits if isinstance(logits, torch.Tensor) and logits.dim() == 3 else None


def write_call(recorder: Recorder, rows: list[Row], first: int, time: int) -> None:
    """Write a call over the batch's positions [first, first + time): a frame for each row, without its padding and
    without positions that it had already (a loop without a cache computes them again)."""
    recorder.write_sites()
    for index, row in enumerate(rows):
        skipped = max(0, row.next_position + row.padding - first, row.padding - first)
        if row.reason is not None or skipped >= time:
            continue
        recorder.write_call(row, first + skipped - row.padding, skipped, index)
