"""The block of memory that one forward call's values are copied into, used again by the next call."""

from __future__ import annotations

from collections.abc import Callable

import torch

BLOCK_BYTES = 16 << 20
CALL_BYTES = 256 << 20
"""A call that fills this much is written in several frames, so that memory does not grow with the prompt."""
ALIGNMENT = 64

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

    __slots__ = ("block", "dtype", "item", "memory", "name", "offset", "shape", "view", "width", "word")

    def __init__(self, name: str) -> None:
        self.name = name
        self.block: Block | None = None
        self.memory = memoryview(b"")
        self.offset = -1
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
        self.memory = memoryview(self.tensor.numpy())
        self.size = size


class CallMemory:
    """Copies tensors as they come. `full` is called when a call has grown past `CALL_BYTES`; it must `clear`."""

    def __init__(self, full: Callable[[], None]) -> None:
        self.slots: list[Slot] = []
        self.pinned = False
        """Copies come from a CUDA device and have to be waited for."""
        self._full = full
        self._blocks: list[Block] = []
        self._index = 0
        self._used = 0
        self._total = 0

    def clear(self) -> None:
        """Forget the values; the memory stays for the next call."""
        self.slots = []
        self._index = self._used = self._total = 0

    def keep(self, slot: Slot, value: torch.Tensor, rows: int) -> None:
        """Copy `value`, whose elements are those of `rows` rows, in C order."""
        size = value.numel() * value.element_size()
        if self._total and self._total + size > CALL_BYTES:
            self._full()
        on_cuda = value.is_cuda
        block = self._room(size, on_cuda)
        if (
            slot.offset != self._used
            or slot.block is not block
            or slot.shape != value.shape
            or slot.dtype != value.dtype
        ):
            self._place(slot, block, value, rows)
        # A copy of a tensor that autograd follows would be followed too.
        slot.view.copy_(value.detach() if value.requires_grad else value, non_blocking=on_cuda)
        self.pinned |= on_cuda
        self._used += (size + ALIGNMENT - 1) & -ALIGNMENT
        self._total += size
        self.slots.append(slot)

    def _place(self, slot: Slot, block: Block, value: torch.Tensor, rows: int) -> None:
        size = value.numel() * value.element_size()
        slot.block, slot.offset, slot.shape, slot.dtype = block, self._used, value.shape, value.dtype
        slot.memory = block.memory
        slot.word = WORDS[value.dtype]
        slot.item = value.element_size()
        slot.width = value.numel() // rows
        slot.view = block.tensor[self._used : self._used + size].view(value.dtype).view(value.shape)

    def _room(self, size: int, pinned: bool) -> Block:
        if self._blocks and self._used + size > self._blocks[self._index].size:
            self._index, self._used = self._index + 1, 0
        if self._index < len(self._blocks) and self._blocks[self._index].size < size:
            del self._blocks[self._index :]
        if self._index == len(self._blocks):
            self._blocks.append(Block(max(BLOCK_BYTES, size), pinned))
        return self._blocks[self._index]
