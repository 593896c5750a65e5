"""The layer debugger of TensorRT Edge-LLM: one .safetensors file a request, all rounds of it.

Source: cpp/runtime/debug/layerDebugger.h of TensorRT-Edge-LLM, which `EDGELLM_DUMP_LOGITS_KVCACHE_DIR` and `..._LAYERS`
turn on. Round 0 is the prefill, round r decoding step r:

    round_{r}.logits               [batch, vocabulary], of the last position
    round_{r}.layer_{i}.kv         [batch, 2, KV heads, capacity, head size]: the keys, as they are cached, the values
    round_{r}.context_lengths      [batch] int32, positions that the cache holds
    round_{r}.generated_token_ids  [batch] int32

Cached values are what `v_proj` gives, and stand under its name. Cached keys are rotated: a site of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tracekit.dtypes import STORAGE
from tracekit.errors import TraceError
from tracekit.formats.dumped import Dump, DumpedSequence, DumpedStep, integers_of, safetensors_of
from tracekit.formats.log import Tensor

NAME = re.compile(r"round_(\d{1,9})\.(?:(logits|context_lengths|generated_token_ids)|layer_(\d{1,9})\.(\w+))")
KEYS, VALUES = "model.layers.{}.self_attn.k_cache", "model.layers.{}.self_attn.v_proj"
FILES = "*.safetensors"


class EdgeDumps:
    """A sequence a row of the batch. The prompt's tokens are not in such a file."""

    reads = "TensorRT Edge-LLM's layer dumps (round_{r}.layer_{i}.kv)"

    def knows(self, path: Path) -> bool:
        files = _files(path)
        return bool(files) and all(_is_dump(file) for file in files)

    def log(self, path: Path, scratch: Path) -> Path:
        dump = Dump("tensorrt-edge-llm", [])
        for file in _files(path):
            rounds = _rounds(file)
            for row in range(_batch(file, rounds)):
                dump.sequences.append(_sequence(file, rounds, row, dump.lost))
        return dump.write(path, scratch)


IMPORTER = EdgeDumps()

Round = Mapping[str, Tensor]
"""Tensors of a round, by what follows `round_{r}.`."""


def _files(path: Path) -> list[Path]:
    return sorted(path.glob(FILES)) if path.is_dir() else [path] if path.match(FILES) else []


def _is_dump(file: Path) -> bool:
    try:
        with safe_open(file, framework="np") as opened:
            names = list(opened.keys())
    except (OSError, ValueError, SafetensorError):
        return False
    return bool(names) and all(NAME.fullmatch(name) for name in names)


def _rounds(file: Path) -> list[Round]:
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in safetensors_of(file).items():
        match = NAME.fullmatch(name)
        if match is None:
            raise TraceError(f"{file}: {name} is no tensor of a round; keep the dumps in a folder of their own")
        if tensor.dtype not in STORAGE:
            raise TraceError(f"{file}: {name} is {tensor.dtype}, which tracekit does not read; dump floats")
        found.setdefault(int(match[1]), {})[name.partition(".")[2]] = tensor
    missing = next((number for number in range(len(found)) if number not in found), None)
    if missing is not None:
        raise TraceError(f"{file}: round {missing} is missing of {len(found)}; dump the whole request again")
    return [found[number] for number in range(len(found))]


def _batch(file: Path, rounds: list[Round]) -> int:
    """Rows of the batch, in every round the same. Raises TraceError: which row ended, the file does not say."""
    sizes = [len(_lengths(file, index, each)) for index, each in enumerate(rounds)]
    if len(set(sizes)) > 1:
        index = next(index for index, size in enumerate(sizes) if size != sizes[0])
        raise TraceError(
            f"{file}: round {index} has {sizes[index]} sequences where round 0 has {sizes[0]}, and the file does not "
            "say which one ended; dump one request at a time, or with EDGELLM_IGNORE_EOS=1"
        )
    return sizes[0]


def _lengths(file: Path, index: int, each: Round) -> NDArray[np.int64]:
    if "context_lengths" not in each:
        raise TraceError(f"{file}: round {index} has no context_lengths; dump the request again")
    return integers_of(file, f"round_{index}.context_lengths", each["context_lengths"])


def _sequence(file: Path, rounds: list[Round], row: int, lost: list[str]) -> DumpedSequence:
    """One row of the batch. Each round adds the positions that its cache holds beyond the round before; a row that
    changes later on, which nothing should, is held as it was in the end."""
    sequence = DumpedSequence()
    held: dict[int, NDArray[Any]] = {}
    done = 0
    for index, each in enumerate(rounds):
        length = int(_lengths(file, index, each)[row])
        if length < done:
            raise TraceError(
                f"{file}: round {index}: the cache of sequence {row} shrinks from {done} to {length} positions; "
                "dump the request again"
            )
        for layer in sorted(int(name[6:-3]) for name in each if name.endswith(".kv")):
            name = f"round_{index}.layer_{layer}.kv"
            cache = _cache(file, name, each[f"layer_{layer}.kv"], row, length)
            known = rounds[0].get(f"layer_{layer}.kv")
            same = known is not None and known.dtype == each[f"layer_{layer}.kv"].dtype
            if not same or (done and (layer not in held or cache.shape[1::2] != held[layer].shape[1::2])):
                raise TraceError(f"{file}: {name} is not as in the rounds before; dump the request again")
            if done and not np.array_equal(cache[:, :, :done], held[layer]):
                lost.append(f"round {index}: rows of layer {layer}'s cache are no longer those of round {index - 1}")
            held[layer] = cache
        sequence.steps += _step(file, index, each, row, length)
        done = length
    for layer, cache in held.items():
        dtype = rounds[0][f"layer_{layer}.kv"].dtype
        for site, part in zip((KEYS, VALUES), cache, strict=True):
            rows = np.ascontiguousarray(part.swapaxes(0, 1))
            if len(rows):
                values = Tensor(dtype, (len(rows), rows[0].size), rows.tobytes())
                sequence.add(site.format(layer), 0, values)
    return sequence


def _cache(file: Path, name: str, tensor: Tensor, row: int, length: int) -> NDArray[Any]:
    shape = tensor.shape
    if len(shape) != 5 or shape[1] != 2 or row >= shape[0] or length > shape[3]:
        raise TraceError(
            f"{file}: {name} is {list(shape)}, where a cache of {length} positions is [batch, 2, KV heads, capacity, "
            "head size]; dump the request again"
        )
    bits: NDArray[Any] = np.frombuffer(tensor.data, STORAGE[tensor.dtype]).reshape(shape)[row]
    return bits[:, :, :length]


def _step(file: Path, index: int, each: Round, row: int, length: int) -> Iterator[DumpedStep]:
    """What the round chose, where it says it."""
    tokens, logits = each.get("generated_token_ids"), each.get("logits")
    if tokens is None or length == 0:
        return
    chosen = integers_of(file, f"round_{index}.generated_token_ids", tokens)
    if row >= len(chosen) or (logits is not None and (len(logits.shape) != 2 or row >= logits.shape[0])):
        raise TraceError(f"{file}: round {index}: has no token or no logits of sequence {row}; dump the request again")
    values = None
    if logits is not None:
        bits = np.frombuffer(logits.data, STORAGE[logits.dtype]).reshape(logits.shape)[row]
        values = Tensor(logits.dtype, bits.shape, bits.tobytes())
    yield DumpedStep(length - 1, int(chosen[row]), values)
