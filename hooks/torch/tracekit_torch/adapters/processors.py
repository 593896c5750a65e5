"""The logits processors of a step as they ran: class, numbers, and how many tokens each of them left.

transformers' `LogitsProcessorList` goes through itself; for the length of one call its entries are replaced by
stand-ins that run the real ones and look at what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tracekit.sampling.processors import GENERATE
from tracekit.trace import Json
from tracekit_torch import describe

LONGEST = 64
"""Lists with more numbers than this are not copied into each step: their length is."""
ARGUMENTS = {each.name: each.arguments for each in GENERATE}
"""What of transformers' own processors acts; of any other, every plain attribute is shown."""


@dataclass
class Stage:
    """One processor of one step."""

    name: str
    settings: Json
    survivors: list[int] = field(default_factory=list)  # for each row of the batch

    def event(self, row: int) -> Json:
        """As a step's `events` holds it."""
        detail = {"class": self.name, "settings": self.settings, "survivors": self.survivors[row]}
        return {"kind": "processor", "detail": detail}


class _Seen:
    """A processor's stand-in. The list asks for the signature of `__call__`, so the instance has the real one."""

    def __init__(self, processor: Any, chain: list[Stage], fail: Callable[[Exception], None]) -> None:
        self._processor = processor
        self._chain = chain
        self._fail = fail
        vars(self)["__call__"] = processor.__call__

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        out = self._processor(input_ids, scores, **kwargs)
        try:
            if isinstance(out, torch.Tensor) and out.dim() == 2:
                alive = (out > -torch.inf).sum(dim=-1).tolist()
                self._chain.append(Stage(type(self._processor).__name__, settings_of(self._processor), alive))
        except Exception as error:
            self._fail(error)
        return out


@contextmanager
def watched_chain(processors: Any, fail: Callable[[Exception], None]) -> Iterator[list[Stage]]:
    """Watch a list of processors inside the block; after it the list is as it was, also where one of them fails. `fail`
    is told of an error that is not theirs."""
    chain: list[Stage] = []
    originals = list(processors)
    processors[:] = [_Seen(each, chain, fail) for each in originals]
    try:
        yield chain
    finally:
        processors[:] = originals


def settings_of(processor: Any) -> Json:
    """The numbers that a processor works with, by its attributes' names."""
    everything = getattr(processor, "__dict__", {})
    names = ARGUMENTS.get(type(processor).__name__) or tuple(everything)
    found: Json = {}
    for name in names:
        value = everything.get(name)
        if isinstance(value, torch.Tensor) and value.numel() > LONGEST:
            found[name] = f"{value.numel()} numbers"
        elif value is not None and not name.startswith("_") and not callable(value):
            plain = describe.plain(value)
            found[name] = f"{len(plain)} entries" if isinstance(plain, list) and len(plain) > LONGEST else plain
    return found
