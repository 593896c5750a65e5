"""A language model that is no model of transformers, in a loop of the program's own: a port in plain PyTorch.

Token ids [batch, time] go in, logits come out. What `CausalLoop` reads off arguments and outputs that transformers
names is read off their values here: the ids are the first tensor of integers; a call goes on with the one before where
an argument that was 0 (or 0, 1, ..., time - 1) then is the number of positions now, or a number in a cache is, where it
is given what the call before it returned, where the ids begin with all that were known, or where the one token that is
fed is the one that was chosen. Anything else is a call of its own.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tracekit.trace import Json
from tracekit_torch.adapter import Row
from tracekit_torch.adapters.causal_calls import is_largest
from tracekit_torch.adapters.causal_loop import Begun, CausalLoop, HeldCall
from tracekit_torch.adapters.port_arguments import ARGUMENTS, arguments_told, counters, counts
from tracekit_torch.contained_tensors import first_tensor, tensors_in
from tracekit_torch.recorder import Recorder, generator_state

_TABLE = re.compile(r"(?i)embed|emb\b|\bwte\b")
"""Class and name of a parameter that ids are looked up in."""
PADDED = 512
"""Rows that a table may have beyond the vocabulary, so that their number is a round one; at most half of them."""
MOST_RETURNED = 512
"""Tensors of a call's output that are looked for among the next one's arguments."""
INPUT_BYTES = 64 << 20
"""Inputs larger than this are not copied into the trace; the sites that read them are."""


class OwnLoop(CausalLoop):
    """Records calls of a model that takes token ids [batch, time]."""

    def __init__(self, recorder: Recorder, model: nn.Module) -> None:
        super().__init__(recorder, model)
        self._encodes = False
        self._stops = []
        self._tables = list(_tables(model))
        """Ids and width of each table."""
        self._starting: set[str] = set()
        """Arguments of the sequence's first call, and numbers in them, that said: from position 0 on."""
        self._told: Json = {}
        """What else that call was given."""
        self._returned: list[weakref.ref[torch.Tensor]] = []
        """What the last call gave beside its logits."""

    def takes(self, arguments: Json) -> bool:
        """Whether a call's first tensor is token ids [batch, time], and the model looks ids up."""
        value = first_tensor(arguments)
        return bool(self._tables) and value is not None and value.dim() == 2 and counts(value) and value.numel() > 0

    def begin_call(self, arguments: Json) -> None:
        """The model is called."""
        super().begin_call(arguments)
        taps = self._recorder.taps
        if taps is not None and taps.call is not None:
            taps.call.ids = self._fed(arguments)
            taps.call.new = self._new()

    def _new(self) -> int:
        """New positions of a call that is given those of earlier calls as well; else 0."""
        begun = self._begun
        if begun is None or begun.held is not None or begun.first:
            return 0
        known = min(row.next_position + row.padding for row in begun.rows)
        return begun.fed - known if known else 0

    def write(self) -> None:
        """Write what the taps hold, or hold it back."""
        taps, begun = self._recorder.taps, self._begun
        if taps is not None and taps.call is not None and begun is not None:
            begun.first = begun.fed - taps.call.time  # the taps may have seen that only the last ids are looked up
        super().write()

    # ---------------------------------------------------------------- what a call says

    def _fed(self, arguments: Json) -> torch.Tensor | None:
        return first_tensor(arguments) if self.takes(arguments) else None

    def _cached(self, arguments: Json) -> int:
        begun, value = self._begun, first_tensor(arguments)
        if begun is None or value is None or not begun.ids or value.shape[0] % len(begun.ids):
            return 0
        known, time = len(begun.ids[0]), value.shape[1]
        if self._starting & set(_from(arguments, value, known)):
            return known
        if value.shape[0] != len(begun.ids) or self._starting & set(_from(arguments, value, 0)):
            return 0
        returned = [ref() for ref in self._returned]
        if any(given is one for given in tensors_in(arguments) for one in returned):
            return known
        return known if time == 1 and self._was_chosen(value[:, 0].tolist()) else 0

    def _was_chosen(self, tokens: list[int]) -> bool:
        waiting = self._waiting
        if waiting is None or waiting.logits is None:
            return False
        if waiting.chosen is not None:
            return waiting.chosen == tokens
        return all(is_largest(waiting.logits, row, token) for row, token in enumerate(tokens))

    def _goes_on(self, fed: list[list[int]], cached: int, cache: Any) -> bool:
        begun, waiting = self._begun, self._waiting
        if begun is not None and cached and len(fed) > len(begun.rows):
            return self._spread(begun, fed)
        if begun is not None and (waiting is None or waiting.logits is None):
            # The answer was no logits: nothing can follow from it.
            self.finish(None, None)
            return False
        if begun is not None and fed and begun.ids and cached == 0 and len(fed[0]) != len(begun.ids[0]) + 1:
            self.finish(None, None)
            return False
        return super()._goes_on(fed, cached, cache)

    def _spread(self, begun: Begun, fed: list[list[int]]) -> bool:
        """Several rows go on with one: a prompt that was read once, whose cache is copied for each."""
        parent, known = begun.rows[0].sequence, begun.ids[0]
        self.finish(None, None)
        rows = [self._recorder.new_row(0, len(known) + len(new)) for new in fed]
        for row in rows:
            row.next_position = len(known)
        held: list[list[HeldCall]] = [[] for _ in rows]
        self._begun = Begun(rows, [known + new for new in fed], generator_state(), parent, held=held)
        return True

    def _begin(self, arguments: Json, value: torch.Tensor, fed: list[list[int]], cached: int) -> None:
        super()._begin(arguments, value, fed, cached)
        self._starting = set(_from(arguments, value, 0))
        self._told = arguments_told(arguments, value)

    def _metadata(self, begun: Begun) -> Json:
        return super()._metadata(begun) | ({ARGUMENTS: self._told} if self._told else {})

    def end_call(self, output: Any) -> None:
        """The model has answered."""
        super().end_call(output)
        logits = self._logits(output) if self._begun is not None else None
        self._returned = [weakref.ref(one) for one in tensors_in(output) if one is not logits][:MOST_RETURNED]

    def _paddings(self, arguments: Json, batch: int) -> list[int]:
        return [0] * batch

    def _beside(self, arguments: Json, value: torch.Tensor, first: int) -> None:
        """Ports are given again what `port_arguments` tells."""

    def _inputs(self, arguments: Json, value: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: other.detach().to("cpu", copy=True)
            for name, other in arguments.items()
            if isinstance(other, torch.Tensor)
            and other is not value
            and other.dim() > 0
            and other.shape[0] == value.shape[0]
            and other.numel() * other.element_size() <= INPUT_BYTES
        }

    def _logits(self, output: Any) -> torch.Tensor | None:
        """[batch, time or 1, vocabulary]: the first tensor of such a shape, with a column for each id of a table."""
        begun = self._begun
        held = output if isinstance(output, Mapping | tuple | list) else getattr(output, "logits", output)
        for value in tensors_in(held):
            if begun is None or not value.is_floating_point() or not 2 <= value.dim() <= 3:
                continue
            value = value.unsqueeze(1) if value.dim() == 2 else value
            width = value.shape[-1]
            of_ids = any(
                width == ids or (width != table_width and (ids < width or ids - min(PADDED, ids // 2) < width))
                for ids, table_width in self._tables
            )
            if of_ids and value.shape[0] == len(begun.rows) and value.shape[1] > 0:
                return value
        return None

    def _reason(self, begun: Begun, row: Row) -> str:
        waiting = self._waiting
        # A last choice that was not seen may be a token more: where the sequence ended is not known.
        return "done" if waiting is None or waiting.chosen is None else super()._reason(begun, row)


def _from(arguments: Json, ids: torch.Tensor, first: int) -> Iterator[str]:
    """Names of the arguments that say: these `ids` [batch, time] stand at position `first` and on."""
    time = ids.shape[1]
    for name, value in arguments.items():
        if isinstance(value, int) and not isinstance(value, bool) and value == first:
            yield name
        elif isinstance(value, torch.Tensor) and value is not ids and counts(value) and value.shape[-1:] == (time,):
            places = torch.arange(first, first + time, device=value.device)
            if value.numel() in (time, ids.numel()) and bool((value == places).all()):
                yield name
        elif isinstance(value, torch.Tensor):
            if value.dim() == 0 and counts(value) and int(value) == first:
                yield name
        else:
            yield from counters(name, value, first)


def _tables(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Rows and width of what may be tables of embeddings: torch's, and those of a program's own that are called so."""
    for path, parameter in model.named_parameters():
        owner, _, name = path.rpartition(".")
        part = model.get_submodule(owner)
        known = isinstance(part, nn.Embedding) or _TABLE.search(f"{type(part).__name__}.{name}")
        if known and parameter.dim() == 2:
            yield parameter.shape[0], parameter.shape[1]
