"""A checkpoint on disk: a Hugging Face folder, or safetensors files, read without running anything.

Source of the format: https://github.com/huggingface/safetensors (8 bytes of header length, JSON, tensors).
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tracekit.dtypes import FROM_SAFETENSORS, STORAGE, round_to, to_float
from tracekit.trace import Json, TraceError

INDEX = "model.safetensors.index.json"
SPEECH_MODELS = ("llm.rl.safetensors", "llm.safetensors")
"""Of a CosyVoice folder, which holds other models and speech tokens besides, the language model: the first that is
there."""
PREFIXES = ("", "model.", "transformer.", "base_model.", "llm.")
"""What one side may put before a parameter's name where the other does not."""
HEADS = ("lm_head.weight", "embed_out.weight")
"""What the table of a logits head is called, which may be that of the embeddings."""
TABLES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
"""Endings of the names of embedding tables that a head is tied to."""


@dataclass(frozen=True)
class _Entry:
    file: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    start: int


class Checkpoint:
    """Parameters by name, and what `config.json` declares.

    Raises TraceError, in one sentence, where the path holds no checkpoint or a file of it is damaged.
    """

    other_names: Mapping[str, str] = MappingProxyType({})
    """Names that a trace gives parameters, and what they are called here (`other_names`)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._entries: dict[str, _Entry] = {}
        self._digests: dict[tuple[str, str], int] = {}  # by name and the dtype that an engine holds it in
        for file in _files(Path(path)):
            self._entries |= _read_header(file)
        self.config = _read_config(Path(path))

    @property
    def one_added(self) -> bool:
        """Whether norms that multiply by 1 + weight are stored as that sum."""
        return False

    @property
    def names(self) -> list[str]:
        """Parameters in the order of the files."""
        return list(self._entries)

    def find(self, name: str) -> str | None:
        """The checkpoint's name of a parameter that a trace calls `name`, prefixes and tied embeddings allowed for: a
        head is the embeddings' table where `config.json` ties it, even if the file has a table for it."""
        own, tied = self._own(name), self.config.get("tie_word_embeddings")
        if not name.endswith(HEADS) or (own is not None and tied is not True):
            return own
        return own if tied is False else self._table() or own

    def _own(self, name: str) -> str | None:
        """The file's own entry; a head may be called otherwise than in the program."""
        head = next((head for head in HEADS if name.endswith(head)), None)
        options = [name] if head is None else [name, *(name.removesuffix(head) + other for other in HEADS)]
        return next((found for option in options if (found := self._named(option)) is not None), None)

    def _named(self, name: str) -> str | None:
        name = self.other_names.get(name, name)
        for prefix in PREFIXES:
            for option in (prefix + name, name.removeprefix(prefix)):
                if option in self._entries:
                    return option
        return None

    def _table(self) -> str | None:
        """The table of the token embeddings, where there is one only."""
        found = [name for name in self._entries if name.endswith(TABLES)]
        return (
            found[0]
            if len(found) == 1
            else next(
                (
                    name
                    for name in found
                    if name.endswith(".embed_tokens.weight") and name.removesuffix("embed_tokens.weight") in PREFIXES
                ),
                None,
            )
        )

    def other_head(self, name: str) -> str | None:
        """The other table that a head might be taken for: the file's own where it is tied, the embeddings' where it is
        not. None where there is no other, and for what is no head."""
        if not name.endswith(HEADS):
            return None
        used = self.find(name)
        return next((other for other in (self._own(name), self._table()) if other not in (None, used)), None)

    def dtype(self, name: str) -> str:
        return self._entries[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def bits(self, name: str) -> NDArray[Any]:
        """A parameter as it is stored, a view of the file; bfloat16 as uint16. Raises KeyError."""
        entry = self._entries[name]
        count = math.prod(entry.shape)
        return np.frombuffer(entry.file, STORAGE[entry.dtype], count, entry.start).reshape(entry.shape)

    def values(self, name: str, held_as: str | None = None) -> NDArray[Any]:
        """A parameter's values as float32 (float64 stays), rounded to the dtype that an engine holds it in."""
        values = to_float(self.bits(name), self.dtype(name))
        if held_as is None or held_as == self.dtype(name):
            return values
        return to_float(round_to(values, held_as), held_as)

    def may_hold(self, name: str, held_as: str, digest: int) -> bool:
        """Whether an engine that loads this checkpoint may hold a parameter of this digest."""
        key = name, held_as
        if key not in self._digests:
            self._digests[key] = self.digest(name, held_as)
        return digest == self._digests[key]

    def quantisation(self, name: str) -> str | None:
        """What blocks a tensor is stored in; None of plain numbers, as all of safetensors are."""
        return None

    def block_minima(self, name: str) -> NDArray[np.float32] | None:
        """The smallest value that each block of a quantised tensor can hold, [rows, blocks], where its blocks state
        one; None of others."""
        return None

    def digest(self, name: str, held_as: str) -> int:
        """XXH3-64 of the parameter's bytes in the dtype that an engine holds it in."""
        bits = self.bits(name)
        if held_as != self.dtype(name):
            bits = round_to(to_float(bits, self.dtype(name)), held_as)
        return xxhash.xxh3_64_intdigest(np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data)


def _files(path: Path) -> list[Path]:
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    if not path.is_dir():
        raise TraceError(f"{path}: is neither a folder nor a .safetensors file; give the checkpoint's folder")
    index = path / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise TraceError(f"{index}: is no index of safetensors files; fetch the checkpoint again") from None
        if any(os.path.sep in str(name) for name in names):
            raise TraceError(f"{index}: names a file outside its folder; fetch the checkpoint again")
        return [path / str(name) for name in names]
    found = sorted(path.glob("*.safetensors"))
    speech = [path / name for name in SPEECH_MODELS if path / name in found]
    if speech:
        return speech[:1]
    if not found:
        raise TraceError(f"{path}: holds no .safetensors file; give the checkpoint's folder")
    return found


def _read_header(path: Path) -> dict[str, _Entry]:
    """Where each tensor of a file lies. The library checks the header; the bytes are mapped here, since it gives numpy
    no bfloat16 and no float8, and none of its views without torch."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with safe_open(path, framework="np") as header:
            rows = [(name, header.get_slice(name)) for name in header.offset_keys()]
            told = [(name, row.get_dtype(), tuple(row.get_shape())) for name, row in rows]
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None
    except SafetensorError as error:
        why = str(error).rpartition("header: ")[2]
        raise TraceError(f"{path}: is no sound safetensors file ({why}); fetch the checkpoint again") from None
    entries: dict[str, _Entry] = {}
    # Tensors lie one after the other and fill the file to its end: the library has checked it.
    start = len(mapped)
    for name, word, shape in reversed(told):
        dtype = FROM_SAFETENSORS.get(word)
        if dtype is None:
            raise TraceError(f"{path}: {name} is of dtype {word}, which tracekit does not read; convert the checkpoint")
        start -= math.prod(shape) * STORAGE[dtype].itemsize
        entries[name] = _Entry(mapped, dtype, shape, start)
    return dict(reversed(entries.items()))


def _read_config(path: Path) -> Json:
    """What `config.json` declares, of the checkpoint or of the model inside it (CosyVoice keeps that of Qwen2); empty
    where there is none."""
    folder = path if path.is_dir() else path.parent
    inner = sorted(folder.glob("*/config.json"))
    file = folder / "config.json"
    if not file.exists():
        if len(inner) != 1:
            return {}
        file = inner[0]
    try:
        declared = json.loads(file.read_text())
    except (OSError, ValueError):
        raise TraceError(f"{file}: is no JSON; fetch the checkpoint again") from None
    if not isinstance(declared, dict):
        raise TraceError(f"{file}: holds no settings; fetch the checkpoint again")
    return declared
