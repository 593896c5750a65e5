"""What each row of a speech model's input is: read off its values, so that nothing has to be believed.

The rows of `lm_input` are put together from two embedding tables, and may hold others besides (a speaker's). A row is a
token of a table when it is that table's row, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import torch

from tracekit.trace import NO_TOKEN


class Vocabulary(IntEnum):
    """Which table a row is from; the values of `prompt/vocabulary`."""

    TEXT = 0
    SPEECH = 1
    NEITHER = 2


@dataclass(frozen=True)
class InputRow:
    """One row of the input."""

    vocabulary: Vocabulary
    token: int
    name: str | None = None
    """What the row is for, where it is no text and no speech: `<sos>`, `<task_id>`, `<speaker>`."""


@dataclass(frozen=True)
class Run:
    """Rows [first, stop) that are from one table."""

    vocabulary: Vocabulary
    first: int
    stop: int


class KnownRows:
    """Rows that the input may hold. Those given first win, should two be the same."""

    def __init__(self) -> None:
        self._rows: dict[bytes, InputRow] = {}
        self._seen: set[tuple[Vocabulary, int]] = set()

    def add(self, table: torch.Tensor, vocabulary: Vocabulary, tokens: Iterable[int]) -> None:
        """Rows of `table` [tokens, width]; ids that it does not have are left out."""
        new = [
            token
            for token in dict.fromkeys(tokens)
            if 0 <= token < table.shape[0] and (vocabulary, token) not in self._seen
        ]
        if not new:
            return
        self._seen.update((vocabulary, token) for token in new)
        values = table.detach()[torch.tensor(new, device=table.device)]
        for token, key in zip(new, _keys(values), strict=True):
            self._rows.setdefault(key, InputRow(vocabulary, token))

    def add_named(self, row: torch.Tensor, known: InputRow) -> None:
        """A single row [width]."""
        self._rows[_keys(row.detach().reshape(1, -1))[0]] = known

    def of(self, rows: torch.Tensor) -> list[InputRow]:
        """What each of `rows` [time, width] is."""
        found = [self._rows.get(key) for key in _keys(rows)]
        return [row or InputRow(Vocabulary.NEITHER, NO_TOKEN, "<speaker>") for row in found]


def runs(rows: list[InputRow]) -> list[Run]:
    """Neighbours from the same table, together."""
    out: list[Run] = []
    for index, row in enumerate(rows):
        if out and out[-1].vocabulary == row.vocabulary:
            out[-1] = Run(row.vocabulary, out[-1].first, index + 1)
        else:
            out.append(Run(row.vocabulary, index, index + 1))
    return out


def _keys(rows: torch.Tensor) -> list[bytes]:
    """The bytes of each of the rows [n, width]."""
    host = rows.detach().cpu().contiguous()
    return [row.view(torch.uint8).numpy().tobytes() for row in host]
