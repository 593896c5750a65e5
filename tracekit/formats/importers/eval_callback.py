"""What llama.cpp's eval-callback (and `llama-debug --verbose`) prints: every operation of the graph, values truncated.

Source: examples/eval-callback, common/debug.cpp of llama.cpp. A line says name, operation, sources and sizes

    ggml_debug:    attn_norm-0 = (f32)  MUL(norm-0{64, 5, 1, 1}, blk.0.attn_norm.weight{64, 1, 1, 1}}) = {64, 5, 1, 1}

and what follows are the first and the last three rows, of each the first and the last three columns, to four decimals.
A value is known by the weight that it was computed with, in GGUF's words, or by being the input of that operation.
Queries and keys are left out: a GGUF may hold their rows in another order, and six columns do not tell which.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import TraceError
from tracekit.formats.dumped import Dump, DumpedSequence
from tracekit.formats.log import Tensor
from tracekit.formats.name_map import GGUF, SANDWICHED
from tracekit.trace import INPUT_SUFFIX, Json

OPERATION = re.compile(r"(?:ggml_debug|common_debug_cb_eval):\s")
HEADER = re.compile(
    OPERATION.pattern + r"\s*(?P<name>\S.*?) = \((?P<type>\w+)\)\s+(?P<op>\w+)\((?P<sources>.*)\)"
    r" = \{(?P<sizes>\d{1,12}, \d{1,12}, \d{1,12}, \d{1,12})\}\s*$"
)
SOURCE = re.compile(r"(?P<name>[^{},\s][^{}]*)\{[\d, ]*\}")
ROW = re.compile(r"^\s*\[\s*(?P<numbers>[-+\d.naif].*?)\s*\],?\s*$")
GAP = re.compile(r"^\s*\.\.\.,?\s*$")
CLOSED = re.compile(r"^\s*\]$")
BLOCK = re.compile(r"blk\.(?P<layer>\d{1,6})\.(?P<word>\w+)\.(?:weight|bias)")
LAYER = re.compile(r"l_out-(?P<layer>\d{1,6})")
COUNT = re.compile(r"number of input tokens = (?P<count>\d{1,9})\s*$")
TOKEN = re.compile(r"(?:^|\s)(?P<token>\d{1,9})\s*$")
UNORDERED = ("attn_q", "attn_k")
SANDWICH = "post_ffw_norm"
MOST_POSITIONS = (1 << 31) - 1
"""llama.cpp counts positions in 32 bits."""
LOOKED_AT = 1 << 20
"""Bytes at the beginning of a file in which the first line of an operation stands, behind what was said on loading."""


@dataclass
class _Printed:
    """A tensor as it was printed. `rows`: its printed rows, those after a gap behind the gap."""

    name: str
    operation: str
    sources: tuple[str, ...]
    sizes: tuple[int, ...]
    head: list[list[str]] = field(default_factory=list)
    tail: list[list[str]] | None = None  # None: no gap
    closed: bool = False

    def add(self, row: list[str]) -> None:
        (self.head if self.tail is None else self.tail).append(row)


class EvalCallback:
    """One sequence without steps. Sites say which columns they hold and to how many decimals."""

    reads = "output of llama.cpp's eval-callback (text)"

    def knows(self, path: Path) -> bool:
        try:
            with path.open("rb") as file:
                head = file.read(LOOKED_AT).decode(errors="replace")
        except OSError:
            return False
        return any(HEADER.search(line) for line in head.splitlines())

    def log(self, path: Path, scratch: Path) -> Path:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                tokens, printed = _read(path, file)
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
        sequence = DumpedSequence(prompt=np.array(tokens, np.int64) if tokens else None)
        attributes: dict[str, Json] = {}
        skipped: dict[str, str] = {}
        for site, first, whole, each in _sites(path, printed, skipped):
            _add(path, sequence, attributes, site, first, whole, each)
        return Dump("llama.cpp", [sequence], attributes, skipped).write(path, scratch)


IMPORTER = EvalCallback()


def _read(path: Path, lines: Iterable[str]) -> tuple[list[int], list[_Printed]]:
    """The prompt's tokens, where they were printed, and all tensors in the order of the computation. Raises TraceError
    where the last one is not whole."""
    tokens: list[int] = []
    printed: list[_Printed] = []
    wanted = 0
    for line in lines:
        found = HEADER.search(line)
        if found is not None:
            sizes = tuple(int(size) for size in found["sizes"].split(", "))
            sources = tuple(source["name"].strip() for source in SOURCE.finditer(found["sources"]))
            printed.append(_Printed(found["name"], found["op"], sources, sizes))
        elif OPERATION.search(line):
            raise TraceError(f"{path}: the line of an operation is cut: {line.strip()[:80]!r}; print it again")
        elif printed:
            row = ROW.match(line)
            if row is not None:
                printed[-1].add([number.strip() for number in row["numbers"].split(",")])
            elif GAP.match(line):
                printed[-1].tail = printed[-1].tail or []
            else:
                printed[-1].closed |= bool(CLOSED.match(line))
        elif wanted > len(tokens) and (token := TOKEN.search(line)) is not None:
            tokens.append(int(token["token"]))
        elif not wanted and (count := COUNT.search(line)) is not None:
            wanted = int(count["count"])
    if printed and printed[-1].head and not printed[-1].closed:
        raise TraceError(f"{path}: ends inside {printed[-1].name}; print it again")
    return (tokens if len(tokens) == wanted else []), printed


def _sites(path: Path, printed: list[_Printed], skipped: dict[str, str]) -> Iterator[tuple[str, int, int, _Printed]]:
    """Site, first position and number of rows of its call, and what was printed of it."""
    words = SANDWICHED if any(SANDWICH in source for each in printed for source in each.sources) else GGUF
    begin = count = 0
    named: dict[str, _Printed] = {}
    found: dict[str, _Printed] = {}

    def of_call() -> Iterator[tuple[str, int, int, _Printed]]:
        for site, each in found.items():
            if each.sizes[2:] != (1, 1) or each.sizes[1] not in (1, count):
                skipped[site] = f"is {list(each.sizes)}, where the call has {count} rows"
            else:
                yield site, begin + count - each.sizes[1], each.sizes[1], each

    for each in printed:
        if each.operation == "GET_ROWS" and each.sources[:1] == ("token_embd.weight",):
            yield from of_call()
            begin, count = begin + count, each.sizes[1]
            if begin + count > MOST_POSITIONS:
                raise TraceError(f"{path}: {each.name} has {count} rows, more than a sequence has; print it again")
            named, found = {}, {"model.embed_tokens": each}
        named[each.name] = each
        site = _site(each, words)
        if site is None or not count:
            continue
        if each.operation == "MUL_MAT" and each.sources[1:] and each.sources[1] in named:
            given = named[each.sources[1]]
            if given not in found.values():
                found.setdefault(site + INPUT_SUFFIX, given)
        found[site] = each
    yield from of_call()
    if not count:
        raise TraceError(f"{path}: has no GET_ROWS of token_embd.weight, where a call begins; print the whole graph")


def _site(each: _Printed, words: dict[str, str]) -> str | None:
    """What a value is called in the words of a checkpoint of Hugging Face's."""
    layer = LAYER.fullmatch(each.name)
    if layer is not None:
        return f"model.layers.{layer['layer']}"
    if each.operation not in ("MUL_MAT", "MUL", "ADD"):
        return None
    for source in each.sources:
        block = BLOCK.fullmatch(source)
        if block is not None and block["word"] in words and block["word"] not in UNORDERED:
            return f"model.layers.{block['layer']}.{words[block['word']]}"
        if source == "output_norm.weight":
            return words["output_norm"]
        if source in ("output.weight", "token_embd.weight"):
            return words["output"]
    return None


def _add(
    path: Path,
    sequence: DumpedSequence,
    attributes: dict[str, Json],
    site: str,
    first: int,
    rows: int,
    each: _Printed,
) -> None:
    head, tail = each.head, each.tail or []
    if len(head) + len(tail) != rows if each.tail is None else len(head) != len(tail) or len(head) + len(tail) >= rows:
        raise TraceError(f"{path}: ends inside {each.name}, or its lines are cut; print it again")
    columns, numbers, decimals = _numbers(path, each, [*head, *tail])
    told: Json = {"columns": columns, "of": each.sizes[0], "decimals": decimals}
    known = attributes.setdefault(site, told)
    if (known["columns"], known["of"]) != (told["columns"], told["of"]):
        raise TraceError(f"{path}: {each.name} has other columns in one call than in another; print one run a file")
    known["decimals"] = min(known["decimals"], decimals)
    for place, part in ((first, numbers[: len(head)]), (first + rows - len(tail), numbers[len(head) :])):
        if len(part):
            sequence.add(site, place, Tensor("float32", part.shape, np.ascontiguousarray(part).tobytes()))


def _numbers(path: Path, each: _Printed, rows: list[list[str]]) -> tuple[list[int], NDArray[np.float32], int]:
    """Which columns were printed, their values [rows, columns], and the fewest decimals of a number."""
    width = each.sizes[0]
    try:
        shapes = {(row.index("...") if "..." in row else len(row), len(row)) for row in rows}
        ((before, length),) = shapes
        texts = [[text for text in row if text != "..."] for row in rows]
        numbers = np.array(texts, np.float64).astype(np.float32)
    except ValueError:
        raise TraceError(f"{path}: the rows of {each.name} are no rows of numbers; print it again") from None
    after = max(0, length - before - 1)
    if numbers.shape[1] != before + after or (length == before and before != width) or before + after > width:
        raise TraceError(
            f"{path}: a row of {each.name} is {width} wide and has {before + after} numbers; print it again"
        )
    decimals = min((len(text.partition(".")[2]) for row in texts for text in row if text[-1].isdigit()), default=0)
    return [*range(before), *range(width - after, width)], numbers, min(decimals, 17)
