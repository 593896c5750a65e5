"""The weights table: what each parameter is, and a digest of its bytes as the model holds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import xxhash
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tracekit.trace import Json
from tracekit_torch.memory import WORDS


def weight_table(model: nn.Module) -> list[Json]:
    """Name, dtype, shape and XXH3-64 digest of every parameter and persistent buffer, in state-dict order.

    A tied parameter stands under each of its names. One that a trace cannot hold (a quantised format, a parameter
    without memory) has no digest. In the place of one that is made of other tensors and has no bytes of its own (a
    quantised weight of torchao: codes and scales) stand those: `<name>.qdata`.
    """
    digests: dict[tuple[int, torch.Size, tuple[int, ...], torch.dtype], int | None] = {}
    rows = []
    for name, value in _tensors(model.state_dict(keep_vars=True)):
        key = (value.data_ptr() if not value.is_meta else 0, value.shape, value.stride(), value.dtype)
        if key not in digests:
            digests[key] = digest(value)
        rows.append(
            {
                "name": name,
                "dtype": WORDS.get(value.dtype, str(value.dtype).removeprefix("torch.")),
                "shape": list(value.shape),
                "digest": digests[key],
            }
        )
    return rows


def _tensors(state: Mapping[str, object]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors with bytes of their own."""
    for name, value in state.items():
        if is_traceable_wrapper_subclass(value):
            parts = value.__tensor_flatten__()[0]
            yield from _tensors({f"{name}.{part}": getattr(value, part) for part in parts})
        elif isinstance(value, torch.Tensor):
            yield name, value


def digest(value: torch.Tensor) -> int | None:
    """XXH3-64 of a tensor's bytes in C order, or None where it has no plain bytes."""
    if value.is_meta or value.layout is not torch.strided or value.dtype not in WORDS:
        return None
    flat = value.detach().cpu().contiguous().reshape(-1)
    return (
        xxhash.xxh3_64_intdigest(flat.view(torch.uint8).numpy().data) if flat.numel() else xxhash.xxh3_64_intdigest(b"")
    )
