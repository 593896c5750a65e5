"""A checkpoint of any kind: a program's parameters by the names that the program has for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from tracekit.checkpoints.parameters import Parameters, open_parameters
from tracekit.dtypes import ROUNDED, round_to, to_float

PREFIXES = ("", "model.", "transformer.", "base_model.", "llm.")
"""What one side may put before a parameter's name where the other does not."""
HEAD_NAMES = ("lm_head.weight", "embed_out.weight")
"""What the table of a logits head is called, which may be that of the embeddings."""
TABLES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
"""Endings of the names of embedding tables that a head is tied to."""


class Checkpoint:
    """A folder or a file of any kind that `tracekit.checkpoints.parameters` knows.

    Raises TraceError, in one sentence, where the path holds no checkpoint or a file of it is damaged.
    """

    other_names: Mapping[str, str] = MappingProxyType({})
    """Names that a trace gives parameters, and what they are called here (`other_names`)."""

    def __init__(self, held: str | os.PathLike[str] | Parameters) -> None:
        self.file = held if isinstance(held, Parameters) else open_parameters(held)
        self.path, self.config = self.file.path, self.file.config
        self._digests: dict[tuple[str, str], int] = {}  # by name and the dtype that an engine holds it in

    @property
    def names(self) -> list[str]:
        """Parameters in the order of the files."""
        return self.file.names

    def find(self, name: str) -> str | None:
        """The checkpoint's name of a parameter that a trace calls `name`, prefixes and tied embeddings allowed for: a
        head is the embeddings' table where `config.json` ties it, even if the file has a table for it."""
        own, tied = self._own(name), self.config.get("tie_word_embeddings")
        if not name.endswith(HEAD_NAMES) or (own is not None and tied is not True):
            return own
        return own if tied is False else self._table() or own

    def _own(self, name: str) -> str | None:
        """The file's own entry; a head may be called otherwise than in the program, or stand behind a prefix."""
        head = next((head for head in HEAD_NAMES if name.endswith(head)), None)
        options = [name] if head is None else [name, *(name.removesuffix(head) + other for other in HEAD_NAMES)]
        found = next((found for option in options if (found := self._named(option)) is not None), None)
        if found is not None or head is None:
            return found
        prefixed = [other for other in self.names if other.endswith(f".{name}")]
        return prefixed[0] if len(prefixed) == 1 else None

    def _named(self, name: str) -> str | None:
        name = self.other_names.get(name, name)
        for prefix in PREFIXES:
            for option in (prefix + name, name.removeprefix(prefix)):
                if (known := self.file.called(option)) is not None:
                    return known
        return None

    def _table(self) -> str | None:
        """The table of the token embeddings, where there is one only."""
        found = [name for name in self.names if name.endswith(TABLES)]
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
        if not name.endswith(HEAD_NAMES):
            return None
        used = self.find(name)
        return next((other for other in (self._own(name), self._table()) if other not in (None, used)), None)

    def dtype(self, name: str) -> str:
        return self.file.dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.file.shape(name)

    def values(self, name: str, held_as: str | None = None) -> NDArray[Any]:
        """A parameter's values as float32 (float64 stays), rounded to the dtype that an engine holds it in."""
        values, stored = self.file.numbers(name), self.dtype(name)
        if held_as is None or held_as == stored or held_as not in ROUNDED:
            return values
        return to_float(round_to(values, held_as), held_as)

    def may_hold(self, name: str, held_as: str, digest: int) -> bool:
        """Whether an engine that loads this checkpoint may hold a parameter of this digest. Of quantised blocks nobody
        can say: engines round them to numbers in their own ways."""
        if self.file.quantisation(name) is not None:
            return True
        if held_as != self.dtype(name) and held_as not in ROUNDED:
            return False  # codes of a quantised weight are no rounding of what the checkpoint has
        key = name, held_as
        if key not in self._digests:
            self._digests[key] = self.digest(name, held_as)
        if digest == self._digests[key]:
            return True
        return any(digest == _digest(round_to(other, held_as)) for other in self.file.held_otherwise(name))

    def digest(self, name: str, held_as: str) -> int:
        """XXH3-64 of the parameter's bytes in the dtype that an engine holds it in."""
        plain = held_as == self.dtype(name)
        return _digest(self.file.bits(name) if plain else round_to(self.file.numbers(name), held_as))


def _digest(bits: NDArray[Any]) -> int:
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data)
