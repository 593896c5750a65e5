"""Greedy generation with a decoder that was exported to ONNX, with its cache where it has one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.trace import TraceError
from tracekit_onnx.recording import RecordedSession
from tracekit_onnx.sessions import load_session, session_options

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
PAST = re.compile(r"^past_key_values|^past[._]")
KNOWN = ("input_ids", "attention_mask", "position_ids", "cache_position")


@dataclass(frozen=True)
class Generated:
    """What a generation gave: the prompt's ids, the tokens, and why it ended (`stop` or `length`)."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    reason: str


def generate(
    model: Any,
    prompt: Sequence[int],
    out: str | os.PathLike[str] | None = None,
    *,
    max_new_tokens: int = 32,
    stop: Sequence[int] = (),
    optimisation: str = "all",
    threads: int = 1,
    sites: str | None = None,
) -> Generated:
    """The most probable token again and again. `model` is a file or a session, `out` the archive; None records nothing.

    Cached keys and values are inputs `past_key_values.*` and outputs `present.*`, in one order, as optimum exports
    them; a graph without them is given all ids at every step. Raises TraceError where the graph wants other inputs.
    """
    session = model
    if isinstance(model, str | os.PathLike):
        session = load_session(os.fspath(model), session_options(optimisation, threads))
    if not prompt:
        raise TraceError("the prompt is empty; give at least one token id")
    loop = _Loop(session)
    if out is None:
        return loop.run(session, list(prompt), max_new_tokens, stop)
    with RecordedSession(session, out, sites=sites, steps=True) as recorded:
        done = loop.run(recorded, list(prompt), max_new_tokens, stop)
        recorded.close(done.reason)
    return done


class _Loop:
    """What the graph is given and gives."""

    def __init__(self, session: Any) -> None:
        self._inputs = {value.name: value for value in session.get_inputs()}
        outputs = [value.name for value in session.get_outputs()]
        self._past = [name for name in self._inputs if PAST.search(name)]
        other = [name for name in self._inputs if name not in KNOWN and name not in self._past]
        if "input_ids" not in self._inputs or other:
            said = f"wants {', '.join(other)}" if other else "has no input_ids"
            raise TraceError(f"the graph {said}; run it yourself with tracekit_onnx.record or RecordedSession")
        present = [name for name in outputs if "present" in name]
        if self._past and len(present) != len(self._past):
            present = outputs[-len(self._past) :]
        self._present = present if self._past else []
        self._logits = "logits" if "logits" in outputs else outputs[0]

    def run(self, session: Any, ids: list[int], most: int, stop: Sequence[int]) -> Generated:
        tokens: list[int] = []
        cache = {name: self._empty(name) for name in self._past}
        fed, known = ids, 0
        while True:
            feeds = {**self._feeds(fed, known), **cache}
            given = dict(
                zip([self._logits, *self._present], session.run([self._logits, *self._present], feeds), strict=True)
            )
            token = int(np.argmax(given[self._logits][0, -1]))
            tokens.append(token)
            if isinstance(session, RecordedSession):
                session.chose(token)
            if token in stop or len(tokens) == most:
                return Generated(tuple(ids), tuple(tokens), "stop" if token in stop else "length")
            if self._past:
                cache = dict(zip(self._past, (given[name] for name in self._present), strict=True))
                known += len(fed)
                fed = [token]
            else:
                fed = [*ids, *tokens]

    def _feeds(self, fed: list[int], known: int) -> Mapping[str, NDArray[Any]]:
        count = len(fed)
        every = {
            "input_ids": np.array([fed]),
            "attention_mask": np.ones((1, known + count)),
            "position_ids": np.arange(known, known + count)[None],
            "cache_position": np.arange(known, known + count),
        }
        return {name: value.astype(self._type(name)) for name, value in every.items() if name in self._inputs}

    def _empty(self, name: str) -> NDArray[Any]:
        sides = list(self._inputs[name].shape)
        if len(sides) != 4 or not all(isinstance(sides[at], int) for at in (1, 3)):
            raise TraceError(f"the graph's {name} is {sides}, not [batch, heads, positions, width]; run it yourself")
        return np.zeros((1, sides[1], 0, sides[3]), self._type(name))

    def _type(self, name: str) -> Any:
        kind = self._inputs[name].type
        if kind not in TYPES:
            raise TraceError(f"the graph's {name} is of {kind}, which is not made here; run it yourself")
        return TYPES[kind]
