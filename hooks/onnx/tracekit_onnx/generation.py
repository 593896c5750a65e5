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
from tracekit_onnx.sessions import BESIDE_IDS, ids_input, load_session, session_options

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
PAST = re.compile(r"^past_key_values|^past[._]")


Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Served:
    """How a request is served. `chunk`: tokens of a prefill call, 0 for all; `requests`: how often it is made, one
    after the other; `keep_prefix`: positions of the cache that a later one keeps; `batch`: rows of a call."""

    chunk: int = 0
    requests: int = 1
    keep_prefix: int = 0
    batch: int = 1


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
    served: Served | None = None,
) -> Generated:
    """Greedy decoding with ONNX Runtime; of several requests, the last one's tokens.

    Cached keys and values are inputs `past_key_values.*` and outputs `present.*`, in one order, as optimum exports
    them; a graph without them is given all ids at every step.

    Args:
        model: the path of a `.onnx` file, or a session.
        prompt: token ids.
        out: the archive (`.h5`); None records nothing.
        max_new_tokens: tokens after which it ends with the reason `length`.
        stop: token ids after which it ends with the reason `stop`.
        optimisation: ONNX Runtime's level of graph optimisations: `disabled`, `basic`, `extended` or `all`.
        threads: of one operator.
        sites: a regular expression; only sites whose name it matches are kept.
        served: chunks, batch and further requests, where it is not one request with its prompt in one call.

    Raises:
        TraceError: the graph has inputs that are not known, or it cannot be recorded.
    """
    session = model
    if isinstance(model, str | os.PathLike):
        session = load_session(os.fspath(model), session_options(optimisation, threads))
    if not prompt:
        raise TraceError("the prompt is empty; give at least one token id")
    loop, served = _Loop(session), served or Served()
    loop.check(served)
    if out is None:
        return loop.serve(session, list(prompt), max_new_tokens, stop, served)
    with RecordedSession(session, out, sites=sites, steps=True) as recorded:
        done = loop.serve(recorded, list(prompt), max_new_tokens, stop, served)
        recorded.close(done.reason)
    return done


def ways(model: str) -> frozenset[str]:
    """The fields of `Served` that a file's graph allows to vary. Raises TraceError where it is no decoder."""
    return _Loop(load_session(model, session_options("disabled", 1))).ways


class _Loop:
    """What the graph is given and gives."""

    def __init__(self, session: Any) -> None:
        self._inputs = {value.name: value for value in session.get_inputs()}
        outputs = [value.name for value in session.get_outputs()]
        self._past = [name for name in self._inputs if PAST.search(name)]
        ids = ids_input(session.get_inputs())
        other = [name for name in self._inputs if name not in {ids, *BESIDE_IDS, *self._past}]
        if ids is None or other:
            said = f"wants {', '.join(other)}" if other else "has no input_ids"
            raise TraceError(f"the graph {said}; run it yourself with tracekit_onnx.record or RecordedSession")
        present = [name for name in outputs if "present" in name]
        if self._past and len(present) != len(self._past):
            present = outputs[-len(self._past) :]
        self._present = present if self._past else []
        self._ids = ids
        self._logits = "logits" if "logits" in outputs else outputs[0]

    def check(self, served: Served) -> None:
        """Raises TraceError where the graph cannot serve a request so."""
        if served.chunk and not self._past:
            raise TraceError("--chunk: the graph has no cache, so a prompt is one call")
        if served.keep_prefix and not self._past:
            raise TraceError("--keep-prefix: the graph has no cache")
        if served.batch > 1 and self._one_row:
            raise TraceError("--batch: the graph takes one row a call")

    @property
    def ways(self) -> frozenset[str]:
        """What a request can be varied in."""
        cached = {"chunk", "keep_prefix"} if self._past else set()
        return frozenset({"requests", *cached, *(() if self._one_row else ("batch",))})

    @property
    def _one_row(self) -> bool:
        return any(isinstance(self._inputs[name].shape[0], int) for name in (self._ids, *self._past[:1]))

    def serve(self, session: Any, ids: list[int], most: int, stop: Sequence[int], served: Served) -> Generated:
        """The request, as often as it is made, each on what it keeps of the last one's cache."""
        cache, kept = self._no_cache(served.batch), 0
        for _ in range(served.requests):
            done, cache = self._run(session, ids, most, stop, served, cache, kept)
            kept = min(served.keep_prefix, len(ids) - 1)
            cache = {name: np.ascontiguousarray(value[:, :, :kept]) for name, value in cache.items()}
        return done

    def _run(
        self, session: Any, ids: list[int], most: int, stop: Sequence[int], served: Served, cache: Arrays, known: int
    ) -> tuple[Generated, Arrays]:
        tokens: list[int] = []
        rows, mask = self._beside(ids, served.batch)
        if isinstance(session, RecordedSession):
            session.asks(rows)
        chunk = served.chunk or len(ids)
        fed = rows[:, known : known + chunk]
        while True:
            given = self._call(session, fed, mask, known, cache)
            if self._past:
                cache = dict(zip(self._past, (given[name] for name in self._present), strict=True))
                known += fed.shape[1]
                if known < len(ids):
                    fed = rows[:, known : known + chunk]
                    continue
            chosen = given[self._logits][:, -1].argmax(axis=1)
            token = int(chosen[min(1, len(chosen) - 1)])
            tokens.append(token)
            if isinstance(session, RecordedSession):
                session.chose(*map(int, chosen))
            if token in stop or len(tokens) == most:
                return Generated(tuple(ids), tuple(tokens), "stop" if token in stop else "length"), cache
            mask = np.hstack([mask, np.ones((len(mask), 1))])
            if self._past:
                fed = chosen[:, None]
            else:
                fed = rows = np.hstack([rows, chosen[:, None]])

    def _call(
        self, session: Any, fed: NDArray[Any], mask: NDArray[Any], known: int, cache: Arrays
    ) -> dict[str, NDArray[Any]]:
        wanted = [self._logits, *self._present]
        feeds = {**self._feeds(fed, mask, known), **cache}
        return dict(zip(wanted, session.run(wanted, feeds), strict=True))

    def _beside(self, ids: list[int], batch: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of a call and their mask: the request, of several the second, beside beginnings of it that are padded on
        the left; beside as many other ids where the graph takes no mask."""
        longest = len(ids)
        lengths = [max(1, longest * (row + 1) // (batch + 1)) for row in range(batch - 1)]
        if "attention_mask" in self._inputs:
            others = [[ids[0]] * (longest - length) + ids[:length] for length in lengths]
        else:
            others = [ids[length:] + ids[:length] for length in lengths]
            lengths = [longest] * len(lengths)
        rows, counts = [*others[:1], ids, *others[1:]], [*lengths[:1], longest, *lengths[1:]]
        return np.array(rows), np.array([[0.0] * (longest - count) + [1.0] * count for count in counts])

    def _no_cache(self, batch: int) -> Arrays:
        return {name: np.repeat(self._empty(name), batch, axis=0) for name in self._past}

    def _feeds(self, fed: NDArray[Any], mask: NDArray[Any], known: int) -> Mapping[str, NDArray[Any]]:
        stop = known + fed.shape[1]
        every = {
            self._ids: fed,
            "attention_mask": mask[:, :stop],
            "position_ids": np.maximum(mask[:, :stop].cumsum(axis=1) - 1, 0)[:, known:],
            "cache_position": np.arange(known, stop),
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
