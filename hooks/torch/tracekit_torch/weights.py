"""The weights table: what each parameter is, and a digest of its bytes as the model holds it; whether one changes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence

import torch
import xxhash
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tracekit.trace import Json
from tracekit_torch.memory import WORDS

SAMPLES = 8
"""Values of each parameter that are looked at when a sequence begins."""


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


class Watched:
    """The parameters of a model while it is recorded: whether the program has changed one, as training does.

    torch counts the changes of a tensor in place, but not those that are made through its `data`; of these some values
    tell. What counts as changed is what has another digest: the same values, written once more, are no change.
    """

    def __init__(self, model: nn.Module, table: Sequence[Json]) -> None:
        digests = {row["name"]: row["digest"] for row in table}
        self._held = [
            _Parameter(value, digests[name])
            for name, value in model.named_parameters()
            if digests.get(name) is not None and not is_traceable_wrapper_subclass(value)
        ]

    def changed(self, *, sampled: bool) -> bool:
        """Whether one has changed since the recording began. `sampled`: look at values as well."""
        return any(parameter.changed(sampled) for parameter in self._held)


class _Parameter:
    def __init__(self, value: torch.Tensor, own: int) -> None:
        self._tensor = weakref.ref(value)  # the program's, to replace or to delete
        self._digest = own
        self._version, self._values = _version(value), _sample(value)

    def changed(self, sampled: bool) -> bool:
        value = self._tensor()
        if value is None or value.is_meta:  # unloaded
            return False
        version = _version(value)
        if version == self._version and not (sampled and _sample(value) != self._values):
            return False
        self._version, self._values = version, _sample(value)
        return digest(value) not in (None, self._digest)


def _version(value: torch.Tensor) -> int:
    return 0 if value.is_inference() else value._version


def _sample(value: torch.Tensor) -> bytes:
    """Some values of a tensor."""
    if not value.is_contiguous() or value.dtype not in WORDS or not value.numel() or value.is_meta:
        return b""
    flat = value.detach().view(-1)
    return flat[:: -(-len(flat) // SAMPLES)].cpu().contiguous().view(torch.uint8).numpy().tobytes()
