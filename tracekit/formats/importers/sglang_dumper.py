"""SGLang's dumper: a folder of `step=0___rank=0___dump_index=1___name=...pt`, each a tensor with its tags.

Source: python/sglang/srt/debug_utils/dumper.py. A file holds `value`, what was dumped, and `meta`, its tags. A step is
one forward call. `positions` and `input_ids`, which the dumper takes along, say where its rows stand and what was read;
the tokens of one-row steps after the first are those that were generated. Values of modules that the dumper took by
itself (`DUMPER_NON_INTRUSIVE_MODE=all`) have the modules' names; a tag `layer_id` puts a name into its layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import is_float
from tracekit.errors import TraceError
from tracekit.formats.dumped import Dump, DumpedSequence, DumpedStep, integers_of
from tracekit.formats.log import Tensor
from tracekit.formats.torch_file import StoredTensor, read_torch_file
from tracekit.trace import INPUT_SUFFIX

NAME = re.compile(r"(?=.*(^|___)name=)(?=.*(^|___)dump_index=\d)(\w+=.*___)*\w+=.*\.pt")
PAIRS = re.compile(r"___(?=\w+=)")
MODULE = "non_intrusive__"
"""Leads the name of a value that the dumper took of a module by itself."""
OUTPUT = re.compile(r"\.output$")
GIVEN = re.compile(r"\.inputs\.\w+$")
NOT_SITES = ("param__", "grad__")
IDS, POSITIONS = "input_ids", "positions"


class SglangDumps:
    """One sequence: one request, on one rank."""

    reads = "folders of SGLang's dumper (step=...___name=....pt)"

    def knows(self, path: Path) -> bool:
        return path.is_dir() and any(NAME.fullmatch(file.name) for file in path.glob("*.pt"))

    def log(self, path: Path, scratch: Path) -> Path:
        dumped = sorted((_dumped(file) for file in sorted(path.glob("*.pt"))), key=lambda each: each.place)
        _check_ranks(path, dumped)
        sequence = DumpedSequence()
        skipped: dict[str, str] = {}
        at = 0
        for step in sorted({each.step for each in dumped}):
            call = [each for each in dumped if each.step == step and isinstance(each.value, Tensor)]
            at += _add_call(path, sequence, skipped, call, at)
        return Dump("sglang", [sequence], skipped=skipped).write(path, scratch)


IMPORTER = SglangDumps()


@dataclass(frozen=True)
class _Dumped:
    """One file."""

    file: Path
    name: str
    step: int
    index: int
    rank: int
    layer: int | None
    value: Any

    @property
    def place(self) -> tuple[int, int]:
        return self.step, self.index

    @property
    def site(self) -> str:
        """Its name in the words of a site table."""
        name = self.name.removeprefix(MODULE)
        if self.name.startswith(MODULE):
            return GIVEN.sub(INPUT_SUFFIX, OUTPUT.sub("", name))
        return name if self.layer is None else f"model.layers.{self.layer}.{name}"


def _dumped(file: Path) -> _Dumped:
    held = read_torch_file(file).root
    tags: dict[str, Any] = dict(pair.split("=", 1) for pair in PAIRS.split(file.stem) if "=" in pair)
    value = held
    if isinstance(held, dict) and "value" in held:
        value = held["value"]
        meta = held.get("meta")
        tags |= meta if isinstance(meta, dict) else {}
    if isinstance(value, StoredTensor):
        value = Tensor(value.dtype, value.shape, np.ascontiguousarray(value.bits).tobytes())
    step = tags.get("step", tags.get("forward_pass_id", 0))
    layer = tags.get("layer_id")
    try:
        numbers = int(step), int(tags["dump_index"]), int(tags.get("rank", 0))
        return _Dumped(file, str(tags["name"]), *numbers, None if layer is None else int(layer), value)
    except (KeyError, TypeError, ValueError):
        raise TraceError(f"{file}: its tags lack name, step or dump_index; dump it again") from None


def _check_ranks(path: Path, dumped: list[_Dumped]) -> None:
    ranks = sorted({each.rank for each in dumped})
    if len(ranks) > 1:
        raise TraceError(
            f"{path}: holds dumps of ranks {ranks[0]} to {ranks[-1]}, whose parts are not put together; dump with one "
            "rank, or keep the files of one whose values are whole"
        )


def _add_call(path: Path, sequence: DumpedSequence, skipped: dict[str, str], call: list[_Dumped], at: int) -> int:
    """The values of one forward call, and how many rows it has; `at`: where they begin, if no positions are dumped."""
    told = {each.name: integers_of(each.file, each.name, each.value) for each in call if each.name in (IDS, POSITIONS)}
    positions, ids = told.get(POSITIONS), told.get(IDS)
    if positions is not None and len(positions):
        at = int(positions[0])
        if at < 0 or not np.array_equal(positions, np.arange(at, at + len(positions))):
            raise TraceError(
                f"{path}: step {call[0].step}: its rows are those of several requests; dump one request at a time"
            )
    rows = next((len(each) for each in (positions, ids) if each is not None), None)
    for each in call:
        if each.name in told or each.name.startswith(NOT_SITES) or not is_float(each.value.dtype):
            continue
        if rows is None:
            rows = _leading(each.value.shape)
        _add_value(sequence, skipped, each, at, rows)
    if ids is not None:
        _add_tokens(path, sequence, ids, at)
    return rows or 0


def _add_value(sequence: DumpedSequence, skipped: dict[str, str], each: _Dumped, at: int, rows: int) -> None:
    """A value that has a row for each of the call's, or for its last alone, as logits have."""
    shape, site = each.value.shape, each.site
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 and shape[1] in (1, rows) else shape
    if len(shape) < 2 or shape[0] not in (1, rows) or shape[0] == 0:
        skipped.setdefault(site, f"is {list(each.value.shape)}, where the call has {rows} rows")
        return
    if any(part.first <= at + rows - 1 < part.stop for part in sequence.rows.get(site, ())):
        if not site.endswith(INPUT_SUFFIX):
            skipped[site] = "was dumped twice in a call"
        return  # of several inputs, the first of floats is the hidden states
    values = Tensor(each.value.dtype, (shape[0], int(np.prod(shape[1:]))), each.value.data)
    sequence.add(site, at + rows - shape[0], values)


def _add_tokens(path: Path, sequence: DumpedSequence, ids: NDArray[np.int64], at: int) -> None:
    """What a call has read: more of the prompt, or the token that the step before has chosen."""
    prompt = np.empty(0, np.int64) if sequence.prompt is None else sequence.prompt
    if len(ids) == 1 and at and len(prompt):
        sequence.steps.append(DumpedStep(at - 1, int(ids[0])))
    elif sequence.steps or at != len(prompt):
        raise TraceError(
            f"{path}: {len(ids)} tokens at position {at} go on neither with the prompt nor with the generation; dump "
            "one request at a time"
        )
    else:
        sequence.prompt = np.concatenate([prompt, ids])


def _leading(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 3 and shape[0] == 1 else shape[0] if shape else 0
