"""TorchScript, recorded: it calls no hooks, but its operators go through torch's dispatcher, and what they read tells
which module they belong to.

Only modules that are one operator have sites (a convolution, a linear layer, a table, a norm): what a larger one gives
is not known from the operators inside it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from tracekit.formats.log import LogWriter, Tensor, TensorLike
from tracekit.formats.log_beside import finish, new_log
from tracekit.trace import INPUT_SUFFIX, Json
from tracekit_torch import describe
from tracekit_torch.contained_tensors import first_tensor
from tracekit_torch.memory import WORDS
from tracekit_torch.rows import Axis, arranged
from tracekit_torch.tapped import ROOT_SITE
from tracekit_torch.weights import weight_table

OPERATORS = {
    "aten::convolution": ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    "aten::addmm": ("Linear",),
    "aten::mm": ("Linear",),
    "aten::embedding": ("Embedding",),
    "aten::native_layer_norm": ("LayerNorm",),
    "aten::native_group_norm": ("GroupNorm",),
    "aten::native_batch_norm": ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
}
"""Operators, and the classes of modules that are no more than one of them."""
INPUT_BYTES = 64 << 20


@contextmanager
def record_script(
    program: torch.jit.ScriptModule, path: str | os.PathLike[str], *, keep_log: bool = False
) -> Iterator[None]:
    """Record every call of a TorchScript program inside the block into the archive `path`, one sequence a call.

    An error of the recording ends the recording with one line on stderr, never the call.

    Args:
        program: what `torch.jit.script`, `torch.jit.trace` or `torch.jit.load` returned.
        path: the archive (`.h5`); it is made at the end of the block.
        keep_log: keep the log after the archive is made.

    Raises:
        TraceError: `path` cannot be written.
    """
    out = Path(path)
    writer = new_log(out)
    taps = _Taps(program, writer)
    # A ScriptModule takes no hooks of its own; those of all modules are called for it.
    handles = [
        register_module_forward_pre_hook(lambda module, given: taps.before(given) if module is program else None),
        register_module_forward_hook(
            lambda module, given, output: taps.after(output) if module is program else None, always_call=True
        ),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        taps.leave()
        if taps.broken is None:
            writer.close()
        writer.abandon()
    finish(writer, out, keep_log=keep_log)


class _Taps:
    """One program's calls."""

    def __init__(self, program: torch.jit.ScriptModule, writer: LogWriter) -> None:
        self._writer = writer
        self._sequences = 0
        self._table: dict[str, Json] = {}
        self._said: set[str] = set()
        self._mode: _Watch | None = None
        self._arguments = [one.name for one in program.forward.schema.arguments][1:]  # type: ignore[attr-defined]
        self.broken: str | None = None
        kinds = {name: module.original_name for name, module in program.named_modules() if name}
        self.modules: dict[int, tuple[str, str]] = {}  # storage of a weight -> path and class of its module
        for name, value in program.state_dict(keep_vars=True).items():
            module, _, role = name.rpartition(".")
            if role == "weight" and module in kinds:
                self.modules[value.untyped_storage().data_ptr()] = module, kinds[module]
        writer.open(
            "python",
            versions=describe.versions(),
            **describe.device_and_dtype(program),
            recorder={"level": "all", "torchscript": True},
            weights=weight_table(program),
        )

    def before(self, arguments: tuple[Any, ...]) -> None:
        """A call begins."""
        value = first_tensor(arguments)
        if self.broken is not None or self._mode is not None or value is None or not value.dim():
            return
        flat = value.dim() == 1 or (value.dim() == 2 and value.is_floating_point())
        batch, time = (1, value.shape[0]) if flat else (value.shape[0], value.shape[1])
        self._given = dict(zip(self._arguments, arguments, strict=False))
        self._mode = _Watch(self, Axis(batch, time, time, flat))
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def after(self, output: Any) -> None:
        """The call is over: write it."""
        mode = self._mode
        if mode is None:
            return
        self.leave()
        try:
            value = first_tensor(output)
            if value is not None:  # None: the call ended in an error
                mode.keep(ROOT_SITE, "output", value)
                self._write(mode)
        except Exception as error:  # the program goes on without being recorded
            self.fail(error)

    def leave(self) -> None:
        """Stop watching, also where the call ended in an error."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None

    def fail(self, error: Exception) -> None:
        """The recording is over."""
        self.broken = self.broken or str(error) or type(error).__name__
        print(f"tracekit: {self._writer.path}: recording ended: {self.broken}".split("\n")[0], file=sys.stderr)

    def row(self, name: str, kind: str, source: str | None) -> None:
        """A row of the site table."""
        if name not in self._table:
            row: Json = {"name": name, "class": kind, "order": len(self._table)}
            self._table[name] = row if source is None else row | {"input": source}

    def _write(self, mode: _Watch) -> None:
        new = [row for name, row in self._table.items() if name not in self._said]
        self._said |= set(self._table)
        if new:
            self._writer.sites(new)
        axis = mode.axis
        for at in range(axis.batch):
            prompt: dict[str, TensorLike] = {}
            for name, value in self._given.items():
                if not isinstance(value, torch.Tensor) or value.nbytes > INPUT_BYTES or value.dtype not in WORDS:
                    continue
                if axis.flat or (value.dim() and value.shape[0] == axis.batch):
                    prompt[f"prompt/{name}"] = _stored(value if axis.flat else value[at])
            self._writer.sequence(self._sequences, prompt, row=at)
            values: dict[str, TensorLike] = {name: _stored(rows[at]) for name, rows in mode.values.items()}
            if values:
                self._writer.call(self._sequences, 0, axis.time or 0, values)
            self._writer.end_sequence(self._sequences, 0, "done")
            self._sequences += 1


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One call: copies of what operators give that read the weight of a module."""

    def __init__(self, taps: _Taps, axis: Axis) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._taps, self.axis = taps, axis
        self.values: dict[str, torch.Tensor] = {}
        self._sites: dict[tuple[int, int, int], str] = {}
        self._alive: list[torch.Tensor] = []  # values with a site: their memory is not to be another value's

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        classes = OPERATORS.get(func._schema.name)
        if classes is not None and self._taps.broken is None:
            try:
                self._see(classes, args, result)
            except Exception as error:  # the program goes on without being recorded
                self._taps.fail(error)
        return result

    def _see(self, classes: tuple[str, ...], args: Any, result: Any) -> None:
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        known = [self._taps.modules.get(value.untyped_storage().data_ptr()) for value in tensors]
        found = next((each for each in known if each is not None and each[1] in classes), None)
        output = result[0] if isinstance(result, tuple) else result
        if found is None or found[0] in self.values:
            return
        name, kind = found
        # An addmm's first argument is its bias; what a module reads is the first float that is no weight.
        others = (value for value, one in zip(tensors, known, strict=True) if one is None)
        read = next((value for value in others if self._is_input(value, kind)), None)
        source = None
        if read is not None:
            source = self._sites.get(_memory(read))
            if source is None:
                source = name + INPUT_SUFFIX
                self.keep(source, "input", read)
        self.keep(name, kind, output, source)

    def _is_input(self, value: torch.Tensor, kind: str) -> bool:
        return value.is_floating_point() and value.dim() > 1 and kind != "Embedding"

    def keep(self, name: str, kind: str, value: torch.Tensor, source: str | None = None) -> None:
        """Copy a value, if it has rows."""
        if kind == "Conv1d" and value.dim() == 3 and not self.axis.flat:
            value = value.transpose(1, 2)
        rows = arranged(self.axis, value, None) if value.dtype in WORDS else None
        if rows is None:
            return
        self._taps.row(name, kind, source)
        self._sites.setdefault(_memory(value), name)
        self._alive.append(value)
        self.values[name] = rows.detach().to("cpu", copy=True).reshape(self.axis.batch, self.axis.time or 0, -1)


def _stored(value: torch.Tensor) -> Tensor:
    """A tensor's bytes, in C order."""
    plain = value.detach().cpu().contiguous()
    return Tensor(WORDS[plain.dtype], tuple(plain.shape), plain.reshape(-1).view(torch.uint8).numpy().data)


def _memory(value: torch.Tensor) -> tuple[int, int, int]:
    """Where a value lies, how long it is, and how often it was written to."""
    version = -1 if value.is_inference() else value._version
    return value.data_ptr(), value.numel(), version
