"""A run of a torch program with several runs beside it whose values are slightly off, one operation after the other.

Each operation is computed once exactly. What the other runs are off is kept beside the values, in float32, and only
where they are off at all: after a tensor is put in, all runs are alike again, and nothing is computed for them. So a
matrix product of values that were put in is computed once, whatever the number of runs. Decisions (comparisons, chosen
indices) are those of the exact run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tracekit_torch.contained_tensors import tensors_in

BATCHED = {"_to_copy", "copy", "masked_fill"}
"""Operations that work value by value and that torch does not tag as such."""
FRESH = {"empty_like", "new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full", "full_like", "zeros_like"}
"""Operations whose result has nothing of the tensor that they are given but its shape."""
PRUNED = 256
"""Operations after which what is beside tensors that are gone is let go."""


class _Beside:
    """What the other runs are off in one storage. `off`: float32 [runs, elements], or complex64; `since`: the
    operations that were off since the values in it were alike, as a set of bits."""

    __slots__ = ("off", "ref", "since")

    def __init__(self, value: Tensor, off: Tensor, since: int) -> None:
        self.ref = StorageWeakRef(value.untyped_storage())  # type: ignore[no-untyped-call]
        self.off, self.since = off, since

    def of(self, value: Tensor, rank: int) -> Tensor:
        """A view like `value`, of all runs: [runs, ...] with as many further dimensions as `rank`."""
        off = self.off
        if off.is_complex() != value.is_complex():
            off = off.view(torch.complex64 if value.is_complex() else torch.float32)
        spare = (1,) * (rank - value.dim())
        runs, numbers = off.shape
        return off.as_strided(
            (runs, *spare, *value.shape), (numbers, *spare, *value.stride()), int(value.storage_offset())
        )


class Lockstep(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is on, `runs` runs go beside the one that the program sees."""

    def __init__(self, runs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.runs = runs
        self.operations = 0
        """How many operations have run."""
        self._beside: dict[int, _Beside] = {}

    def own_errors(
        self, func: Any, args: tuple[Any, ...], out: Any, kwargs: dict[str, Any]
    ) -> tuple[Tensor | None, ...]:
        """What the runs are off by this operation itself, float32 [runs, *shape] for each of the first tensors that it
        gave; None for nothing. `args`: as they were before, of an operation in place."""
        raise NotImplementedError

    def add(self, value: Tensor, off: Tensor, since: int | None = None) -> None:
        """The runs are off at `value` by as much more, float32 [runs, *value.shape], by the operations `since`, as
        bits; by default the one before."""
        since = 1 << self.operations if since is None else since
        beside = self._of(value)
        if beside is None:
            self._keep(value, off, since)
            return
        beside.of(value, value.dim()).add_(off)
        beside.since |= since

    def off(self, value: Tensor) -> Tensor | None:
        """What the runs are off at `value`, float32 [runs, *value.shape]; None where they are alike."""
        beside = self._of(value)
        return None if beside is None else beside.of(value, value.dim())

    def draws(self, off: NDArray[np.float32], positions: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Of what all runs are off, [runs, rows, width], that which rows at these positions are judged by; None: rows
        that are no positions."""
        return off

    def since(self, value: Tensor) -> int:
        """The operations that were off since the values that `value` was computed from were put in, as bits."""
        beside = self._of(value)
        return 0 if beside is None else beside.since

    def put(self, into: Tensor, value: Tensor, first: int | None = None) -> None:
        """Put the same values into a tensor of all runs. `first`: the position of its first row, where its rows are
        positions."""
        with _disable_current_modes():
            into.copy_(value)
            beside = self._of(into)
            if beside is None:
                return
            if into.numel() * into.element_size() == into.untyped_storage().nbytes():
                del self._beside[into.untyped_storage()._cdata]
            else:
                beside.of(into, into.dim()).zero_()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        instead = self.taken_apart(func, name, args, kwargs)
        if instead is not NotImplemented:
            return instead
        self.operations += 1
        if self.operations % PRUNED == 0:
            for key in [key for key, kept in self._beside.items() if kept.ref.expired()]:  # type: ignore[no-untyped-call]
                del self._beside[key]
        given = [value for value in tensors_in((args, kwargs)) if self._of(value) is not None]
        if func._schema.is_mutable:
            return self._in_place(func, name, args, kwargs, given)
        return self._out(func, name, args, kwargs, given)

    def taken_apart(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operation that is computed by others; NotImplemented for one that is not."""
        return NotImplemented

    def _out(self, func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        out = func(*args, **kwargs)
        results = list(tensors_in(out))
        storages = {value.untyped_storage()._cdata for value in tensors_in((args, kwargs))}
        constant = name.startswith("lift")  # of its own in the program, though not in memory
        made = [value for value in results if constant or value.untyped_storage()._cdata not in storages]
        floating = [value for value in made if value.is_floating_point() or value.is_complex()]
        for value in made:
            self._beside.pop(value.untyped_storage()._cdata, None)
        if not floating or not floating[0].numel():
            return out
        since = 0
        for value in given:
            since |= self.since(value)
        offs: list[Tensor | None] = [None] * len(results)
        if given and name not in FRESH:
            offs = self._computed(func, name, args, kwargs, results)
        for place, own in enumerate(self.own_errors(func, args, out, kwargs)):
            if own is not None:
                known = offs[place]
                offs[place] = own if known is None else known.add_(own)
                since |= 1 << self.operations
        for value, off in zip(results, offs, strict=True):
            if off is not None and any(value is one for one in floating):
                self._keep(value, off, since)
        return out

    def _in_place(self, func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        targets = [
            value
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor)
        ]
        into = targets[0] if targets else None
        if into is None or not (into.is_floating_point() or into.is_complex()):
            return func(*args, **kwargs)
        since, off = 0, None
        for value in given:
            since |= self.since(value)
        if given:
            off = self._computed(func, name, args, kwargs, None)
        before = tuple(value.clone() if value is into else value for value in args)
        out = func(*args, **kwargs)
        wide = None if off is None else _less(off, into)
        for own in self.own_errors(func, before, into, kwargs):
            if own is not None:
                wide = own if wide is None else wide.add_(own)
                since |= 1 << self.operations
        if wide is None:
            return out
        beside = self._of(into)
        if beside is None:
            self._keep_part(into, wide, since)
        else:
            beside.of(into, into.dim()).copy_(wide)
            beside.since |= since
        return out

    def _computed(self, func: Any, name: str, args: Any, kwargs: Any, results: list[Tensor] | None) -> Any:
        """Of an operation that makes new tensors: what the runs are off in each of `results`. Of one in place
        (`results` None): the runs' values, [runs, *shape]."""
        plain = out_of_place(name)
        if torch.Tag.pointwise in func.tags or plain in BATCHED:
            rank = max([value.dim() for value in tensors_in((args, kwargs))], default=0)
            first = True

            def widened(value: Tensor) -> Tensor:
                nonlocal first
                fresh, first = first, False
                return self._values(value, rank, fresh=fresh and results is None)

            done = func(*_mapped(args, widened), **_mapped(kwargs, widened))
            if results is None:
                return done
            return [_less(done, results[0])]
        runs: list[list[Tensor]] = []
        for index in range(self.runs):
            mine = _mapped(args, lambda value: self._run(value, index))  # noqa: B023
            done = func(*mine, **_mapped(kwargs, lambda value: self._run(value, index)))  # noqa: B023
            runs.append([mine[0]] if results is None else list(tensors_in(done)))
        if results is None:
            return torch.stack([run[0] for run in runs])
        return [
            _less(torch.stack([run[place] for run in runs]), value)
            if value.is_floating_point() or value.is_complex()
            else None
            for place, value in enumerate(results)
        ]

    def _values(self, value: Tensor, rank: int, *, fresh: bool) -> Tensor:
        """The values of all runs, [runs, ...] of `rank` further dimensions; one for all where they are alike, unless
        they are to be written to (`fresh`)."""
        beside = self._of(value)
        if beside is not None:
            spare = value.reshape((1,) * (rank - value.dim()) + tuple(value.shape))
            return beside.of(value, rank).to(value.dtype).add_(spare)
        return value.expand(self.runs, *value.shape).clone() if fresh else value

    def _run(self, value: Tensor, index: int) -> Tensor:
        beside = self._of(value)
        if beside is not None:
            return beside.of(value, value.dim())[index].to(value.dtype).add_(value)
        return value.clone() if value.is_floating_point() else value

    def _of(self, value: Tensor) -> _Beside | None:
        return self._beside.get(value.untyped_storage()._cdata) if self._beside else None

    def _keep(self, value: Tensor, off: Tensor, since: int) -> None:
        whole = value.numel() * value.element_size() == value.untyped_storage().nbytes() and value.is_contiguous()
        if whole:
            flat = off.reshape(self.runs, -1)
            self._beside[value.untyped_storage()._cdata] = _Beside(value, flat, since)
        else:
            self._keep_part(value, off, since)

    def _keep_part(self, value: Tensor, off: Tensor, since: int) -> None:
        """Of a tensor that is a part of its storage."""
        elements = value.untyped_storage().nbytes() // value.element_size()
        beside = _Beside(value, torch.zeros(self.runs, elements, dtype=off.dtype), since)
        beside.of(value, value.dim()).copy_(off)
        self._beside[value.untyped_storage()._cdata] = beside


def out_of_place(name: str) -> str:
    """The name of an operation without the `_` of one that writes into its argument."""
    return name if name.startswith("_") else name.rstrip("_")


def _less(values: Tensor, exact: Tensor) -> Tensor:
    """What values are off, in single precision; infinities are alike."""
    if exact.is_complex():
        return (values - exact).to(torch.complex64)
    return (values - exact).to(torch.float32).nan_to_num_(0.0, 0.0, 0.0)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return value
