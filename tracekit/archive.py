"""The archive (`*.h5`): a closed trace as plain HDF5, as docs/format.md specifies it.

Written under a temporary name and renamed, so a file under its final name is always whole. Values are moved in large
blocks with one HDF5 call each: a call costs 160-250 us, whatever it moves.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tracekit.dtypes import STORAGE
from tracekit.trace import (
    Array,
    Draw,
    Event,
    Json,
    Sequence,
    Site,
    SiteData,
    Step,
    Trace,
    TraceError,
    Weight,
    site_from_row,
    site_to_row,
)

FORMAT = 1
BLOCK_BYTES = 8 << 20
"""Bytes moved by one HDF5 call."""
NO_VALUE = -1
"""Stands for a missing `result` of a draw."""
DRAW_NUMBERS = ("seed", "offset", "words")
"""Numbers of a draw that may be unknown; bit i of `draws/known` says whether the i-th is known."""


def _bfloat16_type() -> h5py.h5t.TypeID:
    """bfloat16 as a custom HDF5 float, so that h5dump prints its values."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)  # sign, exponent position and size, mantissa position and size
    kind.set_size(2)
    kind.set_precision(16)
    kind.set_ebias(127)
    return kind


def _file_type(dtype: str) -> h5py.h5t.TypeID:
    return _bfloat16_type() if dtype == "bfloat16" else h5py.h5t.py_create(STORAGE[dtype], logical=True)


# ---------------------------------------------------------------- writing


def write_archive(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write `trace` as an archive at `path`, replacing what was there only when all of it is on disk.

    Raises TraceError where the folder cannot be written. Memory is bounded by `BLOCK_BYTES`.
    """
    target = Path(path)
    try:
        handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
        os.close(handle)
    except OSError as error:
        raise TraceError(f"{target}: cannot be written: {error.strerror}") from None
    try:
        with h5py.File(scratch, "w", libver="earliest") as file:
            _write_trace(file, trace)
        _flush_to_disk(scratch)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(target)
    except OSError as error:
        raise TraceError(f"{target}: cannot be written: {error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(scratch).unlink()


def _flush_to_disk(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_trace(file: h5py.File, trace: Trace) -> None:
    file.attrs["tracekit_format"] = FORMAT
    file.attrs["implementation"] = trace.implementation
    file.attrs["status"] = trace.status
    if trace.status_detail:
        file.attrs["status_detail"] = trace.status_detail
    _write_json(file, "config", trace.config)
    _write_json(file, "site_table", [site_to_row(site) for site in trace.sites.values()])
    if trace.weights:
        _write_weights(file.create_group("weights"), list(trace.weights.values()))
    sequences = file.create_group("sequences")
    for sequence in trace.sequences:
        _write_sequence(sequences.create_group(str(sequence.index)), sequence, trace)


def _write_json(group: h5py.Group, name: str, value: Any) -> None:
    text = json.dumps(value).encode()
    group[name] = np.array(text, dtype=h5py.string_dtype("utf-8", max(len(text), 1)))


def _write_strings(group: h5py.Group, name: str, texts: list[str]) -> None:
    encoded = [text.encode(errors="surrogatepass") for text in texts]
    length = max([1, *map(len, encoded)])
    group[name] = np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


def _write_weights(group: h5py.Group, weights: list[Weight]) -> None:
    _write_strings(group, "name", [weight.name for weight in weights])
    _write_strings(group, "dtype", [weight.dtype for weight in weights])
    _write_strings(group, "shape", [json.dumps(list(weight.shape)) for weight in weights])
    digests = [weight.digest for weight in weights]
    if None not in digests:
        group["digest"] = np.array(digests, dtype=np.uint64)


def _write_sequence(group: h5py.Group, sequence: Sequence, trace: Trace) -> None:
    group.attrs["sequence"] = sequence.index
    group.attrs["steps"] = sequence.step_count
    group.attrs["positions"] = sequence.positions
    if sequence.end_reason is not None:
        group.attrs["end_reason"] = sequence.end_reason
    info = {
        "prompt_text": sequence.prompt_text,
        "texts": sequence.texts,
        "sampling": sequence.sampling,
        "seed": sequence.seed,
        **sequence.info,
    }
    _write_json(group, "config", info)
    for name, value in sequence.inputs.items():
        group.create_dataset(f"prompt/{_escape(name)}", data=value)
    if sequence.rng_state is not None:
        group["rng_state"] = np.frombuffer(sequence.rng_state, dtype=np.uint8)
    if sequence.step_count:
        _write_steps(group, sequence)
    for name, data in sequence.sites.items():
        site = trace.sites.get(name)
        _write_site(group.require_group("sites"), sequence, data, site)


def _write_steps(group: h5py.Group, sequence: Sequence) -> None:
    steps = [sequence.step(index) for index in range(sequence.step_count)]
    out = group.create_group("steps")
    out["token"] = sequence.tokens
    out["position"] = np.array([step.position for step in steps], dtype=np.int64)
    if any(step.text is not None for step in steps):
        _write_strings(out, "text", [step.text or "" for step in steps])
    _write_logits(out, steps, sequence.logits_dtype)
    for name in ("topk_id", "topk_logprob"):
        rows = [getattr(step, name) for step in steps]
        if all(row is not None and row.shape == rows[0].shape for row in rows):
            out[name] = np.stack(rows)
    _write_survivors(group, steps)
    _write_draws(group, [draw for step in steps for draw in step.draws])
    _write_events(group, [event for step in steps for event in step.events])


def _write_logits(group: h5py.Group, steps: list[Step], dtype: str | None) -> None:
    width = next((step.logits.shape[0] for step in steps if step.logits is not None), None)
    if dtype is None or width is None:
        return
    dataset = _create(group, "logits", (len(steps), width), dtype)
    rows_a_block = max(1, BLOCK_BYTES // max(1, width * STORAGE[dtype].itemsize))
    for first in range(0, len(steps), rows_a_block):
        block = [_logits_row(step, width, dtype) for step in steps[first : first + rows_a_block]]
        _write_rows(dataset, dtype, first, np.stack(block))


def _logits_row(step: Step, width: int, dtype: str) -> Array:
    if step.logits is not None and step.logits.shape == (width,):
        return step.logits
    nan = {"bfloat16": 0x7FC0, "float16": np.nan, "float32": np.nan, "float64": np.nan}.get(dtype, 0)
    return np.full(width, nan, dtype=STORAGE[dtype])


def _write_survivors(group: h5py.Group, steps: list[Step]) -> None:
    if all(step.survivors_id is None for step in steps):
        return
    ids = [np.empty(0, np.int64) if step.survivors_id is None else step.survivors_id for step in steps]
    probs = [np.empty(0, np.float32) if step.survivors_prob is None else step.survivors_prob for step in steps]
    out = group.create_group("survivors")
    out["id"] = np.concatenate(ids)
    out["prob"] = np.concatenate(probs)
    out["offset"] = np.cumsum([0, *(len(row) for row in ids)], dtype=np.int64)


def _write_draws(group: h5py.Group, draws: list[Draw]) -> None:
    if not draws:
        return
    out = group.create_group("draws")
    out["step"] = np.array([draw.step for draw in draws], dtype=np.int64)
    _write_strings(out, "op", [draw.op for draw in draws])
    _write_strings(out, "generator", [draw.generator for draw in draws])
    for name in DRAW_NUMBERS:
        values = [getattr(draw, name) for draw in draws]
        out[name] = np.array([0 if value is None else value % 2**64 for value in values], dtype=np.uint64)
    out["known"] = np.array([_known(draw) for draw in draws], dtype=np.uint8)
    out["result"] = np.array([NO_VALUE if draw.result is None else draw.result for draw in draws], dtype=np.int64)


def _known(draw: Draw) -> int:
    return sum(1 << bit for bit, name in enumerate(DRAW_NUMBERS) if getattr(draw, name) is not None)


def _write_events(group: h5py.Group, events: list[Event]) -> None:
    if not events:
        return
    out = group.create_group("events")
    out["step"] = np.array([event.step for event in events], dtype=np.int64)
    _write_strings(out, "kind", [event.kind for event in events])
    _write_strings(out, "detail", [json.dumps(event.detail) for event in events])


def _write_site(group: h5py.Group, sequence: Sequence, data: SiteData, site: Site | None) -> None:
    dataset = _create(group, _escape(data.name), (data.rows, data.width), data.dtype)
    for name, value in (
        ("dtype", data.dtype),
        ("order", site.order if site else NO_VALUE),
        ("module_class", site.module_class if site else ""),
        ("ranges", json.dumps(data.ranges)),
    ):
        dataset.attrs[name] = value
    rows_a_block = max(1, BLOCK_BYTES // max(1, data.width * STORAGE[data.dtype].itemsize))
    row = 0
    for first, stop in data.ranges:
        for begin in range(first, stop, rows_a_block):
            block = sequence.read(data.name, begin, min(stop, begin + rows_a_block))
            _write_rows(dataset, data.dtype, row, block)
            row += len(block)


def _create(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    space = h5py.h5s.create_simple(shape)
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), _file_type(dtype), space, plist))


def _write_rows(dataset: h5py.Dataset, dtype: str, first: int, rows: Array) -> None:
    if rows.size == 0:
        return
    _transfer(dataset, dtype, first, np.ascontiguousarray(rows), write=True)


def _transfer(dataset: h5py.Dataset, dtype: str, first: int, rows: Array, *, write: bool) -> None:
    """Move rows raw: memory type equal to file type, so HDF5 converts nothing and NaN payloads live."""
    file_space = dataset.id.get_space()
    file_space.select_hyperslab((first, 0), rows.shape)
    move = dataset.id.write if write else dataset.id.read
    move(h5py.h5s.create_simple(rows.shape), file_space, rows, mtype=_file_type(dtype))


def _escape(name: str) -> str:
    escaped = name.replace("%", "%25").replace("/", "%2F")
    return escaped.replace(".", "%2E") if not escaped.strip(".") else escaped


def _unescape(name: str) -> str:
    return name.replace("%2E", ".").replace("%2F", "/").replace("%25", "%")


# ---------------------------------------------------------------- reading


class _Reader:
    """Hands out datasets of a file that nobody vouches for: hard links, contiguous, no larger than the file."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.size = Path(path).stat().st_size
            self.file = h5py.File(path, "r")
        except OSError as error:
            reason = error.strerror or "HDF5 cannot open it; it is truncated or damaged"
            raise TraceError(f"{path}: cannot be read as a trace: {reason}") from None

    def fail(self, where: str, why: str) -> TraceError:
        return TraceError(f"{self.path}: {where}: {why}; record or import it again")

    def group(self, parent: h5py.Group, name: str) -> h5py.Group | None:
        item = self._item(parent, name)
        if item is not None and not isinstance(item, h5py.Group):
            raise self.fail(f"{parent.name}/{name}", "is not a group")
        return item

    def dataset(self, parent: h5py.Group, name: str) -> h5py.Dataset | None:
        item = self._item(parent, name)
        if item is None:
            return None
        where = str(item.name)
        if not isinstance(item, h5py.Dataset):
            raise self.fail(where, "is not a dataset")
        layout = item.id.get_create_plist().get_layout()
        if item.is_virtual or item.external or layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT):
            raise self.fail(where, "is not stored in one piece in this file")
        if h5py.check_vlen_dtype(item.dtype) is not None or h5py.check_ref_dtype(item.dtype) is not None:
            raise self.fail(where, "has a type that a trace never has")
        if item.shape is None or item.size * item.dtype.itemsize > self.size:
            raise self.fail(where, "claims to be larger than the file")
        stored = item.id.get_storage_size()
        if stored != item.size * item.id.get_type().get_size():
            raise self.fail(where, "is not all there")
        return item

    def _item(self, parent: h5py.Group, name: str) -> Any:
        link = parent.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise self.fail(f"{parent.name}/{name}", "is a link to elsewhere, which a trace never has")
        return parent.get(name)

    def json(self, parent: h5py.Group, name: str) -> Any:
        dataset = self.dataset(parent, name)
        if dataset is None:
            raise self.fail(f"{parent.name}/{name}", "is missing")
        try:
            return json.loads(dataset[()])
        except (ValueError, TypeError, RecursionError):
            raise self.fail(str(dataset.name), "is not JSON") from None

    def array(self, parent: h5py.Group, name: str, kind: str, ndim: int = 1) -> Array | None:
        dataset = self.dataset(parent, name)
        if dataset is None:
            return None
        if dataset.dtype.kind not in kind or dataset.ndim != ndim:
            raise self.fail(str(dataset.name), "has an unexpected type or shape")
        return np.asarray(dataset[()])

    def strings(self, parent: h5py.Group, name: str) -> list[str] | None:
        raw = self.array(parent, name, "S")
        return None if raw is None else [bytes(text).decode(errors="replace") for text in raw]


class ArchiveSequence:
    """One sequence of an `ArchiveTrace`; see `tracekit.trace.Sequence`."""

    def __init__(self, reader: _Reader, group: h5py.Group) -> None:
        self._reader = reader
        self._group = group
        self.index = int(group.attrs["sequence"])
        self.step_count = int(group.attrs["steps"])
        self.positions = int(group.attrs["positions"])
        reason = group.attrs.get("end_reason")
        self.end_reason = None if reason is None else str(reason)
        self._info: Json = reader.json(group, "config")
        if not isinstance(self._info, dict):
            raise reader.fail(str(group.name), "its config is not an object")
        if self.step_count and len(self.tokens) != self.step_count:
            raise reader.fail(str(group.name), "its steps are not all there")

    @cached_property
    def inputs(self) -> Mapping[str, Array]:
        group = self._reader.group(self._group, "prompt")
        names = [] if group is None else list(group)
        out = {}
        for name in names:
            dataset = self._reader.dataset(group, name)
            if dataset is not None:
                out[_unescape(name)] = np.asarray(dataset[()])
        return out

    @property
    def prompt_ids(self) -> Array | None:
        return self.inputs.get("token_ids")

    @property
    def prompt_text(self) -> str | None:
        return self._info.get("prompt_text")

    @property
    def texts(self) -> list[str] | None:
        return self._info.get("texts")

    @property
    def sampling(self) -> Json:
        return self._info.get("sampling") or {}

    @property
    def seed(self) -> int | None:
        return self._info.get("seed")

    @property
    def info(self) -> Json:
        known = ("prompt_text", "texts", "sampling", "seed")
        return {name: value for name, value in self._info.items() if name not in known}

    @property
    def rng_state(self) -> bytes | None:
        state = self._reader.array(self._group, "rng_state", "u")
        return None if state is None else state.tobytes()

    @cached_property
    def tokens(self) -> Array:
        steps = self._reader.group(self._group, "steps")
        tokens = None if steps is None else self._reader.array(steps, "token", "i")
        return np.empty(0, np.int64) if tokens is None else tokens

    @cached_property
    def _tables(self) -> dict[str, Any]:
        """The small columns of the steps, whole; logits stay on disk."""
        reader, steps = self._reader, self._reader.group(self._group, "steps")
        tables: dict[str, Any] = {}
        if steps is not None:
            tables["position"] = reader.array(steps, "position", "i")
            tables["text"] = reader.strings(steps, "text")
            tables["topk_id"] = reader.array(steps, "topk_id", "i", 2)
            tables["topk_logprob"] = reader.array(steps, "topk_logprob", "f", 2)
        survivors = reader.group(self._group, "survivors")
        if survivors is not None:
            tables["survivors"] = tuple(reader.array(survivors, name, "if") for name in ("id", "prob", "offset"))
        tables["draws"] = self._draws()
        tables["events"] = self._events()
        return tables

    def _draws(self) -> dict[int, list[Draw]]:
        group = self._reader.group(self._group, "draws")
        if group is None:
            return {}
        columns: list[Any] = [
            self._reader.array(group, name, "iu") for name in ("step", "result", "known", *DRAW_NUMBERS)
        ]
        columns += [self._reader.strings(group, name) for name in ("op", "generator")]
        if any(column is None or len(column) != len(columns[0]) for column in columns):
            raise self._reader.fail(str(group.name), "its columns differ in length")
        out: dict[int, list[Draw]] = {}
        for step, result, known, *numbers, op, generator in zip(*columns, strict=True):
            seed, offset, words = (int(n) if int(known) >> bit & 1 else None for bit, n in enumerate(numbers))
            drawn = None if result == NO_VALUE else int(result)
            out.setdefault(int(step), []).append(Draw(int(step), op, generator, seed, offset, words, drawn))
        return out

    def _events(self) -> dict[int, list[Event]]:
        group = self._reader.group(self._group, "events")
        if group is None:
            return {}
        steps = self._reader.array(group, "step", "i")
        kinds, details = (self._reader.strings(group, name) for name in ("kind", "detail"))
        if steps is None or kinds is None or details is None:
            raise self._reader.fail(str(group.name), "a column is missing")
        out: dict[int, list[Event]] = {}
        for step, kind, detail in zip(steps, kinds, details, strict=True):
            out.setdefault(int(step), []).append(Event(int(step), kind, json.loads(detail)))
        return out

    def step(self, index: int) -> Step:
        if not 0 <= index < self.step_count:
            raise IndexError(index)
        tables = self._tables
        logits = self.logits(index, index + 1)
        ids, probs = self._survivors(index)
        topk_id, topk_logprob, texts = tables["topk_id"], tables["topk_logprob"], tables["text"]
        return Step(
            index=index,
            position=int(tables["position"][index]),
            token=int(self.tokens[index]),
            text=None if texts is None else texts[index],
            logits=None if logits is None else logits[0],
            topk_id=None if topk_id is None else topk_id[index],
            topk_logprob=None if topk_logprob is None else topk_logprob[index],
            survivors_id=ids,
            survivors_prob=probs,
            draws=tuple(tables["draws"].get(index, ())),
            events=tuple(tables["events"].get(index, ())),
        )

    def _survivors(self, index: int) -> tuple[Array | None, Array | None]:
        ids, probs, offset = self._tables.get("survivors", (None, None, None))
        if ids is None or probs is None or offset is None:
            return None, None
        rows = slice(int(offset[index]), int(offset[index + 1]))
        return (ids[rows], probs[rows]) if rows.stop > rows.start else (None, None)

    @cached_property
    def _site_datasets(self) -> dict[str, tuple[SiteData, h5py.Dataset]]:
        group = self._reader.group(self._group, "sites")
        out = {}
        for name in [] if group is None else group:
            dataset = self._reader.dataset(group, name)
            if dataset is not None:
                data = self._site_data(_unescape(name), dataset)
                out[data.name] = (data, dataset)
        return out

    def _site_data(self, name: str, dataset: h5py.Dataset) -> SiteData:
        dtype = str(dataset.attrs.get("dtype"))
        ranges = json.loads(str(dataset.attrs.get("ranges", "null")))
        if dtype not in STORAGE or dataset.ndim != 2 or not isinstance(ranges, list):
            raise self._reader.fail(str(dataset.name), "is not a site of a trace")
        data = SiteData(name, dtype, int(dataset.shape[1]), tuple((int(a), int(b)) for a, b in ranges))
        if data.rows != dataset.shape[0] or dataset.id.get_type().get_size() != STORAGE[dtype].itemsize:
            raise self._reader.fail(str(dataset.name), "its rows are not those it claims")
        return data

    @property
    def sites(self) -> Mapping[str, SiteData]:
        return {name: data for name, (data, _) in self._site_datasets.items()}

    def read(self, site: str, first: int, stop: int) -> Array:
        if site not in self._site_datasets:
            raise TraceError(f"{self._reader.path}: sequence {self.index}: site {site!r} is not recorded")
        data, dataset = self._site_datasets[site]
        out = np.empty((stop - first, data.width), dtype=STORAGE[data.dtype])
        row = 0
        at = first
        for begin, end in data.ranges:
            if begin <= at < end:
                count = min(stop, end) - at
                if count * data.width:
                    _transfer(dataset, data.dtype, row + at - begin, out[at - first : at - first + count], write=False)
                at += count
            row += end - begin
        if at < stop:
            raise TraceError(
                f"{self._reader.path}: sequence {self.index}: site {site!r} is not recorded at position {at}"
            )
        return out

    @cached_property
    def _logits(self) -> tuple[str, h5py.Dataset] | None:
        steps = self._reader.group(self._group, "steps")
        dataset = None if steps is None else self._reader.dataset(steps, "logits")
        if dataset is None:
            return None
        kind = dataset.id.get_type()
        if kind.equal(_bfloat16_type()):
            return "bfloat16", dataset
        names = {"f2": "float16", "f4": "float32", "f8": "float64"}
        dtype = names.get(dataset.dtype.str[1:])
        if dtype is None or dataset.ndim != 2 or dataset.shape[0] != self.step_count:
            raise self._reader.fail(str(dataset.name), "is not the logits of the steps")
        return dtype, dataset

    @property
    def logits_dtype(self) -> str | None:
        return None if self._logits is None else self._logits[0]

    def logits(self, first: int, stop: int) -> Array | None:
        if self._logits is None:
            return None
        dtype, dataset = self._logits
        out = np.empty((stop - first, dataset.shape[1]), dtype=STORAGE[dtype])
        if out.size:
            _transfer(dataset, dtype, first, out, write=False)
        return out


class ArchiveTrace:
    """A trace read from an archive; see `tracekit.trace.Trace`. Raises TraceError where the file is not one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._reader = reader = _Reader(self.path)
        try:
            self._read(reader)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            reader.file.close()
            raise TraceError(f"{self.path}: is damaged: {' '.join(str(error).split())}; record it again") from None

    def _read(self, reader: _Reader) -> None:
        attrs = reader.file.attrs
        version = attrs.get("tracekit_format")
        if version is None:
            raise TraceError(f"{self.path}: is an HDF5 file, but not a trace; give a file that tracekit recorded")
        if int(version) != FORMAT:
            raise TraceError(
                f"{self.path}: is of format {version}, this tracekit reads format {FORMAT}; update tracekit"
            )
        self.implementation = str(attrs["implementation"])
        self.status = str(attrs["status"])
        detail = attrs.get("status_detail")
        self.status_detail = None if detail is None else str(detail)
        self.config: Json = dict(reader.json(reader.file, "config"))
        rows = reader.json(reader.file, "site_table")
        self.sites: Mapping[str, Site] = {row["name"]: site_from_row(row) for row in rows}
        self.weights: Mapping[str, Weight] = self._weights(reader)
        group = reader.group(reader.file, "sequences")
        names = [] if group is None else sorted(group, key=int)
        groups = [reader.group(group, name) for name in names]
        self.sequences = [ArchiveSequence(reader, item) for item in groups if item is not None]

    def _weights(self, reader: _Reader) -> dict[str, Weight]:
        group = reader.group(reader.file, "weights")
        if group is None:
            return {}
        names, dtypes, shapes = (reader.strings(group, name) or [] for name in ("name", "dtype", "shape"))
        digest = reader.array(group, "digest", "u")
        digests: list[int | None] = [None] * len(names) if digest is None else [int(number) for number in digest]
        rows = zip(names, dtypes, shapes, digests, strict=True)
        return {name: Weight(name, dtype, tuple(json.loads(shape)), number) for name, dtype, shape, number in rows}

    def close(self) -> None:
        """Close the file."""
        self._reader.file.close()

    def __enter__(self) -> ArchiveTrace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
