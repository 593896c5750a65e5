"""An engine in Python that is not PyTorch (JAX, MLX, tinygrad, numpy) says what it computes.

The calls are those of the Rust crate: a generation begins, a forward call gives values, a token is chosen. Under
`tracekit record -o run.h5 -- python engine.py` the environment says where the log goes and what is kept; otherwise
`out` does. Without either nothing is recorded, and no value is copied. No error of the recording reaches the engine:
the first one is a line on stderr and the end of the recording, and is said in the log.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tracekit.dtypes import STORAGE, to_float
from tracekit.errors import TraceError
from tracekit.formats.log import LogWriter, Tensor
from tracekit.formats.log_beside import begin_anew, finish
from tracekit.formats.log_trace import LogTrace
from tracekit.programs.levels import LEVELS, keeps
from tracekit.programs.native import draw_row
from tracekit.trace import INPUT_SUFFIX, Draw, Json

CLASS = "tap"
"""Class of a site of which nothing is known but its values."""

F = TypeVar("F", bound=Callable[..., Any])


def _unharmed(otherwise: Callable[..., Any]) -> Callable[[F], F]:
    """What is done under the recording's lock, and `otherwise` where there is none, or none any more."""

    def wrap(method: F) -> F:
        @functools.wraps(method)
        def call(self: Recording, *given: Any) -> Any:
            if self.enabled:
                with self._lock:
                    try:
                        return method(self, *given)
                    except Exception as error:  # whatever it is, the engine goes on
                        self._give_up(error)
            return otherwise(*given)

        return cast(F, call)

    return wrap


class Recording:
    """One program's recording; use it in `with`, or call `close`. An error of the recording ends the recording with one
    line on stderr, never the program.

    Args:
        implementation: a short word for the engine.
        out: the archive (`.h5`) or log (`.tklog`); None: the log that `TRACEKIT_LOG` names, and nothing without it.
        sites: sites by name, each with any of `class`, `attributes` and `parameters`.
        described: what the first frame of the log says besides (docs/format.md): `versions`, `device`, `dtype`, `model`
            (the numbers of a config.json as the engine uses them), `checkpoint` (path of the weights), `seed`,
            `arithmetic`.
    """

    def __init__(
        self,
        implementation: str,
        out: str | os.PathLike[str] | None = None,
        *,
        sites: Mapping[str, Json] | None = None,
        **described: Any,
    ) -> None:
        told = os.environ.get("TRACEKIT_LOG")
        self._out = Path(os.fspath(out)) if out is not None else Path(told) if told else None
        self._writer: LogWriter | None = None
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._said: dict[str, Json] = {}
        self._described = dict(sites or {})
        self._sequences = 0
        self._followed: LogTrace | None = None
        if self._out is not None:
            try:
                self._open(implementation, told is not None and out is None, described)
            except Exception as error:
                self._give_up(error)

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded, and by this process: a child that was forked is not."""
        return self._writer is not None and os.getpid() == self._process

    def sequence(
        self,
        prompt_ids: Sequence[int] | NDArray[Any],
        *,
        prompt_text: str | None = None,
        seed: int | None = None,
        **sampling: Any,
    ) -> Generation:
        """A generation begins.

        Args:
            prompt_ids: token ids, i64 [n].
            prompt_text: the prompt as text.
            seed: what its generator was seeded with.
            sampling: those of `do_sample, temperature, top_k, top_p, …` that are applied.
        """
        index = self._begin(prompt_ids, prompt_text, seed, sampling)
        return Generation(self, index, -1 if index is None else len(prompt_ids))

    def close(self) -> None:
        """The end of the recording; makes the archive where `out` is one. A second call does nothing."""
        if self.enabled:
            self._close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ what a generation says

    @_unharmed(lambda *_: None)
    def _begin(self, prompt_ids: Any, text: str | None, seed: int | None, sampling: Json) -> int | None:
        ids = np.asarray(prompt_ids, dtype=np.int64).reshape(-1)
        index, self._sequences = self._sequences, self._sequences + 1
        self._log.sequence(
            index, {"prompt/token_ids": ids}, prompt_text=text, seed=seed, sampling=sampling if sampling else None
        )
        return index

    @_unharmed(lambda *_: None)
    def _call(self, index: int, position: int, rows: int, values: Mapping[str, Any]) -> None:
        held: dict[int, str] = {}  # the very same object is stored once
        calls: dict[int, dict[str, Tensor]] = {}  # by how many rows it is of: a head may give the last one alone
        table: dict[str, Json] = {}
        for name, value in values.items():
            if not keeps(self._level, self._pattern, name):
                continue
            first = held.setdefault(id(value), name)
            if name.endswith(INPUT_SUFFIX):
                table.setdefault(name.removesuffix(INPUT_SUFFIX), {})["input"] = first
            if first != name:
                table.setdefault(name, {})["same_as"] = first
                continue
            part = tensor_of(value)
            if part.shape[0] in (rows, 1):
                calls.setdefault(part.shape[0], {})[name] = part
                table.setdefault(name, {}).update({"class": "input"} if name.endswith(INPUT_SUFFIX) else {})
            else:
                table.setdefault(name, {})["skipped"] = f"its shape {list(value.shape)} does not have {rows} rows"
        self._say({name: row for name, row in table.items() if "same_as" not in row or INPUT_SUFFIX not in name})
        for count, tensors in calls.items():
            self._log.call(index, position + rows - count, count, tensors)

    @_unharmed(lambda index, step, position, token, *_: token)
    def _step(
        self,
        index: int,
        step: int,
        position: int,
        token: int,
        logits: Any,
        survivors: tuple[Any, Any] | None,
        draws: Sequence[Draw],
        text: str | None,
    ) -> int:
        tensors: dict[str, Any] = {} if logits is None or self._level == LEVELS[0] else self._logits(logits)
        if survivors is not None:
            ids, probs = np.asarray(survivors[0], np.int64), np.asarray(survivors[1], np.float32)
            order = np.lexsort((ids, -probs))
            tensors |= {"survivors/id": ids[order], "survivors/prob": probs[order]}
        going_on = self._forced(index, step)
        own = token if going_on is None else going_on
        events = [{"kind": "forced", "detail": {"instead_of": int(token)}}] if own != token else None
        said = [draw_row(draw) for draw in draws] or None
        self._log.step(index, step, position, own, tensors, text=text, draws=said, events=events)
        return own

    @_unharmed(lambda *_: None)
    def _end(self, index: int, steps: int, reason: str) -> None:
        followed = None
        if self._followed is not None:
            followed = {"tokens": sum(self._forced(index, step) is not None for step in range(steps))}
        self._log.end_sequence(index, steps, reason, followed=followed)

    # ------------------------------------------------------------------ the log

    @property
    def _log(self) -> LogWriter:
        if self._writer is None:
            raise TraceError("nothing is recorded")
        return self._writer

    def _open(self, implementation: str, by_environment: bool, described: Json) -> None:
        assert self._out is not None
        wanted = os.environ if by_environment else {}
        self._level = wanted.get("TRACEKIT_LEVEL") or LEVELS[-1]
        self._pattern = wanted.get("TRACEKIT_SITES") or None
        self._most = wanted.get("TRACEKIT_LOGITS") or "full"
        if by_environment and wanted.get("TRACEKIT_LOG_IS_NEW") == "1" and self._out.stat().st_size:
            raise TraceError(f"{self._out}: was written by another process of this run; give this one another log")
        recorder: Json = {"level": self._level, "sites": self._pattern, "logits": self._most}
        follow: Json | None = None
        if wanted.get("TRACEKIT_FOLLOW"):
            self._followed = LogTrace(Path(wanted["TRACEKIT_FOLLOW"]))
            recorder["follow"] = wanted.get("TRACEKIT_FOLLOWED")
            follow = {"trace": recorder["follow"], "tokens": True, "draws": False, "inputs": False}
            follow["follower"] = "tracekit (Python)"
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._writer = LogWriter(begin_anew(self._out) if self._is_archive else self._out)
        self._log.open(
            implementation,
            **{"command": {"argv": sys.argv, "cwd": str(Path.cwd())}, "recorder": recorder, "follow": follow}
            | described,
        )

    @property
    def _is_archive(self) -> bool:
        return self._out is not None and self._out.suffix in (".h5", ".hdf5")

    def _say(self, rows: Mapping[str, Json]) -> None:
        """The rows of the site table that the log does not have."""
        new = []
        for name, row in rows.items():
            known = self._said.get(name)
            if known is None:
                order = len(self._said)
                self._said[name] = {"name": name, "class": CLASS, "order": order} | self._described.get(name, {}) | row
            elif row.items() <= known.items():
                continue
            else:
                self._said[name] = known | row
            new.append(self._said[name])
        if new:
            self._log.sites(new)

    def _logits(self, logits: Any) -> dict[str, Any]:
        part = tensor_of(logits)
        flat = Tensor(part.dtype, (part.shape[0] * part.shape[1],), part.data)
        if self._most == "full":
            return {"logits": flat}
        values = to_float(np.frombuffer(flat.data, STORAGE[flat.dtype]), flat.dtype).astype(np.float64)
        top = np.lexsort((np.arange(values.size), -values))[: int(self._most)]
        total = values.max() + np.log(np.exp(values - values.max()).sum())
        return {"topk/id": top.astype(np.int64), "topk/logprob": (values[top] - total).astype(np.float32)}

    def _forced(self, index: int, step: int) -> int | None:
        """The followed trace's token of a step."""
        if self._followed is None or index >= len(self._followed.sequences):
            return None
        sequence = self._followed.sequences[index]
        return int(sequence.step(step).token) if step < sequence.step_count else None

    @_unharmed(lambda: None)
    def _close(self) -> None:
        writer, self._writer = self._log, None
        writer.close()
        if self._is_archive and self._out is not None:
            finish(writer, self._out)

    def _give_up(self, error: Exception) -> None:
        writer, self._writer = self._writer, None
        why = f"{type(error).__name__}: {error}" if not isinstance(error, OSError | TraceError) else str(error)
        try:
            print(f"tracekit: recording ends here, the program goes on: {why}", file=sys.stderr)
            if writer is not None:
                writer.trouble(why)
                writer.abandon()
        except (OSError, ValueError, AttributeError):
            pass  # a stderr that is closed, a disk that is full


class Generation:
    """One generation of a recording; several may take turns, each on a thread of its own or not."""

    def __init__(self, recording: Recording, index: int | None, prompt_length: int) -> None:
        self._recording = recording
        self._index = index
        self._prompt = prompt_length
        self._steps = 0

    def forward(self, first_position: int, rows: int, values: Mapping[str, Any]) -> None:
        """The values of one forward call over positions [first_position, first_position + rows).

        Args:
            first_position: of the first row; positions count from 0 in each generation.
            rows: positions of the call.
            values: arrays [rows, width] or [1, rows, …] by site, of any library that has the buffer protocol or
                numpy's, bfloat16 included. An array of one row is the last position's. A module's input is named
                `<module>:in`. The same array object under several names is stored once.
        """
        if self._index is not None:
            self._recording._call(self._index, first_position, rows, values)

    def next_token(
        self,
        token: int,
        *,
        logits: Any = None,
        survivors: tuple[Any, Any] | None = None,
        draws: Sequence[Draw] = (),
        text: str | None = None,
    ) -> int:
        """The token to continue with: `token` itself, or under `--follow` the followed trace's.

        Args:
            token: what the engine chose.
            logits: [V], as the model gave them, before any processor.
            survivors: ids [n] and probabilities [n] of the tokens that could be drawn, in any order.
            draws: uses of the random generator, in their order.
            text: of the token.
        """
        if self._index is None:
            return token
        step, self._steps = self._steps, self._steps + 1
        position = self._prompt - 1 + step
        return int(self._recording._step(self._index, step, position, token, logits, survivors, draws, text))

    def end(self, reason: str = "done") -> None:
        """The generation ends. `reason`: `stop` (a stop token), `length`, `error`, `left` or `done`."""
        if self._index is not None:
            self._recording._end(self._index, self._steps, reason)


def tensor_of(value: Any) -> Tensor:
    """An array [rows, width] or [1, rows, …] of any library as [rows, width], its bits unchanged.

    Raises TraceError for a dtype that the format does not have, or a batch of several."""
    word = str(value.dtype).rpartition(".")[2]
    if word not in STORAGE:
        raise TraceError(f"an array of {value.dtype}: give one of {', '.join(STORAGE)}")
    shape = tuple(int(size) for size in value.shape)
    if len(shape) > 2 and shape[0] != 1:
        raise TraceError(f"an array {list(shape)}: give [rows, width], or [1, rows, …] with a batch of one")
    if word == "bfloat16" or word.startswith("float8"):  # numpy has none: the bits
        held = value.view(STORAGE[word]) if isinstance(value, np.ndarray) else memoryview(value).tobytes()
        bits: NDArray[Any] = held if isinstance(held, np.ndarray) else np.frombuffer(held, STORAGE[word])
    else:
        bits = np.asarray(value)
    rows = 1 if len(shape) < 2 else shape[0] if len(shape) == 2 else shape[1]
    width = math.prod(shape) // rows if rows else 0
    whole = np.ascontiguousarray(bits.reshape(rows, width), dtype=STORAGE[word])
    return Tensor(word, whole.shape, whole.view(np.uint8).reshape(-1).data)
