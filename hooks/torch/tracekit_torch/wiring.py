"""Which tensor came from which site: recognised by identity.

Two tensors are the same when they lie at the same memory, hold the same elements in the same order, and nothing was
written to that memory in between (torch's version counter). Every tensor that was seen in a call is kept alive until
the call ends, so that its memory cannot have been given to another tensor.
"""

from __future__ import annotations

import torch

from tracekit_torch.memory import Slot


class SeenTensors:
    """The tensors that sites recorded in one forward call."""

    __slots__ = ("_by_address",)

    def __init__(self) -> None:
        self._by_address: dict[int, tuple[torch.Tensor, int | None, Slot]] = {}

    def add(self, tensor: torch.Tensor, slot: Slot) -> None:
        """`tensor` was copied into `slot` just now."""
        if tensor.data_ptr():
            self._by_address[tensor.data_ptr()] = (tensor, _version(tensor), slot)

    def slot(self, tensor: torch.Tensor) -> Slot | None:
        """Where this very tensor was copied to, or None."""
        seen = self._by_address.get(tensor.data_ptr())
        return None if seen is None or self.source(tensor) is None else seen[2]

    def source(self, tensor: torch.Tensor) -> str | None:
        """The site that recorded this very tensor, or None."""
        seen = self._by_address.get(tensor.data_ptr())
        if seen is None:
            return None
        earlier, version, slot = seen
        if earlier is not tensor and not _same_elements(earlier, tensor):
            return None
        if version is not None and not tensor.is_inference():
            return slot.name if tensor._version == version else None
        return slot.name if _unwritten(tensor, version, slot.view) else None

    def source_of_last_rows(self, tensor: torch.Tensor) -> str | None:
        """The site [batch, time, width] whose last rows `tensor`, [batch, rows, width] or [batch, width], is: what a
        logits head is given in a prefill."""
        if tensor.dim() == 2:
            tensor = tensor.unsqueeze(1)
        if tensor.dim() != 3:
            return None
        end = _end(tensor)
        for earlier, version, slot in self._by_address.values():
            if (
                earlier.dim() == 3
                and earlier.shape[::2] == tensor.shape[::2]
                and earlier.stride() == tensor.stride()
                and _end(earlier) == end
                and _unwritten(tensor, version, slot.view[:, -tensor.shape[1] :])
            ):
                return slot.name
        return None


def _version(tensor: torch.Tensor) -> int | None:
    """How often the tensor's memory was written to; None for inference tensors, of which torch does not know it."""
    return None if tensor.is_inference() else tensor._version


def _unwritten(tensor: torch.Tensor, version: int | None, copy: torch.Tensor) -> bool:
    """Whether `tensor` still holds what was copied. Without a version, the copy itself is compared where that is cheap;
    a tensor on a device is taken as new then: stored twice, never wrong."""
    if version is not None and not tensor.is_inference():
        return tensor._version == version
    if tensor.device.type != "cpu" or copy.numel() != tensor.numel():
        return False
    return torch.equal(copy.reshape(tensor.shape), tensor)


def _same_elements(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Of two tensors at the same address: the same elements in the same order, perhaps reshaped."""
    if one.dtype != other.dtype or one.numel() != other.numel():
        return False
    if one.shape == other.shape and one.stride() == other.stride():
        return True
    return one.is_contiguous() and other.is_contiguous()


def _end(tensor: torch.Tensor) -> int:
    """The address of the last element."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr() + steps * tensor.element_size()
