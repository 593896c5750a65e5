"""Are faults of a GGUF file found in what llama.cpp computed from it? Planted in copies of real files, one at a time.

    python -m benchmarks.llama_cpp_faults --seed 0 .cache/gguf/*.gguf

Drawn of each kind: a scale of one block times 1.01, two heads of the queries exchanged, twice the rotary theta in the
metadata, a tensor of another layer. llama.cpp runs from the damaged copy, and the trace is audited against the sound
file. Found is what is named: the tensor alone, and the row where the fault is in one; the theta with its number. The
twin of each is the sound file, which `benchmarks.llama_cpp` runs. Exit code 1 where one is not found.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tracekit_llama_cpp as llama_cpp
from numpy.typing import NDArray

from benchmarks.llama_cpp import Kept, audited
from tracekit.auditing.audit import Audit
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.gguf import huggingface_name
from tracekit.checkpoints.gguf_reader import open_reader

PROMPT = "The history of Rome began when two brothers, raised by a wolf, quarrelled about a wall"
TOKENS = 6
SCALED = {"Q4_1": (20, 0), "Q4_0": (18, 0), "Q5_0": (22, 0), "Q8_0": (34, 0), "Q4_K": (144, 0), "Q6_K": (210, 208)}
"""Bytes of a block, and where in it the float16 is that scales all of its values."""
Bytes = NDArray[np.uint8]
Json = dict[str, Any]


@dataclass(frozen=True)
class Planted:
    """A fault: bytes to write at a place of the file, and what must be named."""

    said: str
    offset: int
    data: bytes
    sites: frozenset[str]
    row: int | None = None
    theta: float | None = None


class File:
    """A GGUF file whose tensors are damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = open_reader(str(path))
        self.architecture = str(self.reader.fields["general.architecture"].contents())
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}

    def rows(self, name: str) -> Bytes:
        """A matrix's bytes, [rows, bytes of a row]."""
        tensor = self.tensors[name]
        return np.asarray(tensor.data).view(np.uint8).reshape(int(tensor.shape[1]), -1)

    def kind(self, name: str) -> str:
        return str(self.tensors[name].tensor_type.name)

    def site(self, name: str) -> str:
        return huggingface_name(name, self.architecture).removesuffix(".weight")

    def number(self, key: str) -> Any:
        return self.reader.fields[f"{self.architecture}.{key}"].contents()

    def planted(self, said: str, name: str, rows: Bytes, row: int | None = None) -> Planted:
        return Planted(said, int(self.tensors[name].data_offset), rows.tobytes(), frozenset({self.site(name)}), row)


def scale_of_a_block(file: File, dice: random.Random) -> Planted:
    names = [name for name in file.tensors if name.startswith("blk.") and file.kind(name) in SCALED]
    name = dice.choice([name for name in names if file.kind(name) == "Q4_K"] or names)
    size, at = SCALED[file.kind(name)]
    rows = file.rows(name).copy()
    row = dice.randrange(len(rows))
    blocks = rows[row].reshape(-1, size)
    block = dice.randrange(len(blocks))
    scale = blocks[block, at : at + 2].view("<f2")
    scale[:] = (scale.astype(np.float32) * 1.01).astype(np.float16)
    said = f"{file.kind(name)} scale of block {block}, row {row} of {name}"
    return file.planted(said, name, rows, in_order(file, name, row))


def in_order(file: File, name: str, row: int) -> int:
    """The row of a trace, which is read in the order of halves where the file has rotary pairs."""
    heads = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}.get(name.split(".")[2])
    if file.architecture != "llama" or heads is None:
        return row
    width = int(file.tensors[name].shape[1]) // int(file.number(heads))
    head, place = divmod(row, width)
    return head * width + place % 2 * (width // 2) + place // 2


def heads_exchanged(file: File, dice: random.Random) -> Planted:
    layer, heads = dice.randrange(int(file.number("block_count"))), int(file.number("attention.head_count"))
    name = f"blk.{layer}.attn_q.weight"
    one, other = dice.sample(range(heads), 2)
    rows = file.rows(name).copy()
    parts = rows.reshape(heads, -1, rows.shape[1])
    parts[[one, other]] = parts[[other, one]]
    return file.planted(f"heads {one} and {other} of {name}", name, rows)


def another_theta(file: File, dice: random.Random) -> Planted:
    field = file.reader.fields[f"{file.architecture}.rope.freq_base"]
    theta = float(field.contents()) * dice.choice((0.5, 2.0, 10.0))
    part = field.parts[field.data[0]]
    place = part.ctypes.data - file.reader.data.ctypes.data
    layers = range(int(file.number("block_count")))
    if file.architecture == "gemma3":  # the others have windows, and a theta of their own
        layers = layers[5::6]
    sites = frozenset(f"model.layers.{layer}.self_attn.o_proj:in" for layer in layers)
    return Planted(f"theta {theta:g} in the metadata", place, np.float32(theta).tobytes(), sites, theta=theta)


def tensor_of_another_layer(file: File, dice: random.Random) -> Planted:
    while True:
        part = dice.choice(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"))
        one, other = dice.sample(range(int(file.number("block_count"))), 2)
        name, taken = f"blk.{one}.{part}.weight", f"blk.{other}.{part}.weight"
        if file.kind(name) == file.kind(taken):
            return file.planted(f"{taken} as {name}", name, file.rows(taken))


KINDS: dict[str, Callable[[File, random.Random], Planted]] = {
    "scale": scale_of_a_block,
    "heads": heads_exchanged,
    "theta": another_theta,
    "layer": tensor_of_another_layer,
}


@contextmanager
def damaged(path: Path, fault: Planted) -> Iterator[None]:
    """A file with a fault, for the length of a block."""
    with path.open("r+b") as file:
        file.seek(fault.offset)
        sound = file.read(len(fault.data))
        file.seek(fault.offset)
        file.write(fault.data)
    try:
        yield
    finally:
        with path.open("r+b") as file:
            file.seek(fault.offset)
            file.write(sound)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=1, help="of each kind and model; default 1")
    parser.add_argument("--only", choices=sorted(KINDS))
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory(prefix="llama-cpp-faults-") as scratch:
        for path in options.models:
            sound, checkpoint, copy = File(path), Checkpoint(Kept(path)), Path(scratch) / path.name
            shutil.copyfile(path, copy)
            for kind, plant in KINDS.items():
                for index in range(options.each if options.only in (None, kind) else 0):
                    fault = plant(sound, random.Random(f"{options.seed}/{path.stem}/{kind}/{index}"))
                    with damaged(copy, fault):
                        trace = Path(scratch) / "t.tklog"
                        llama_cpp.record(copy, trace, prompt=PROMPT, max_new_tokens=TOKENS)
                    wrong = why_missed(audited(trace, checkpoint), fault)
                    missed += wrong is not None
                    print(f"{path.stem}: {fault.said}: {'found' if wrong is None else f'MISSED: {wrong}'}", flush=True)
            copy.unlink()
    sys.exit(bool(missed))


def why_missed(found: Audit, fault: Planted) -> str | None:
    """What is named other than what was planted; None where it is that."""
    sites = {culprit.site for culprit in found.culprits}
    if sites != fault.sites:
        return f"named {', '.join(sorted(sites)) or 'nothing'}"
    if fault.row is not None:
        row = found.culprits[0].own.statistics.worst_column
        return None if row == fault.row else f"named row {row}, not {fault.row}"
    if fault.theta is not None:
        told = found.culprits[0].explanation
        if told is None or told.mistake.id != "rotary_theta" or abs(told.value / fault.theta - 1) > 0.01:
            return f"explained by {told}"
        if not any("rope" in difference.name for difference in found.differences):
            return "the metadata's theta is not named"
    return None


if __name__ == "__main__":
    main()
