"""Dumps of a script's own: `model.layers.0.mlp.npy`, or files of several tensors by name (.safetensors, .pt).

Every .npy file is a site named by its stem, every tensor of another file one named by its key. A tensor is [rows,
width], or [1, rows, width] with a batch of one; a row of numbers is one position. Rows count from position 0, or, where
files, folders or keys have a step in their name (`step_3`), go on with one row a step after those of the first.
`token_ids` or `input_ids`, integers, are the prompt, and the token that a later step has read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np

from tracekit.dtypes import STORAGE
from tracekit.errors import TraceError
from tracekit.formats.dumped import (
    Dump,
    DumpedSequence,
    DumpedStep,
    integers_of,
    natural_order,
    rows_of,
    safetensors_of,
)
from tracekit.formats.log import Tensor
from tracekit.formats.torch_file import StoredTensor, read_torch_file, tensors_in

DAMAGED = (OSError, ValueError, EOFError, SyntaxError, TokenError, TypeError, OverflowError)
"""What numpy raises of a file that is none: it reads the header as a line of Python's literals."""
PROMPT = ("token_ids", "input_ids")


SUFFIXES = (".npy", ".safetensors", ".pt", ".pth")
STEP = re.compile(r"(?:^|(?<=[._/-]))(?:step|iter)s?[_=-]?(?P<step>\d+)(?:[._/-]+|$)")
"""A step in a name, with what parts it from the rest."""
PARAMETERS = (".weight", ".bias")


@dataclass(frozen=True)
class _Value:
    """A tensor of a file; `step` is None where no name has one."""

    file: Path
    name: str
    step: int | None
    tensor: Tensor


class SiteDumps:
    """One sequence; what was dumped says nothing of sampling."""

    reads = "site dumps (folders of *.npy, *.safetensors, *.pt; one *.safetensors or *.pt of tensors by name)"

    def knows(self, path: Path) -> bool:
        if path.is_dir():
            return next(_files(path), None) is not None
        return path.suffix in SUFFIXES

    def log(self, path: Path, scratch: Path) -> Path:
        files = sorted(_files(path), key=lambda file: natural_order(str(file))) if path.is_dir() else [path]
        values = [value for file in files for value in _values(path, file)]
        if not values:
            raise TraceError(f"{path}: holds no tensor by name; dump a dictionary of them")
        first, rows = _steps(path, values)
        sequence, seen = DumpedSequence(), set()
        for value in values:
            if (value.step, value.name) in seen:
                raise TraceError(f"{value.file}: {value.name} is dumped twice in {path}; keep one of them")
            seen.add((value.step, value.name))
            later = value.step is not None and value.step > first
            at = rows + value.step - first - 1 if value.step is not None and later else 0
            if value.name not in PROMPT:
                sequence.add(value.name, at, rows_of(value.file, value.name, value.tensor))
            elif later:
                (token,) = integers_of(value.file, value.name, value.tensor)
                sequence.steps.append(DumpedStep(at - 1, int(token)))
            else:
                sequence.prompt = integers_of(value.file, value.name, value.tensor)
        return Dump("dumps", [sequence]).write(path, scratch)


IMPORTER = SiteDumps()


def _files(folder: Path) -> Iterator[Path]:
    """Dumps in a folder, and in those below it that are named by a step."""
    for path in folder.iterdir():
        if path.suffix in SUFFIXES:
            yield path
        elif STEP.fullmatch(path.name) and path.is_dir():
            yield from (each for each in path.iterdir() if each.suffix in SUFFIXES)


def _values(path: Path, file: Path) -> Iterator[_Value]:
    """The tensors of a file, by the names that they and their file have without the step."""
    place = str(file.relative_to(path).with_suffix("")) if file != path else ""
    for key, tensor in _tensors(file):
        said = key or place or file.stem
        found = STEP.search(said) or STEP.search(place)
        name = STEP.sub("", said, count=1).strip("._/-") if found else said
        if not name:
            raise TraceError(f"{file}: names a step and no site; name it as in step_{found and found['step']}_SITE")
        yield _Value(file, name, int(found["step"]) if found else None, tensor)


def _steps(path: Path, values: list[_Value]) -> tuple[int, int]:
    """The first step that is in a name, and the rows of each site in it; 0 and 0 where there is none. Raises TraceError
    where it is not plain at which positions the later ones are."""
    of: dict[int, list[_Value]] = {}
    for value in values:
        if value.step is not None:
            of.setdefault(value.step, []).append(value)
    if not of:
        return 0, 0
    first = min(of)
    if first > 1:
        raise TraceError(f"{path}: steps before step {first} are missing, so that positions are not known; dump all")
    missing = next((step for step in range(first, max(of)) if step not in of), None)
    if missing is not None:
        raise TraceError(f"{path}: step {missing} is missing, so that positions are not known; dump all steps")
    counts = {step: {value.name: _count(value) for value in each} for step, each in of.items()}
    rows = max(counts[first].values())
    for step, each in counts.items():
        wanted = rows if step == first else 1
        name, count = next(((name, count) for name, count in each.items() if count != wanted), ("", wanted))
        if count != wanted:
            raise TraceError(
                f"{path}: step {step}: {name} has {count} rows, where {wanted} is expected: the first step has the "
                "prompt's rows, each later one a row; dump with a cache, or the rows of that step alone"
            )
    return first, rows


def _count(value: _Value) -> int:
    if value.name in PROMPT:
        return len(integers_of(value.file, value.name, value.tensor))
    return int(rows_of(value.file, value.name, value.tensor).shape[0])


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by their keys; one that has none is its file's."""
    if path.suffix == ".safetensors":
        yield from _no_parameters(path, safetensors_of(path))
        return
    if path.suffix in (".pt", ".pth"):
        yield from _no_parameters(path, _of_torch(path))
        return
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: its length is checked against the file
    except DAMAGED as error:
        why = " ".join(str(error).split())
        raise TraceError(f"{path}: cannot be read as tensors ({why}); dump it again") from None
    word = next((name for name, kind in STORAGE.items() if kind == array.dtype), str(array.dtype))
    yield "", Tensor(word, array.shape, np.ascontiguousarray(array).tobytes())


def _no_parameters(path: Path, tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Raises TraceError for a checkpoint: its parameters are no activations."""
    held = next((name for name in tensors if name.endswith(PARAMETERS)), None)
    if held is not None:
        raise TraceError(f"{path}: holds the parameter {held}, as a checkpoint does; give it to --weights")
    return list(tensors.items())


def _of_torch(path: Path) -> dict[str, Tensor]:
    """What `torch.save` wrote: one tensor, or dictionaries and lists of them."""
    root = read_torch_file(path).root
    if not isinstance(root, StoredTensor | dict | list | tuple):
        raise TraceError(f"{path}: holds an object of a class; save a dictionary of tensors by name")
    unnamed = next((key for key in root if not isinstance(key, str)), None) if isinstance(root, dict) else None
    if unnamed is not None:
        raise TraceError(f"{path}: has the key {unnamed!r}, which is no name; name steps step_0 and so on")
    return {
        name: Tensor(held.dtype, held.shape, np.ascontiguousarray(held.bits).tobytes())
        for name, held in tensors_in(root)
    }
