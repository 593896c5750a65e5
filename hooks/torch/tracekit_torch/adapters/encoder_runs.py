"""What the encoder of an encoder-decoder computed before the first step.

`generate` calls the encoder by itself, before it is known how many sequences there will be and what their prompts are.
Its values are kept until they can be written, in memory or, of a long input, in a temporary file.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch

from tracekit.dtypes import STORAGE
from tracekit.formats.log import Tensor, TensorLike
from tracekit.inspection.masked import MASK
from tracekit.trace import ENCODER, ENCODER_PREFIX, Json
from tracekit_torch.adapter import Row
from tracekit_torch.adapters.causal_calls import spans
from tracekit_torch.contained_tensors import first_tensor
from tracekit_torch.memory import CALL_BYTES
from tracekit_torch.recorder import Recorder
from tracekit_torch.rows import Axis

INPUT_NAMES = ("input_ids", "inputs_embeds", "input_features", "input_values", "pixel_values")


@dataclass
class _Kept:
    """One site's values [batch, time, width]."""

    name: str
    dtype: str
    width: int
    offset: int


def _spool() -> Any:
    return tempfile.SpooledTemporaryFile(max_size=CALL_BYTES)


@dataclass
class EncoderRun:
    """One call of the encoder over [batch, time] rows."""

    axis: Axis
    inputs: Json
    mask: torch.Tensor | None
    output: torch.Tensor | None = None
    site: str | None = None
    kept: list[list[_Kept]] = field(default_factory=list)
    """Each time the memory of the call was full, and at its end."""
    file: Any = field(default_factory=_spool)

    def keep(self, recorder: Recorder) -> None:
        """Keep what the taps hold."""
        taps = recorder.taps
        if taps is None or not self.axis.time:
            return
        part = []
        tensors = recorder.encoder_tensors(0, 0, self.axis.rows)
        for slot in taps.memory.slots:
            if slot.axis != ENCODER or slot.rows != self.axis.size:
                continue
            value = tensors[slot.name]
            self.file.seek(0, os.SEEK_END)
            part.append(_Kept(slot.name, slot.word, slot.width, self.file.tell()))
            self.file.write(value.data)
        self.kept.append(part)

    def write(self, recorder: Recorder, row: Row, batch_row: int) -> None:
        """Write one row of the batch as part of the sequence `row`."""
        first, stop = self.spans()[batch_row]
        for part in self.kept:
            tensors: dict[str, TensorLike] = {
                kept.name: Tensor(kept.dtype, (stop - first, kept.width), self._read(kept, batch_row, first, stop))
                for kept in part
            }
            if tensors:
                recorder.writer.call(row.sequence, 0, stop - first, tensors, ENCODER)

    def spans(self) -> list[tuple[int, int]]:
        """Rows of the input that are no padding, [first, stop) for each row of the batch."""
        return spans(self.mask, *self.axis.size)

    def prompt(self, batch_row: int) -> dict[str, torch.Tensor]:
        """The encoder's inputs of one row, by their names in a trace, without padding."""
        first, stop = self.spans()[batch_row]
        return encoder_inputs(self.inputs, self.axis, batch_row, first, stop)

    def _read(self, kept: _Kept, batch_row: int, first: int, stop: int) -> bytes:
        size = kept.width * STORAGE[kept.dtype].itemsize
        self.file.seek(kept.offset + (batch_row * (self.axis.time or 0) + first) * size)
        data: bytes = self.file.read((stop - first) * size)
        return data


def encoder_axis(arguments: Json) -> Axis | None:
    """The rows of an encoder's input; their number is not known where it is given features."""
    for name in INPUT_NAMES:
        value = arguments.get(name)
        if isinstance(value, torch.Tensor) and value.dim() >= 2:
            known = name in ("input_ids", "inputs_embeds")
            return Axis(value.shape[0], value.shape[1] if known else None, name=ENCODER)
    return None


def encoder_inputs(arguments: Json, axis: Axis, batch_row: int, first: int, stop: int) -> dict[str, torch.Tensor]:
    """What the encoder was given for one row of the batch, by its names in a trace."""
    found = {}
    for name in INPUT_NAMES:
        value = arguments.get(name)
        if isinstance(value, torch.Tensor) and value.dim() >= 2 and value.shape[0] == axis.batch:
            row = value[batch_row]
            said = "token_ids" if name == "input_ids" else name
            found[f"{ENCODER_PREFIX}{said}"] = row[first:stop] if value.shape[1] == axis.time else row
    mask = arguments.get(MASK)
    if isinstance(mask, torch.Tensor) and mask.shape == axis.size and not bool(mask[batch_row, first:stop].all()):
        found[f"{ENCODER_PREFIX}{MASK}"] = mask[batch_row, first:stop].ne(0).long()
    return found


def encoded(arguments: Json) -> torch.Tensor | None:
    """What the encoder gave, where a call of the model is handed it."""
    outputs = arguments.get("encoder_outputs")
    return None if outputs is None else first_tensor(outputs)
