"""A session of ONNX Runtime that records what it runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from tracekit.errors import first_line
from tracekit.formats.log import LogWriter, TensorLike
from tracekit.formats.log_beside import finish, new_log
from tracekit.formats.onnx_file import OnnxFile
from tracekit.formats.onnx_modules import Branch, input_site, modules_of, value_types
from tracekit.trace import LOGITS, NOT_ASKED_FOR, Json, TraceError
from tracekit_onnx.rows import Shape, arranged
from tracekit_onnx.sessions import ids_input, load_session, optimised, path_of, session_of
from tracekit_onnx.tapped import tapped

IMPLEMENTATION = "onnxruntime"
CACHE = re.compile(r"past|cache|^state$|^h\d*$|^c\d*$")
"""Inputs that go on from an earlier call."""
HEADS = ("lm_head", "embed_out")
INPUT_BYTES = 64 << 20
"""Inputs larger than this are not copied into the trace."""
ROOT_SITE = "output"
"""Site of the graph's first output, as PyTorch's recorder calls that of the outermost module."""
CHANNELS_FIRST = "Conv1d"
TIME_AXIS = 2
"""Of cached keys and values [batch, heads, positions, width]."""


@dataclass(frozen=True)
class Fused:
    """How the graph that a session runs differs from the recorded one."""

    sites: tuple[str, ...]  # whose values the session does not make
    operators: Mapping[str, int]  # that ONNX does not have, with their number


@dataclass
class _Row:
    """One sequence that goes on."""

    index: int
    ids: list[int] = field(default_factory=list)
    steps: int = 0
    logits: NDArray[Any] | None = None  # of its last position


@dataclass
class _Site:
    """A site and the value of the graph that it is."""

    row: Json
    branch: Branch
    place: tuple[Branch, str] | None
    channels_first: bool = False
    """Its values are [batch, channels, time], as a convolution's are."""
    width: int | None = None
    said: bool = False  # its row is in the log


class RecordedSession:
    """A session whose `run` gives exactly what the session itself gives, and records it.

    The values come from a copy of the graph that has them as outputs; the session itself runs as well, and its outputs
    are what the caller gets. Where the copy's outputs have different bits (fused nodes round differently), the trace
    says so. An error of the recording ends the recording, never the run.

    Args:
        session: an `onnxruntime.InferenceSession` that was made from a file, or the path of a `.onnx` file.
        out: the archive (`.h5`) that `close` makes; a name that ends in `.tklog` keeps the log.
        sites: a regular expression; only sites whose name it matches are kept.
        steps: whether calls are the steps of a generation; None: they are where the graph has token ids and a cache.

    Raises:
        TraceError: the graph cannot be recorded, or `out` cannot be written.
    """

    def __init__(
        self, session: Any, out: str | os.PathLike[str], *, sites: str | None = None, steps: bool | None = None
    ) -> None:
        self.session = load_session(os.fspath(session)) if isinstance(session, str | os.PathLike) else session
        self.path = path_of(self.session)
        self.out = Path(out)
        self.fused: Fused | None = None
        self._file = OnnxFile(self.path)
        types = value_types(self._file)
        self._modules = modules_of(self._file, types)
        self._sites = self._table(re.compile(sites or ""))
        copy = tapped(self._file.model, [site.place for site in self._sites.values() if site.place], types)
        self._outputs = copy.outputs
        self._copy = session_of(copy.model, self.path, self.session)
        self._inputs = [value.name for value in self.session.get_inputs()]
        self._ids = ids_input(self.session.get_inputs())
        self._names = [value.name for value in self.session.get_outputs()]
        self._cached = [name for name in self._inputs if CACHE.search(name)]
        self._steps = bool(steps if steps is not None else self._ids and self._cached)
        self._head = self._head_of(generates=steps is True)
        self._rows: list[_Row] = []
        self._shape = Shape(0, 0)
        self._known = 0  # positions of the sequences that go on
        self._sequences = 0
        self._asked: NDArray[np.int64] | None = None  # whole prompts, where the caller says them
        self._differed = 0.0
        self._broken: str | None = None
        self._writer = self._open()

    # ------------------------------------------------------------------ as a session

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None) -> Any:
        """What `session.run` returns, for the same arguments."""
        given = self.session.run(output_names, input_feed, run_options)
        if self._broken is None:
            try:
                self._record(input_feed, dict(zip(output_names or self._names, given, strict=True)))
            except Exception as error:  # the run goes on without being recorded
                self._fail(error)
        return given

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def asks(self, rows: NDArray[np.int64]) -> None:
        """The whole prompts [rows, ids] of the sequences that begin with the next call, which may read a part alone."""
        self._asked = rows

    def chose(self, *tokens: int) -> None:
        """The token of each row that the caller goes on with; without it, the next call shows it."""
        if self._broken is None and len(self._rows) == len(tokens):
            for row, token in zip(self._rows, tokens, strict=True):
                self._step(row, token)

    def __enter__(self) -> RecordedSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close("error" if kind is not None else None)

    def close(self, reason: str | None = None) -> None:
        """End the recording and make the archive. A second call does nothing."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        try:
            self._end_rows(writer, reason)
            if self._differed:  # nothing is lost: outputs are the session's own
                print(
                    f"tracekit: {self.out}: values inside the session's fused nodes are those of a graph that computes "
                    f"them in the open, whose outputs differ from the session's by up to {self._differed:.3g}",
                    file=sys.stderr,
                )
            writer.close() if self._broken is None else writer.abandon()
            finish(writer, self.out)
        except (OSError, TraceError) as error:
            self._say(error)

    # ------------------------------------------------------------------ what is there

    def _table(self, wanted: re.Pattern[str]) -> dict[str, _Site]:
        """The sites, by name: outputs of modules, and inputs that are no site's output."""
        sites: dict[str, _Site] = {}
        known: dict[tuple[Branch, str], str] = {}
        for module in self._modules:
            turned = module.kind == CHANNELS_FIRST
            row: Json = {"name": module.name, "class": module.kind, "order": 0}
            row["parameters"] = {role: held.name for role, held in module.parameters.items()} or None
            row["attributes"] = module.attributes or None
            if module.input is not None and module.parameters and module.kind != "Embedding":
                place = module.branch, module.input
                read = [(module.branch, value) for value in (module.input, *module.views)]
                name = next((known[each] for each in read if each in known), None)
                if name is None and wanted.search(input_site(module)):
                    name = known[place] = input_site(module)
                    sites[name] = _Site({"name": name, "class": "input", "order": 0}, module.branch, place, turned)
                row["input"] = name
            given = None if module.output is None else (module.branch, module.output)
            site = _Site(row, module.branch, given, turned)
            if site.place is None:
                row["skipped"] = module.why_not
            elif site.place in known:
                row["same_as"], site.place = known[site.place], None
            elif wanted.search(module.name):
                known[site.place] = module.name
            else:
                row["skipped"], site.place = NOT_ASKED_FOR, None
            sites[module.name] = site
        if ROOT_SITE not in sites and wanted.search(ROOT_SITE):
            top = (), self._file.model.graph.output[0].name
            row = {"name": ROOT_SITE, "class": "output", "order": 0}
            sites[ROOT_SITE] = _Site(row | {"same_as": known.get(top)}, (), None if top in known else top)
        for order, site in enumerate(sites.values()):
            site.row = {key: value for key, value in (site.row | {"order": order}).items() if value is not None}
        return sites

    def _head_of(self, generates: bool) -> str | None:
        """The output that holds the logits; of a graph that is said to generate, the first where none is called so."""
        if LOGITS in self._names:
            return LOGITS
        made = {module.output for module in self._modules if module.name.rpartition(".")[2] in HEADS}
        return next((name for name in self._names if name in made), self._names[0] if generates else None)

    def _weights(self) -> list[Json]:
        rows, digests = {}, {}
        for module in self._modules:
            for held in module.parameters.values():
                key = held.tensor.name, held.transposed
                if key not in digests:
                    flat = np.ascontiguousarray(held.bits).reshape(-1).view(np.uint8)
                    digests[key] = xxhash.xxh3_64_intdigest(flat.data)
                row = {"name": held.name, "dtype": held.dtype, "shape": list(held.shape), "digest": digests[key]}
                rows[held.name] = row
        return list(rows.values())

    def _open(self) -> LogWriter | None:
        writer = new_log(self.out)
        options = self.session.get_session_options()
        level = str(options.graph_optimization_level).rpartition("ORT_")[2].lower()
        found = optimised(self.session, self.path)
        if found is not None:
            made, operators = found
            gone = [
                name
                for name, site in self._sites.items()
                if site.place is not None and site.place[1] not in made and site.place[1] not in self._inputs
            ]
            self.fused = Fused(tuple(gone), dict(operators))
        recorder: Json = {"level": "all", "optimisation": level, "threads": options.intra_op_num_threads}
        if self.fused is not None:
            recorder["fused"] = {"sites": list(self.fused.sites), "operators": dict(self.fused.operators)}
        held = {module.parameters[role].tensor.dtype for module in self._modules for role in module.parameters}
        writer.open(
            IMPLEMENTATION,
            versions={"onnxruntime": _version("onnxruntime"), "onnx": _version("onnx")},
            device="cpu"
            if self.session.get_providers() == ["CPUExecutionProvider"]
            else self.session.get_providers()[0],
            dtype=held.pop() if len(held) == 1 else None,
            model=_config(Path(self.path)),
            command={"argv": sys.argv, "cwd": str(Path.cwd())},
            recorder=recorder,
            weights=self._weights(),
        )
        if self._steps and self._head is not None:
            for site in self._sites.values():
                if site.place is not None and self._outputs.get(site.place) == self._head:
                    site.row |= {"recorded_as": LOGITS}
                    site.place = None
        return writer

    # ------------------------------------------------------------------ a call

    def _record(self, feeds: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        arrays = {name: _array(value) for name, value in feeds.items()}
        told = {site.place for site in self._sites.values() if site.place is not None}
        asked = {place: top for place, top in self._outputs.items() if place in told and top not in arrays}
        wanted = list(dict.fromkeys([*asked.values(), *self._names]))
        values = dict(zip(wanted, self._copy.run(wanted, dict(feeds)), strict=True)) | arrays
        self._compare(given, values)
        values |= given  # what the session itself gave
        shape, first = self._begin(arrays)
        tensors: list[dict[str, TensorLike]] = [{} for _ in range(shape.batch)]
        for name, site in self._sites.items():
            value = None if site.place is None else values.get(self._outputs[site.place])
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.shape == (0,):
                continue  # a branch that was not taken gives nothing
            if site.channels_first and value.ndim == 3 and not shape.flat:
                value = value.swapaxes(1, 2)
            rows = arranged(shape, value, site.width)
            if rows is None:
                self._skip(site, value, shape)
                continue
            site.width = rows.shape[2]
            for at, row in enumerate(rows):
                tensors[at][name] = np.ascontiguousarray(row[first:])
        assert self._writer is not None
        self._say_sites({name for each in tensors for name in each})
        for at, row in enumerate(self._rows):
            if tensors[at]:
                self._writer.call(row.index, self._known + first, shape.time - first, tensors[at])
        self._known += shape.time
        logits = values.get(self._head) if self._head is not None else None
        if isinstance(logits, np.ndarray) and logits.ndim == 3 and logits.shape[0] == len(self._rows):
            for at, row in enumerate(self._rows):
                row.logits = logits[at, -1].astype(np.float32)
        if not self._steps and self._ids is None:
            self._end_rows(self._writer, "done")

    def _say_sites(self, given: set[str]) -> None:
        """The rows of the site table that the log does not have; those of a branch once it was taken."""
        taken = {self._sites[name].branch for name in given} | {()}
        new = [
            site for name, site in self._sites.items() if not site.said and (name in given or self._idle(site, taken))
        ]
        for site in new:
            site.said = True
        if new:
            assert self._writer is not None
            self._writer.sites([site.row for site in new])

    def _idle(self, site: _Site, taken: set[Branch]) -> bool:
        """Whether a site has no values of its own, in a part of the graph that runs."""
        return site.branch in taken and (site.place is None or not site.branch)

    def _compare(self, given: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Whether the recorded graph gives the bits that the session gives."""
        for name, value in given.items():
            ours = values.get(name)
            if not isinstance(value, np.ndarray) or not isinstance(ours, np.ndarray) or value.dtype.kind != "f":
                continue
            if not np.array_equal(value, ours, equal_nan=True):
                apart = np.abs(value.astype(np.float64) - ours) if value.shape == ours.shape else np.array(np.inf)
                self._differed = max(self._differed, float(np.nanmax(apart)))

    def _begin(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[Shape, int]:
        """The rows of a call, and how many of them its sequences have already."""
        name = self._ids or next(
            (each for each in self._inputs if arrays[each].ndim and each not in self._cached), None
        )
        if name is None:
            raise TraceError(f"{self.path}: is given nothing that has rows")
        shape = Shape.of(arrays[name])
        ids = arrays[name] if arrays[name].dtype.kind in "iu" and arrays[name].ndim == 2 else None
        past = next((arrays[each].shape[TIME_AXIS] for each in self._cached if arrays[each].ndim == 4), 0)
        if ids is not None and len(self._rows) == shape.batch and self._known:
            if past and past == self._known:
                self._go_on(ids)
                return shape, 0
            before = [row.ids for row in self._rows]
            again = not past and shape.time > self._known
            if again and all(list(map(int, ids[at, : self._known])) == known for at, known in enumerate(before)):
                self._go_on(ids[:, self._known :])
                first, self._known = self._known, 0
                return shape, first
        assert self._writer is not None
        self._end_rows(self._writer, None)
        self._known = past
        for at in range(shape.batch):
            row = _Row(self._sequences)
            self._sequences += 1
            self._rows.append(row)
            if ids is not None:
                row.ids = [int(token) for token in ids[at]]
            self._writer.sequence(row.index, self._prompt(arrays, shape, at), row=at)
        return shape, 0

    def _prompt(self, arrays: Mapping[str, NDArray[Any]], shape: Shape, at: int) -> dict[str, TensorLike]:
        found: dict[str, TensorLike] = {}
        if self._asked is not None:
            return {"prompt/token_ids": np.ascontiguousarray(self._asked[at])}
        for name, value in arrays.items():
            if name in self._cached or value.nbytes > INPUT_BYTES or not value.ndim:
                continue
            key = f"prompt/{'token_ids' if name == self._ids else name}"
            if shape.flat:
                found[key] = np.ascontiguousarray(value)
            elif value.shape[0] == shape.batch:
                found[key] = np.ascontiguousarray(value[at])
        return found

    def _go_on(self, ids: NDArray[Any]) -> None:
        """The sequences go on with these ids [batch, new]: of one, the token that was chosen."""
        for at, row in enumerate(self._rows):
            new = [int(token) for token in ids[at]]
            reading = self._asked is not None and self._known < self._asked.shape[1]
            if len(new) == 1 and row.logits is not None and not reading:
                self._step(row, new[0])
            row.ids += new

    def _step(self, row: _Row, token: int) -> None:
        if row.logits is None or self._writer is None:
            return
        logits, row.logits = row.logits, None
        self._writer.step(row.index, row.steps, self._known - 1, token, {"logits": logits})
        row.steps += 1

    def _skip(self, site: _Site, value: NDArray[Any], shape: Shape) -> None:
        why = (
            f"its shape {list(value.shape)} is not [batch, time, ...] = [{shape.batch}, {shape.time}, ...] of the call"
        )
        if site.row.get("skipped") != why and site.width is None:
            site.row["skipped"], site.said = why, False

    def _end_rows(self, writer: LogWriter, reason: str | None) -> None:
        for row in self._rows:
            writer.end_sequence(row.index, row.steps, reason or ("unseen" if row.steps else "done"))
        self._rows, self._known = [], 0

    def _fail(self, error: Exception) -> None:
        self._broken = first_line(error)
        self._say(error)
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.trouble(f"the recording ended: {self._broken}")

    def _say(self, error: Exception) -> None:
        print(f"tracekit: {self.out}: recording ended: {error}".split("\n")[0], file=sys.stderr)


def record(
    session: Any, inputs: Mapping[str, Any], out: str | os.PathLike[str], *, sites: str | None = None
) -> list[Any]:
    """The outputs of one run of a session, which is recorded into the archive `out`.

    Args:
        session: a session, or the path of a `.onnx` file.
        inputs: arrays by the names of the graph's inputs.
        out: the archive (`.h5`).
        sites: a regular expression; only sites whose name it matches are kept.

    Raises:
        TraceError: the graph cannot be recorded, or `out` cannot be written.
    """
    with RecordedSession(session, out, sites=sites) as recorded:
        outputs: list[Any] = recorded.run(None, inputs)
    return outputs


def _array(value: Any) -> NDArray[Any]:
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)


def _config(path: Path) -> Json | None:
    """What a `config.json` beside the file declares."""
    try:
        declared = json.loads((path.parent / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return declared if isinstance(declared, dict) else None


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)
