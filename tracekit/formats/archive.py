"""The archive (`*.h5`): a closed trace as plain HDF5, as docs/format.md specifies it.

Written under a temporary name and renamed, so a file under its final name is always whole. HDF5 makes the datasets and
says where their values lie; they are then written there in large blocks, past HDF5, whose calls cost 160-250 us each.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from tracekit.dtypes import STORAGE, all_finite
from tracekit.formats.unfailing_file import UnfailingFile
from tracekit.formats.weight_digests import written_digests
from tracekit.trace import (
    Array,
    Draw,
    Event,
    Sequence,
    Site,
    SiteData,
    Step,
    Trace,
    TraceError,
    Weight,
    site_to_row,
)

FORMAT = 1
BLOCK_BYTES = 8 << 20
"""Bytes of a site that are gathered and written at a time."""
UNFINISHED = ".partial"
"""Ends the name of an archive that is being written."""
NOTED_BYTES = 512 << 10
"""Bytes of a site's rows that one digest is taken of (docs/format.md)."""
ALIGNED_BYTES, ALIGNMENT = 1 << 10, 64
"""Size from which values begin at a multiple of the other number, in bytes."""
ATTRIBUTE_BYTES = 32 << 10
"""Longest text of an attribute; HDF5 allows 64 KB for all of a group."""
NO_LOGITS = 0xFF
"""Each byte of the row of a step without logits: a NaN that no arithmetic gives."""
NO_VALUE = -1
"""Stands for a missing `result` of a draw."""
DRAW_NUMBERS = ("seed", "offset", "words")
"""Numbers of a draw that may be unknown; bit i of `draws/known` says whether the i-th is known."""


def bfloat16_type() -> h5py.h5t.TypeID:
    """bfloat16 as a custom HDF5 float, so that h5dump prints its values."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)  # sign, exponent position and size, mantissa position and size
    kind.set_size(2)
    kind.set_precision(16)
    kind.set_ebias(127)
    return kind


@cache
def _file_type(dtype: str) -> h5py.h5t.TypeID:
    return bfloat16_type() if dtype == "bfloat16" else h5py.h5t.py_create(STORAGE[dtype], logical=True)


def write_archive(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write `trace` as an archive at `path`, replacing what was there only when all of it is on disk.

    Raises TraceError where the folder cannot be written. Memory is bounded by `BLOCK_BYTES`.
    """
    target = Path(path)
    try:
        _remove_unfinished(target)
        handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=UNFINISHED)
    except OSError as error:
        raise TraceError(f"{target}: cannot be written: {error.strerror}") from None
    _lock(handle)
    try:
        now = time.time_ns() // 1000 * 1000  # file systems keep microseconds, if not more
        with UnfailingFile(scratch) as held, _new_file(held) as file:
            file.attrs["written"] = now
            _write_trace(file, held, trace)
        os.utime(scratch, ns=(now, now))
        _flush_to_disk(scratch)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(target)
    except OSError as error:
        raise TraceError(f"{target}: cannot be written: {error}") from None
    finally:
        os.close(handle)
        with contextlib.suppress(FileNotFoundError):
            Path(scratch).unlink()


def _new_file(held: UnfailingFile) -> h5py.File:
    """An empty HDF5 file. What is large begins at a multiple of `ALIGNMENT`: an array whose elements do not lie at
    multiples of their size is copied by numpy before it computes with it."""
    return h5py.File(held, "w", libver="earliest", alignment_threshold=ALIGNED_BYTES, alignment_interval=ALIGNMENT)


def _remove_unfinished(target: Path) -> None:
    """Remove what writers that were killed left of `target`. One that still writes holds a lock on its file."""
    with os.scandir(target.parent) as entries:
        left = [
            entry.path
            for entry in entries
            if entry.name.startswith(f".{target.name}.") and entry.name.endswith(UNFINISHED)
        ]
    for path in left:
        with contextlib.suppress(OSError), Path(path).open("rb") as file:
            # An empty one may be a writer's that has not come to its lock.
            if os.fstat(file.fileno()).st_size and _lock(file.fileno()):
                Path(path).unlink()


def _lock(handle: int) -> bool:
    """Lock a file until it is closed. False where another one holds it, or the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _flush_to_disk(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_trace(file: h5py.File, held: UnfailingFile, trace: Trace) -> None:
    file.attrs["tracekit_format"] = FORMAT
    _write_attribute(file.id, "implementation", trace.implementation)
    _write_attribute(file.id, "status", trace.status)
    if trace.status_detail:
        _write_attribute(file.id, "status_detail", trace.status_detail)
    _write_json(file, "config", trace.config)
    _write_json(file, "site_table", [site_to_row(site) for site in trace.sites.values()])
    if trace.weights:
        _write_weights(file.create_group("weights"), list(trace.weights.values()))
    sequences = file.create_group("sequences")
    for sequence in trace.sequences:
        _write_sequence(sequences.create_group(str(sequence.index)), held, sequence, trace)


def _write_attribute(item: h5py.h5g.GroupID | h5py.h5d.DatasetID, name: str, text: str) -> None:
    """Of fixed length: strings of any length lie in a heap, in which HDF5 runs in circles where it is damaged."""
    encoded = text.encode(errors="replace")[:ATTRIBUTE_BYTES]
    length = max(len(encoded), 1)
    _attach(item, name, np.array(encoded, dtype=f"S{length}"), _text_type(length))


def _attach(item: h5py.h5g.GroupID | h5py.h5d.DatasetID, name: str, value: Array, kind: h5py.h5t.TypeID) -> None:
    """Write an attribute of one value, as `attrs.create` of h5py would in 250 us: a trace has a thousand."""
    h5py.h5a.create(item, name.encode(), kind, _one_value()).write(value, mtype=kind)


@cache
def _one_value() -> h5py.h5s.SpaceID:
    return h5py.h5s.create(h5py.h5s.SCALAR)


@cache
def _text_type(length: int) -> h5py.h5t.TypeID:
    return h5py.h5t.py_create(h5py.string_dtype("utf-8", length), logical=True)


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
    group["digest"] = written_digests(weight.digest for weight in weights)


def _write_sequence(group: h5py.Group, held: UnfailingFile, sequence: Sequence, trace: Trace) -> None:
    group.attrs["sequence"] = sequence.index
    group.attrs["steps"] = sequence.step_count
    group.attrs["positions"] = sequence.positions
    if sequence.end_reason is not None:
        _write_attribute(group.id, "end_reason", sequence.end_reason)
    if sequence.end_detail is not None:
        _write_attribute(group.id, "end_detail", sequence.end_detail)
    info = {
        "prompt_text": sequence.prompt_text,
        "texts": sequence.texts,
        "sampling": sequence.sampling,
        "seed": sequence.seed,
        **sequence.info,
    }
    _write_json(group, "config", info)
    for name, value in sequence.inputs.items():
        group.create_dataset(f"prompt/{escape(name)}", data=value)
    if sequence.rng_state is not None:
        group["rng_state"] = np.frombuffer(sequence.rng_state, dtype=np.uint8)
    if sequence.step_count:
        _write_steps(group, held, sequence)
    stored = sequence.sites
    _write_json(group, "site_index", [_index_entry(data) for data in stored.values()])
    sites = group.create_group("sites")
    blocks: list[tuple[int, bool]] = []
    offsets = []
    for name, data in stored.items():
        offset, noted = _write_site(sites, held, sequence, data, trace.sites.get(name))
        offsets.append(offset)
        blocks += noted
    notes = group.create_group("blocks")
    notes["offset"] = np.array(offsets, dtype=np.uint64)
    notes["digest"] = np.array([digest for digest, _ in blocks], dtype=np.uint64)
    notes["finite"] = np.array([finite for _, finite in blocks], dtype=np.uint8)


def _index_entry(data: SiteData) -> list[Any]:
    entry = [data.name, data.dtype, data.width, data.ranges]
    return entry if data.axis is None else [*entry, data.axis]


def _write_steps(group: h5py.Group, held: UnfailingFile, sequence: Sequence) -> None:
    steps = [sequence.step(index) for index in range(sequence.step_count)]
    out = group.create_group("steps")
    out["token"] = sequence.tokens
    out["position"] = np.array([step.position for step in steps], dtype=np.int64)
    if any(step.text is not None for step in steps):
        _write_strings(out, "text", [step.text or "" for step in steps])
    _write_logits(out, held, steps, sequence.logits_dtype)
    for name in ("topk_id", "topk_logprob"):
        rows = [getattr(step, name) for step in steps]
        if all(row is not None and row.shape == rows[0].shape for row in rows):
            out[name] = np.stack(rows)
    _write_survivors(group, steps)
    _write_draws(group, [draw for step in steps for draw in step.draws])
    _write_events(group, [event for step in steps for event in step.events])


def _write_logits(group: h5py.Group, held: UnfailingFile, steps: list[Step], dtype: str | None) -> None:
    width = next((step.logits.shape[0] for step in steps if step.logits is not None), None)
    if dtype is None or width is None:
        return
    offset = _place(_create(group, "logits", (len(steps), width), dtype))
    for step in steps:
        row = _logits_row(step, width, dtype)
        held.write_at(offset, row)
        offset += row.nbytes


def _logits_row(step: Step, width: int, dtype: str) -> Array:
    if step.logits is not None and step.logits.shape == (width,):
        return step.logits
    return np.full(width * np.dtype(STORAGE[dtype]).itemsize, NO_LOGITS, dtype=np.uint8).view(STORAGE[dtype])


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


def _write_site(
    group: h5py.Group, held: UnfailingFile, sequence: Sequence, data: SiteData, site: Site | None
) -> tuple[int, list[tuple[int, bool]]]:
    """Where the values of a site begin in the file, 0 where it has none; and what is noted of each block."""
    dataset = _create(group, escape(data.name), (data.rows, data.width), data.dtype)
    for name, value in (
        ("dtype", data.dtype),
        ("order", site.order if site else NO_VALUE),
        ("module_class", site.module_class if site else ""),
        ("ranges", json.dumps(data.ranges)),
    ):
        if isinstance(value, str):
            _write_attribute(dataset, name, value)
        else:
            _attach(dataset, name, np.array(value, dtype=np.int64), h5py.h5t.STD_I64LE)
    noted = []
    at = offset = _place(dataset)
    for begin, end in in_whole_blocks(data):
        rows = np.ascontiguousarray(sequence.read(data.name, begin, end))
        held.write_at(at, rows)
        noted += notes_of(data, rows)
        at += rows.nbytes
    return offset, noted


def noted_rows(data: SiteData) -> int:
    """Rows of a site that one digest is taken of."""
    return max(1, NOTED_BYTES // max(1, data.width * STORAGE[data.dtype].itemsize))


def noted_count(data: SiteData) -> int:
    """How many blocks of a site a digest is taken of."""
    step = noted_rows(data)
    return sum(-((first - stop) // step) for first, stop in data.ranges)


def in_whole_blocks(data: SiteData) -> Iterator[tuple[int, int]]:
    """Positions [first, stop) of the rows that are moved at a time: whole blocks."""
    step = noted_rows(data)
    step *= max(1, BLOCK_BYTES // max(1, step * data.width * STORAGE[data.dtype].itemsize))
    return ((at, min(stop, at + step)) for first, stop in data.ranges for at in range(first, stop, step))


def digest_of(rows: Array) -> int:
    """XXH3-64 of the bytes of a block."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)


def notes_of(data: SiteData, rows: Array) -> list[tuple[int, bool]]:
    """Of rows of a site from the start of a block on: digest of the bytes of each block, and whether its values are all
    finite."""
    step = noted_rows(data)
    blocks = (rows[first : first + step] for first in range(0, len(rows), step))
    return [(digest_of(block), all_finite(block, data.dtype)) for block in blocks]


def _create(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> h5py.h5d.DatasetID:
    """A dataset of this file type, little-endian, whose values HDF5 neither writes nor converts: NaN payloads live."""
    space = h5py.h5s.create_simple(shape)
    return h5py.h5d.create(group.id, name.encode(), _file_type(dtype), space, _unwritten())


@cache
def _unwritten() -> h5py.h5p.PropDCID:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    return plist


def _place(dataset: h5py.h5d.DatasetID) -> int:
    """The byte of the file at which the values of a dataset go; 0 where it has none."""
    return dataset.get_offset() or 0


def escape(name: str) -> str:
    escaped = name.replace("%", "%25").replace("/", "%2F")
    return escaped.replace(".", "%2E") if not escaped.strip(".") else escaped


def unescape(name: str) -> str:
    return name.replace("%2E", ".").replace("%2F", "/").replace("%25", "%")
