"""A trace read from its archive, an HDF5 file that is untrusted (`untrusted_hdf5`)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, wraps
from itertools import accumulate
from typing import Any, TypeVar

import h5py
import numpy as np

from tracekit.dtypes import STORAGE
from tracekit.formats.archive import (
    DRAW_NUMBERS,
    FORMAT,
    NO_LOGITS,
    NO_VALUE,
    bfloat16_type,
    digest_of,
    escape,
    in_whole_blocks,
    noted_count,
    noted_rows,
    notes_of,
    unescape,
)
from tracekit.formats.file_values import (
    DRAW,
    SITE,
    WEIGHT,
    check,
    check_config,
    check_ids,
    check_sequence,
    reading,
)
from tracekit.formats.untrusted_hdf5 import UntrustedFile
from tracekit.formats.weight_digests import read_digests
from tracekit.interactive import Browsable, BrowsableSequence
from tracekit.trace import (
    ENCODER,
    NO_TOKEN,
    Array,
    Blocks,
    Draw,
    Event,
    Json,
    Site,
    SiteData,
    Step,
    TraceError,
    Weight,
    site_from_row,
)

Read = TypeVar("Read")


def _reads(method: Callable[..., Read]) -> Callable[..., Read]:
    """A method of a sequence that asks HDF5: what HDF5 raises becomes a TraceError."""

    @wraps(method)
    def read(sequence: ArchiveSequence, *arguments: Any) -> Read:
        with reading(sequence.path):
            return method(sequence, *arguments)

    return read


CHECKED_BLOCKS = 8
"""Blocks of a sequence that are read, at most, to see whether its digests are those of its values."""


@dataclass(frozen=True)
class _Noted:
    """What is noted of all blocks of a sequence, one site's after the other's, and where each site's begin."""

    place: Mapping[str, int]
    digest: Array
    finite: Array

    def of(self, data: SiteData) -> Blocks:
        """What is noted of one site."""
        these = slice(self.place[data.name], self.place[data.name] + noted_count(data))
        return Blocks(data.ranges, noted_rows(data), self.digest[these], self.finite[these])


class ArchiveSequence(BrowsableSequence):
    """One sequence of an `ArchiveTrace`; see `tracekit.trace.Sequence`."""

    def __init__(self, reader: UntrustedFile, group: h5py.Group, site_table: Mapping[str, Site]) -> None:
        self.path = reader.path
        self.site_table = site_table
        self._reader = reader
        self._group = group
        self._mapped: dict[str, Array] = {}
        self._blocks: dict[str, Blocks] = {}
        self.index = reader.number(group, "sequence")
        self.step_count = reader.number(group, "steps")
        self.positions = reader.number(group, "positions")
        self.end_reason = reader.text(group, "end_reason")
        self.end_detail = reader.text(group, "end_detail")
        if min(self.index, self.step_count, self.positions) < 0:
            raise reader.fail(str(group.name), "its counts are negative")
        self._info: Json = check_sequence(reader.json(group, "config"))
        if self.step_count and len(self.tokens) != self.step_count:
            raise reader.fail(str(group.name), "its steps are not all there")

    @cached_property
    @_reads
    def inputs(self) -> Mapping[str, Array]:
        group = self._reader.group(self._group, "prompt")
        names = [] if group is None else list(group)
        out = {}
        for name in names:
            dataset = self._reader.dataset(group, name)
            if dataset is not None:
                asked = unescape(name)
                value = np.asarray(dataset[()])
                if value.dtype.kind not in "biuf":
                    raise self._reader.fail(str(dataset.name), "does not hold numbers")
                ids = asked.endswith("token_ids")
                out[asked] = check_ids(value, f"its {asked}", least=NO_TOKEN) if ids else value
        return out

    @property
    def prompt_ids(self) -> Array | None:
        return self.inputs.get("token_ids")

    @property
    def prompt_text(self) -> str | None:
        return self._info.get("prompt_text")

    @property
    def texts(self) -> list[str | None] | None:
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
    @_reads
    def rng_state(self) -> bytes | None:
        state = self._reader.array(self._group, "rng_state", "u")
        return None if state is None else state.tobytes()

    @cached_property
    @_reads
    def tokens(self) -> Array:
        steps = self._reader.group(self._group, "steps")
        tokens = None if steps is None else self._reader.array(steps, "token", "i")
        if tokens is None:
            return np.empty(0, np.int64)
        logits = self._logits
        return check_ids(tokens, "its tokens", *(() if logits is None else (logits[1].shape[1] - 1,)))

    @cached_property
    @_reads
    def _tables(self) -> dict[str, Any]:
        """The small columns of the steps, whole; logits stay on disk."""
        reader, steps = self._reader, self._reader.group(self._group, "steps")
        tables: dict[str, Any] = {}
        tables["position"] = self._column("position", "i")
        tables["text"] = None if steps is None else reader.strings(steps, "text")
        texts = tables["text"]
        if tables["position"] is None or (texts is not None and len(texts) != self.step_count):
            raise reader.fail(f"{self._group.name}/steps", "a column is missing or too short")
        tables["topk_id"] = self._column("topk_id", "i", 2)
        tables["topk_logprob"] = self._column("topk_logprob", "f", 2)
        ranked = [tables[name] for name in ("topk_id", "topk_logprob") if tables[name] is not None]
        if len({rows.shape for rows in ranked}) > 1 or len(ranked) == 1:
            raise reader.fail(f"{self._group.name}/steps", "topk_id and topk_logprob differ in shape")
        if ranked:
            check_ids(ranked[0].reshape(-1), "its topk_id")
        survivors = reader.group(self._group, "survivors")
        if survivors is not None:
            tables["survivors"] = self._ragged(survivors)
        tables["draws"] = self._draws()
        tables["events"] = self._events()
        return tables

    def _ragged(self, group: h5py.Group) -> tuple[Array, Array, Array]:
        """ids, probabilities and the offsets of the steps' rows in them."""
        ids, probs = self._reader.array(group, "id", "i"), self._reader.array(group, "prob", "f")
        offset = self._reader.array(group, "offset", "i")
        sound = ids is not None and probs is not None and offset is not None and len(ids) == len(probs)
        if not sound or ids is None or probs is None or offset is None:
            raise self._reader.fail(str(group.name), "a column is missing or too short")
        if (
            len(offset) != self.step_count + 1
            or offset[0] != 0
            or offset[-1] != len(ids)
            or (np.diff(offset) < 0).any()
        ):
            raise self._reader.fail(str(group.name), "its offsets do not fit the steps")
        logits = self._logits
        return check_ids(ids, "its survivors", *(() if logits is None else (logits[1].shape[1] - 1,))), probs, offset

    def _column(self, name: str, kind: str, ndim: int = 1) -> Array | None:
        """A column of the steps, one row a step."""
        steps = self._reader.group(self._group, "steps")
        column = None if steps is None else self._reader.array(steps, name, kind, ndim)
        if column is not None and len(column) != self.step_count:
            raise self._reader.fail(f"{self._group.name}/steps/{name}", "does not have a row for every step")
        return column

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
            row = {"op": op, "generator": generator, "seed": seed, "offset": offset, "words": words, "result": drawn}
            check("a draw", row, DRAW)
            self._check_step(int(step))
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
        try:
            for step, kind, detail in zip(steps, kinds, details, strict=True):
                self._check_step(int(step))
                out.setdefault(int(step), []).append(Event(int(step), kind, json.loads(detail)))
        except (ValueError, RecursionError):
            raise self._reader.fail(str(group.name), "its columns differ in length or are not JSON") from None
        return out

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.step_count:
            raise ValueError(f"sequence {self.index} has no step {step}")

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

    @property
    def events(self) -> tuple[Event, ...]:
        rows = self._tables["events"] if self.step_count else {}
        return tuple(event for step in sorted(rows) for event in rows[step])

    def _survivors(self, index: int) -> tuple[Array | None, Array | None]:
        if "survivors" not in self._tables:
            return None, None
        ids, probs, offset = self._tables["survivors"]
        rows = slice(int(offset[index]), int(offset[index + 1]))
        return (ids[rows], probs[rows]) if rows.stop > rows.start else (None, None)

    @cached_property
    @_reads
    def sites(self) -> Mapping[str, SiteData]:
        index = self._reader.json(self._group, "site_index")
        try:
            sites = [self._site_data(str(name), *entry) for name, *entry in index]
        except (TypeError, ValueError):
            raise self._reader.fail(f"{self._group.name}/site_index", "is not an index of sites") from None
        return {data.name: data for data in sites}

    def _site_data(self, name: str, dtype: Any, width: Any, ranges: Any, axis: Any = None) -> SiteData:
        data = SiteData(name, dtype, width, tuple((int(first), int(stop)) for first, stop in ranges), axis)
        bounds = [bound for pair in data.ranges for bound in pair]
        if (
            dtype not in STORAGE
            or axis not in (None, ENCODER)
            or type(width) is not int
            or width < 0
            or bounds != sorted(bounds)
            or min(bounds, default=0) < 0
        ):
            raise self._reader.fail(f"{self._group.name}/sites/{name}", "is not a site of a trace")
        return data

    @cached_property
    @_reads
    def _site_group(self) -> h5py.Group | None:
        return self._reader.group(self._group, "sites")

    @_reads
    def _values(self, data: SiteData) -> Array:
        """All rows of a site, [rows, width], a view into the file."""
        values: Array | None = None
        if data.name in self._offsets:
            values = self._reader.view(self._offsets[data.name], (data.rows, data.width), data.dtype)
        elif self._site_group is not None:
            values = self._reader.rows(self._site_group, escape(data.name), data.dtype)
        if values is None or values.shape != (data.rows, data.width):
            raise self._reader.fail(f"{self._group.name}/sites/{data.name}", "its rows are not those it claims")
        self._mapped[data.name] = values
        return values

    @cached_property
    @_reads
    def _notes(self) -> h5py.Group | None:
        """The group of what the writer noted, while the file is as it was written."""
        return self._reader.group(self._group, "blocks") if self._reader.as_written else None

    @cached_property
    @_reads
    def _offsets(self) -> Mapping[str, int]:
        """Where the values of each site begin, noted so that HDF5 need not be asked: that takes 0.5 ms a site. Empty
        where it is not noted, or HDF5 says otherwise of the first or the last one."""
        column = None if self._notes is None else self._reader.array(self._notes, "offset", "u")
        if column is None or self._site_group is None:
            return {}
        if len(column) != len(self.sites):
            raise self._reader.fail(f"{self._group.name}/blocks", "a column is missing or too short")
        offsets = {name: int(offset) for name, offset in zip(self.sites, column, strict=True) if offset}
        looked_at = {name: offsets[name] for name in list(offsets)[:: max(1, len(offsets) - 1)]}
        told = {name: self._reader.offset(self._site_group, escape(name)) for name in looked_at}
        return offsets if told == looked_at else {}

    def read(self, site: str, first: int, stop: int) -> Array:
        data = self.sites.get(site)
        if data is None:
            raise TraceError(f"{self._reader.path}: sequence {self.index}: site {site!r} is not recorded")
        values = self._mapped.get(site)
        if values is None:
            values = self._values(data)
        self._reader.handed_out((stop - first) * values[:1].nbytes)
        pieces = []
        row, at = 0, first
        for begin, end in data.ranges:
            if begin <= at < min(end, stop):
                last = min(stop, end)
                pieces.append(values[row + at - begin : row + last - begin])
                at = last
            row += end - begin
        if at < stop:
            raise TraceError(
                f"{self._reader.path}: sequence {self.index}: site {site!r} is not recorded at position {at}"
            )
        return pieces[0] if len(pieces) == 1 else np.concatenate([values[:0], *pieces])

    def blocks(self, site: str) -> Blocks | None:
        """As `tracekit.trace.Sequence`. Where what the file notes is not believed, it is taken of the values: they are
        read once, and not again by everyone who asks whether they are equal or finite."""
        data = self.sites.get(site)
        if data is None:
            return None
        if site not in self._blocks:
            self._blocks[site] = self._digests(data) if self._noted is None else self._noted.of(data)
        return self._blocks[site]

    def _digests(self, data: SiteData) -> Blocks:
        """What would be noted of a site's values as they are."""
        read = (self.read(data.name, first, stop) for first, stop in in_whole_blocks(data))
        notes = [note for rows in read for note in notes_of(data, rows)]
        digest, finite = (np.array([note[at] for note in notes], dtype=kind) for at, kind in ((0, "u8"), (1, "?")))
        return Blocks(data.ranges, noted_rows(data), digest, finite)

    @cached_property
    @_reads
    def _noted(self) -> _Noted | None:
        group = self._notes
        if group is None:
            return None
        digest, finite = (self._reader.array(group, name, "u") for name in ("digest", "finite"))
        counts = [noted_count(data) for data in self.sites.values()]  # before anything is made of what ranges claim
        if digest is None or finite is None or len(digest) != sum(counts) or len(finite) != sum(counts):
            raise self._reader.fail(str(group.name), "a column is missing or too short")
        noted = _Noted(dict(zip(self.sites, accumulate(counts, initial=0), strict=False)), digest, finite == 1)
        return noted if self._holds(noted) else None

    def _holds(self, noted: _Noted) -> bool:
        """Whether some blocks, spread over the sites, have the digests that are noted of them. A writer whose digests
        are not of its values is found by any of them; damage to a value cannot make two runs equal that were not: the
        digest is of what the program computed."""
        of_site = [name for name, data in self.sites.items() for _ in range(noted_count(data))]
        for index in sorted({int(at) for at in np.linspace(0, len(of_site) - 1, CHECKED_BLOCKS)} if of_site else ()):
            data = self.sites[of_site[index]]
            blocks, block = noted.of(data), index - noted.place[data.name]
            rows = blocks.stop - blocks.first
            begin = int(rows[:block].sum())
            if digest_of(self._values(data)[begin : begin + int(rows[block])]) != blocks.digest[block]:
                return False
        return True

    @cached_property
    @_reads
    def _logits(self) -> tuple[str, Array] | None:
        steps = self._reader.group(self._group, "steps")
        dataset = None if steps is None else self._reader.dataset(steps, "logits")
        if dataset is None:
            return None
        names = {"f2": "float16", "f4": "float32", "f8": "float64"}
        bfloat16 = dataset.id.get_type().equal(bfloat16_type())
        dtype = "bfloat16" if bfloat16 else names.get(dataset.dtype.str[1:])
        if dtype is None or dataset.ndim != 2 or dataset.shape[0] != self.step_count:
            raise self._reader.fail(str(dataset.name), "is not the logits of the steps")
        rows = self._reader.rows(steps, "logits", dtype)
        return None if rows is None else (dtype, rows)

    @property
    def logits_dtype(self) -> str | None:
        return None if self._logits is None else self._logits[0]

    def logits(self, first: int, stop: int) -> Array | None:
        rows = None if self._logits is None else self._logits[1][first:stop]
        if rows is None or not rows.size:
            return rows
        starts = np.ascontiguousarray(rows[:, :1]).view(np.uint8)
        return None if (starts == NO_LOGITS).all() else rows


class ArchiveTrace(Browsable):
    """A trace read from an archive; see `tracekit.trace.Trace`. Raises TraceError where the file is not one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._reader = reader = UntrustedFile(self.path)
        try:
            with reading(self.path):
                self._read(reader)
        except TraceError:
            reader.close()
            raise

    def _read(self, reader: UntrustedFile) -> None:
        if "tracekit_format" not in reader.file.attrs:
            raise TraceError(f"{self.path}: is an HDF5 file, but not a trace; give a file that tracekit recorded")
        version = reader.number(reader.file, "tracekit_format")
        if version != FORMAT:
            raise TraceError(
                f"{self.path}: is of format {version}, this tracekit reads format {FORMAT}; update tracekit"
            )
        implementation, status = (reader.text(reader.file, name) for name in ("implementation", "status"))
        if implementation is None or status not in ("complete", "recovered"):
            raise ValueError("its implementation or status is missing")
        self.implementation, self.status = implementation, status
        self.status_detail = reader.text(reader.file, "status_detail")
        self.config: Json = check_config(reader.json(reader.file, "config"))
        rows = [
            check("a site", row, SITE, ("name", "class", "order")) for row in reader.json(reader.file, "site_table")
        ]
        self.sites: Mapping[str, Site] = {row["name"]: site_from_row(row) for row in rows}
        self.weights: Mapping[str, Weight] = self._weights(reader)
        group = reader.group(reader.file, "sequences")
        names = [] if group is None else sorted(group, key=int)
        groups = [reader.group(group, name) for name in names]
        self.sequences = [ArchiveSequence(reader, item, self.sites) for item in groups if item is not None]
        if [sequence.index for sequence in self.sequences] != list(range(len(self.sequences))):
            raise ValueError("its sequences are not counted from 0")

    def _weights(self, reader: UntrustedFile) -> dict[str, Weight]:
        group = reader.group(reader.file, "weights")
        if group is None:
            return {}
        names, dtypes, shapes = (reader.strings(group, name) or [] for name in ("name", "dtype", "shape"))
        digests = read_digests(reader.array(group, "digest", "u"), len(names))
        rows = zip(names, dtypes, shapes, digests, strict=True)
        weights = {}
        for name, dtype, shape, number in rows:
            row = check("a parameter", {"name": name, "dtype": dtype, "shape": json.loads(shape)}, WEIGHT)
            weights[name] = Weight(name, dtype, tuple(row["shape"]), number)
        return weights

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def __enter__(self) -> ArchiveTrace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
