"""The block of memory that one forward call's values are copied into, used again by the next call."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tracekit.formats.log import Layout

BLOCK_BYTES = 16 << 20
CALL_BYTES = 256 << 20
"""A call that fills this much is written in several frames, so that memory does not grow with the prompt."""

WORDS: dict[torch.dtype, str] = {
    torch.bool: "bool",
    torch.uint8: "uint8",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
}
"""torch dtype -> the word that the formats use. Others cannot be recorded."""


class Slot:
    """Where one site's values of a call lie: [batch, time, width] in C order at `offset` of `block`."""

    __slots__ = (
        "axis",
        "block",
        "dtype",
        "item",
        "memory",
        "name",
        "offset",
        "rows",
        "shape",
        "size",
        "view",
        "width",
        "word",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.axis: str | None = None
        """As `tracekit.trace.Site.axis`."""
        self.block: Block | None = None
        self.memory = memoryview(b"")
        self.rows = (0, 0)
        """[batch, time] of the call that it was last placed in."""
        self.offset = -1
        self.size = 0
        self.shape: torch.Size | None = None
        self.dtype: torch.dtype | None = None
        self.view: torch.Tensor = torch.Tensor()
        self.word = ""
        self.item = 0
        self.width = 0


class Block:
    """A flat piece of host memory; pinned where values come from a CUDA device."""

    def __init__(self, size: int, pinned: bool) -> None:
        # A tensor that is made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            self.tensor = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        self.memory: memoryview = self.tensor.numpy().data
        self.size = size


class CallMemory:
    """Copies tensors as they come, one after the other. `full` is called when a call has grown past `CALL_BYTES`; it
    must `clear`."""

    def __init__(self, full: Callable[[], None]) -> None:
        self.slots: list[Slot] = []
        self.tails: dict[str, torch.Tensor] = {}
        """Sites that have only the last rows of the call, [batch, rows, width] on the host."""
        self.pinned = False
        """Copies come from a CUDA device and have to be waited for."""
        self._full = full
        self._blocks: list[Block] = []
        self._index = 0
        self._ends: list[int] = []
        self._used = 0
        self._total = 0
        self._gaps = False
        self._moved = True  # since the layout was made, which not every call asks for
        self._laid_out: list[Slot] = []
        self._layout: Layout | None = None

    def clear(self) -> None:
        """Forget the values; the memory stays for the next call."""
        self.slots = []
        self.tails = {}
        self._ends = []
        self._index = self._used = self._total = 0
        self._gaps = False

    def keep(self, slot: Slot, value: torch.Tensor, rows: int) -> None:
        """Copy `value`, whose elements are those of `rows` rows, in C order."""
        if not self.keep_again(slot, value):
            size = value.numel() * value.element_size()
            if self._total and self._total + size > CALL_BYTES:
                self._full()
            self._place(slot, self._room(size, value), value, rows)
            self._copy(slot, value)

    def keep_again(self, slot: Slot, value: torch.Tensor) -> bool:
        """Copy `value` if it goes where this slot's last value went; else False. The usual case, while decoding."""
        if (
            slot.offset != self._used
            or slot.shape != value.shape
            or slot.dtype is not value.dtype
            or value.is_meta
            or not self._blocks
            or slot.block is not self._blocks[self._index]
        ):
            return False
        self._copy(slot, value)
        return True

    def layout(self) -> Layout | None:
        """How the values lie one after the other, over all rows; None where there are gaps between them."""
        if self._gaps:
            return None
        if self._moved or self._layout is None or self.slots != self._laid_out:
            tensors = [
                (slot.name, slot.word, (slot.size // (slot.width * slot.item), slot.width)) for slot in self.slots
            ]
            self._layout = Layout.of(tensors)
            self._laid_out, self._moved = self.slots, False
        return self._layout

    def buffers(self) -> list[memoryview]:
        """The bytes of all values, one after the other."""
        ends = [*self._ends, self._used]
        return [block.memory[:end] for block, end in zip(self._blocks, ends, strict=False)]

    def _copy(self, slot: Slot, value: torch.Tensor) -> None:
        if value.is_cuda:
            self.pinned = True
            slot.view.copy_(value.detach(), non_blocking=True)
        else:
            # A copy of a tensor that autograd follows would be followed too.
            slot.view.copy_(value.detach() if value.requires_grad else value)
        self._used += slot.size
        self._total += slot.size
        self.slots.append(slot)

    def _place(self, slot: Slot, block: Block, value: torch.Tensor, rows: int) -> None:
        slot.size = value.numel() * value.element_size()
        slot.block, slot.offset, slot.shape, slot.dtype = block, self._used, value.shape, value.dtype
        slot.memory = block.memory
        slot.word = WORDS[value.dtype]
        slot.item = value.element_size()
        slot.width = value.numel() // rows if rows else 0
        slot.view = block.tensor[self._used : self._used + slot.size].view(value.dtype).view(value.shape)
        self._moved = True

    def _room(self, size: int, value: torch.Tensor) -> Block:
        gap = -self._used % value.element_size()
        if gap:
            self._gaps = True
            self._used += gap
        if self._blocks and self._used + size > self._blocks[self._index].size:
            self._ends.append(self._used)
            self._index, self._used = self._index + 1, 0
        if self._index < len(self._blocks) and self._blocks[self._index].size < size:
            del self._blocks[self._index :]
        if self._index == len(self._blocks):
            self._blocks.append(Block(max(BLOCK_BYTES, size), value.is_cuda))
        return self._blocks[self._index]
