"""What a tool's dump holds of a run, and the log that is made of it: what all importers of dumps share."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from tracekit.dtypes import FROM_SAFETENSORS, STORAGE
from tracekit.errors import TraceError
from tracekit.formats.log import LogWriter, Tensor, TensorLike
from tracekit.trace import INPUT_SUFFIX, Json

CLASS = "dumped"
"""Class of a site of which nothing is known but its values."""
INPUT = "input"
IDS = ("int32", "int64")


@dataclass(frozen=True)
class DumpedRows:
    """Values of one site at the positions [first, first + rows), [rows, width]."""

    first: int
    values: Tensor

    @property
    def stop(self) -> int:
        return self.first + int(self.values.shape[0])


@dataclass(frozen=True)
class DumpedStep:
    """A token that was chosen: position and values of the logits [V] that it was chosen from, if dumped."""

    position: int
    token: int
    logits: Tensor | None = None


@dataclass
class DumpedSequence:
    """One sequence of a dump; sites stand in the order of the computation."""

    prompt: NDArray[np.int64] | None = None
    rows: dict[str, list[DumpedRows]] = field(default_factory=dict)
    steps: list[DumpedStep] = field(default_factory=list)

    def add(self, site: str, first: int, values: Tensor) -> None:
        """Values of a site, which may have others at other positions already. What has no name is left out."""
        if not site.removesuffix(INPUT_SUFFIX):
            return
        self.rows.setdefault(site, []).append(DumpedRows(first, values))


@dataclass
class Dump:
    """What a dump holds. `attributes`: numbers that go with a site; `skipped`: values that are no rows of a sequence,
    and why; `lost`: what the dump lacks, a line each."""

    tool: str
    sequences: list[DumpedSequence]
    attributes: Mapping[str, Json] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def write(self, source: Path, scratch: Path) -> Path:
        """The log, in the folder `scratch`. An input that is another site's value, and a module's value that is that of
        a module inside it, are stored once, as a recorder does it."""
        names = list(dict.fromkeys(name for sequence in self.sequences for name in sequence.rows))
        passed = self._passed_on(names)
        rest = [name for name in self.skipped if name not in names]
        with LogWriter(scratch / "dump.tklog") as log:
            log.open(self.tool, recorder={"imported_from": source.name})
            log.sites([row for order, name in enumerate(names) if (row := self._site(name, order, passed)) is not None])
            log.sites(
                [
                    {"name": name, "class": CLASS, "order": len(names) + order, "skipped": self.skipped[name]}
                    for order, name in enumerate(rest)
                ]
            )
            for line in self.lost:
                log.lost(line)
            for index, sequence in enumerate(self.sequences):
                _write_sequence(log, index, sequence, passed)
        return scratch / "dump.tklog"

    def _site(self, name: str, order: int, passed: Mapping[str, str]) -> Json | None:
        """A row of the site table; None of an input that is another site's value: its module's row says so."""
        is_input = name.endswith(INPUT_SUFFIX)
        if is_input and name in passed:
            return None
        row: Json = {"name": name, "class": INPUT if is_input else CLASS, "order": order}
        row["attributes"] = self.attributes.get(name)
        if not is_input:
            row["same_as"] = passed.get(name)
            row["input"] = passed.get(name + INPUT_SUFFIX)
            row["partial"] = self.skipped.get(name)
        return {key: value for key, value in row.items() if value is not None}

    def _passed_on(self, names: list[str]) -> dict[str, str]:
        """Sites that hold another one's values: inputs, and modules that hand on what a module inside them gave."""
        alike: dict[tuple[object, ...], list[str]] = {}
        for name in names:
            alike.setdefault(self._print_of(name), []).append(name)
        passed: dict[str, str] = {}
        for group in alike.values():
            outputs = [name for name in group if not name.endswith(INPUT_SUFFIX)]
            for name in outputs:
                inside = [other for other in outputs if other.startswith(f"{name}.")]
                if inside:
                    passed[name] = max(inside, key=lambda other: other.count("."))
            holder = next((name for name in outputs if name not in passed), group[0])
            passed |= {name: holder for name in group if name.endswith(INPUT_SUFFIX) and name != holder}
        return passed

    def _print_of(self, name: str) -> tuple[object, ...]:
        """What tells the values of a site from others."""
        found: list[object] = []
        for index, sequence in enumerate(self.sequences):
            for part in sequence.rows.get(name, ()):
                values = part.values
                found += [index, part.first, values.dtype, values.shape, xxhash.xxh3_128_intdigest(values.data)]
        return tuple(found)


def _write_sequence(log: LogWriter, index: int, sequence: DumpedSequence, passed: Collection[str]) -> None:
    prompt: dict[str, TensorLike] = {} if sequence.prompt is None else {"prompt/token_ids": sequence.prompt}
    log.sequence(index, prompt)
    for name, parts in sequence.rows.items():
        if name not in passed:
            for part in parts:
                log.call(index, part.first, part.values.shape[0], {name: part.values})
    for number, step in enumerate(sequence.steps):
        log.step(index, number, step.position, step.token, {} if step.logits is None else {"logits": step.logits})
    log.end_sequence(index, len(sequence.steps), "done")


# -------------------------------------------------------------------- tensors of files


def safetensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. Raises TraceError where it is none; the library checks every length."""
    try:
        entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, ValueError, SafetensorError) as error:
        raise TraceError(f"{path}: cannot be read as tensors ({error}); dump it again") from None
    return {  # sorted, since the library gives them in another order in each process
        name: Tensor(FROM_SAFETENSORS.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]), bytes(entry["data"]))
        for name, entry in sorted(entries, key=lambda item: natural_order(item[0]))
    }


def natural_order(name: str) -> list[tuple[int, str]]:
    """What names are sorted by so that layer 2 comes before layer 10."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]


def rows_of(path: Path, name: str, tensor: Tensor) -> Tensor:
    """A site's values, [rows, width], of a tensor of that shape, or with a batch of one before it, or one row alone.
    Raises TraceError for any other."""
    shape = tensor.shape[1:] if len(tensor.shape) == 3 and tensor.shape[0] == 1 else tensor.shape
    shape = (1, *shape) if len(shape) == 1 else shape
    if len(shape) != 2 or tensor.dtype not in STORAGE:
        said = f"{name} is {tensor.dtype} {list(tensor.shape)}"
        mend = "dump one sequence at a time" if len(tensor.shape) < 4 else "reshape it to [rows, heads * width]"
        raise TraceError(f"{path}: {said}, where a site is numbers [rows, width]; {mend}")
    return Tensor(tensor.dtype, shape, tensor.data)


def integers_of(path: Path, name: str, tensor: Tensor) -> NDArray[np.int64]:
    """Token ids or positions, flat. Raises TraceError where they are no integers."""
    if tensor.dtype not in IDS:
        raise TraceError(f"{path}: {name} is {tensor.dtype}, where token ids are integers; dump them as int64")
    return np.frombuffer(tensor.data, STORAGE[tensor.dtype]).astype(np.int64)
