"""A trace read straight from its log: an index of frames over the mapped file, values read on demand."""

from __future__ import annotations

import math
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from tracekit.dtypes import STORAGE, is_float, to_float
from tracekit.formats.file_values import (
    DRAW,
    END,
    LIBRARY_ERRORS,
    MOST_POSITION,
    SITE,
    STEP,
    TOLD_AT_END,
    WEIGHT,
    check,
    check_config,
    check_ids,
    check_sequence,
)
from tracekit.formats.log import FORMAT, BadFrame, Frame, Stored, map_file, read_frames
from tracekit.formats.weight_digests import read_digests
from tracekit.interactive import Browsable, BrowsableSequence
from tracekit.trace import (
    ENCODER,
    NO_TOKEN,
    Array,
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

CONFIG_KEYS = (
    "versions",
    "device",
    "dtype",
    "model",
    "sampling",
    "seed",
    "command",
    "checkpoint",
    "recorder",
    "arithmetic",
    "follow",
)


@dataclass
class _Calls:
    """Calls of the same tensors, one after the other: `rows` positions each, from `first` on."""

    layout: Mapping[str, Stored]
    axis: str | None
    first: int
    rows: int
    columns: list[tuple[_Column, int]]
    """Columns that it adds to, and where their values lie in the data of a call."""
    starts: list[int] = field(default_factory=list)
    """Where the data of each call begins in the file."""

    @property
    def stop(self) -> int:
        return self.first + self.rows * len(self.starts)

    @cached_property
    def places(self) -> Array:
        """`starts`, when all are known, i64."""
        return np.array(self.starts, dtype=np.int64)

    def goes_on(self, frame: Frame, first: int, rows: int, axis: str | None) -> bool:
        """Whether a call is the next one."""
        return frame.tensors is self.layout and (first, rows, axis) == (self.stop, self.rows, self.axis)


@dataclass
class _Segment:
    """Rows [first, stop) of a site, of these calls; `offset` is where its values lie in the data of a call."""

    first: int
    stop: int
    calls: _Calls
    offset: int


@dataclass
class _Column:
    """All rows of one site in one sequence."""

    dtype: str
    width: int
    segments: list[_Segment] = field(default_factory=list)
    axis: str | None = None
    ended: bool = False

    @property
    def row_bytes(self) -> int:
        return self.width * STORAGE[self.dtype].itemsize

    def add(self, first: int, stop: int, calls: _Calls, offset: int) -> None:
        """Later rows win over earlier ones of the same positions (a cache that was rewound)."""
        if self.segments and self.segments[-1].stop > first:
            self._cut(first, stop)
        self.segments.append(_Segment(first, stop, calls, offset))
        if len(self.segments) > 1 and self.segments[-2].first > first:
            self.segments.sort(key=lambda segment: segment.first)

    def _cut(self, first: int, stop: int) -> None:
        kept = []
        for old in self.segments:
            if old.first < first:
                kept.append(replace(old, stop=min(old.stop, first)))
            if old.stop > stop:
                kept.append(replace(old, first=max(old.first, stop)))
        self.segments = kept

    def ranges(self) -> tuple[tuple[int, int], ...]:
        merged: list[tuple[int, int]] = []
        for segment in self.segments:
            if merged and merged[-1][1] == segment.first:
                merged[-1] = (merged[-1][0], segment.stop)
            else:
                merged.append((segment.first, segment.stop))
        return tuple(merged)


class LogSequence(BrowsableSequence):
    """One sequence of a `LogTrace`; see `tracekit.trace.Sequence`."""

    def __init__(self, trace: LogTrace, frame: Frame) -> None:
        self._trace = trace
        self._frame = frame
        self.index: int = frame.metadata["sequence"]
        check_sequence(frame.metadata)
        for name in frame.tensors:
            if name.endswith("token_ids"):
                check_ids(self._array(frame, name), f"its {name}", least=NO_TOKEN)
        self._columns: dict[str, _Column] = {}
        self._calls: dict[int, _Calls] = {}  # those that may go on, no two of one site; by identity of their layout
        self._steps: list[Frame] = []
        self.positions = 0
        self.end_reason: str | None = None
        self.end_detail: str | None = None
        self.told_at_end: Json = {}
        """What is not known before the sequence ends."""
        self._recomputed: int | None = None

    @property
    def path(self) -> str:
        return self._trace.path

    @property
    def site_table(self) -> Mapping[str, Site]:
        return self._trace.sites

    @property
    def inputs(self) -> Mapping[str, Array]:
        names = [name for name in self._frame.tensors if name.startswith("prompt/")]
        return {name.removeprefix("prompt/"): self._numbers(name) for name in names}

    def _numbers(self, name: str) -> Array:
        """A tensor of the sequence's frame. An archive says no dtype of these, so that those which numpy lacks are
        widened: exactly, to float32."""
        held, dtype = self._array(self._frame, name), self._frame.tensors[name].dtype
        return to_float(held, dtype) if is_float(dtype) and held.dtype.kind != "f" else held

    @property
    def prompt_ids(self) -> Array | None:
        return self.inputs.get("token_ids")

    @property
    def prompt_text(self) -> str | None:
        return self._frame.metadata.get("prompt_text")

    @property
    def texts(self) -> list[str | None] | None:
        return self._frame.metadata.get("texts")

    @property
    def sampling(self) -> Json:
        return self._frame.metadata.get("sampling") or self._trace.config.get("sampling") or {}

    @property
    def seed(self) -> int | None:
        seed = self._frame.metadata.get("seed")
        return self._trace.config.get("seed") if seed is None else seed

    @property
    def info(self) -> Json:
        known = ("sequence", "prompt_text", "texts", "sampling", "seed")
        told = {name: value for name, value in self._frame.metadata.items() if name not in known}
        seen = {"recomputed": self._recomputed, **self.told_at_end}
        return told | {name: value for name, value in seen.items() if value is not None}

    @property
    def rng_state(self) -> bytes | None:
        state = self._frame.array(self._trace.data, "rng/state")
        return None if state is None else state.tobytes()

    @property
    def step_count(self) -> int:
        return len(self._steps)

    @property
    def tokens(self) -> Array:
        return np.array([self._token(frame) for frame in self._steps], dtype=np.int64)

    def step(self, index: int) -> Step:
        frame = self._steps[index]
        metadata = frame.metadata
        logits, topk_id, topk_logprob, survivors_id, survivors_prob = (
            frame.array(self._trace.data, name)
            for name in ("logits", "topk/id", "topk/logprob", "survivors/id", "survivors/prob")
        )
        return Step(
            index=metadata["step"],
            position=metadata["position"],
            token=self._token(frame),
            text=metadata.get("text"),
            logits=logits,
            topk_id=topk_id,
            topk_logprob=topk_logprob,
            survivors_id=survivors_id,
            survivors_prob=survivors_prob,
            draws=tuple(_draw(metadata["step"], row) for row in metadata.get("draws") or ()),
            events=_events(metadata),
        )

    @property
    def events(self) -> tuple[Event, ...]:
        return tuple(event for frame in self._steps for event in _events(frame.metadata))

    @cached_property
    def sites(self) -> Mapping[str, SiteData]:
        return {
            name: SiteData(name, column.dtype, column.width, column.ranges(), column.axis)
            for name, column in self._columns.items()
        }

    def read(self, site: str, first: int, stop: int) -> Array:
        column = self._columns.get(site)
        if column is None:
            raise TraceError(f"{self._trace.path}: sequence {self.index}: site {site!r} is not recorded")
        pieces = [np.empty(0, np.uint8)]
        at = first
        index = bisect_right(column.segments, first, key=lambda segment: segment.first) - 1
        while at < stop:
            if (
                not 0 <= index < len(column.segments)
                or not column.segments[index].first <= at < column.segments[index].stop
            ):
                raise TraceError(
                    f"{self._trace.path}: sequence {self.index}: site {site!r} is not recorded at position {at}"
                )
            segment = column.segments[index]
            end = min(stop, segment.stop)
            pieces += self._pieces(segment, at, end, column.row_bytes)
            at, index = end, index + 1
        octets = pieces[1] if len(pieces) == 2 else np.concatenate(pieces)
        return octets.view(STORAGE[column.dtype]).reshape(stop - first, column.width)

    def _pieces(self, segment: _Segment, first: int, stop: int, row_bytes: int) -> Iterator[Array]:
        """The bytes of positions [first, stop) of a segment, 1-D. Of one position a call there are as many calls as
        rows, and a step of Python for each takes longer than moving its bytes: whole calls are gathered by numpy."""
        calls, rows = segment.calls, segment.calls.rows
        at = first
        while at < stop:
            index, skipped = divmod(at - calls.first, rows)
            whole = (stop - at) // rows if skipped == 0 else 0
            size = row_bytes * (rows if whole else min(rows - skipped, stop - at))
            places = calls.places[index : index + max(whole, 1)] + (segment.offset + skipped * row_bytes)
            # Every place of the file that so many bytes may be taken from; the file holds what is taken.
            window = np.ndarray((len(self._trace.data) - size + 1, size), np.uint8, self._trace.data, 0, (1, 1))
            yield window[places[0]] if len(places) == 1 else window[places].reshape(-1)
            at += whole * rows if whole else size // row_bytes

    def logits(self, first: int, stop: int) -> Array | None:
        rows = [frame.array(self._trace.data, "logits") for frame in self._steps[first:stop]]
        width = self._vocabulary
        kept = [row for row in rows if row is not None and row.size == width]
        return np.stack(kept) if kept and len(kept) == len(rows) else None

    @property
    def _vocabulary(self) -> int:
        """Width of the first step's logits: another step's of another width are those of another head."""
        stored = self._steps[0].tensors.get("logits") if self._steps else None
        return 0 if stored is None else stored.shape[-1]

    @property
    def logits_dtype(self) -> str | None:
        stored = self._steps[0].tensors.get("logits") if self._steps else None
        return None if stored is None else stored.dtype

    def _array(self, frame: Frame, name: str) -> Array:
        array = frame.array(self._trace.data, name)
        if array is None:
            raise KeyError(name)
        return array

    def _token(self, frame: Frame) -> int:
        return int(self._array(frame, "token")[0])

    def add_call(self, frame: Frame) -> None:
        """Index the rows of a `call` frame."""
        first, rows = frame.metadata["position"], frame.metadata["rows"]
        if type(first) is not int or type(rows) is not int or first < 0 or rows < 0:
            raise ValueError("position and rows must be counts")
        if first + rows > MOST_POSITION:
            raise ValueError(f"position {first + rows} is beyond any cache")
        again = frame.metadata.get("again") or 0
        if type(again) is not int or not 0 <= again <= first:
            raise ValueError(f"{again} positions computed again before position {first}")
        if again:
            self._recomputed = min(first, first if self._recomputed is None else self._recomputed)
        axis = frame.metadata.get("axis")
        if axis not in (None, ENCODER):
            raise ValueError(f"axis {axis!r} is unknown")
        self._add_rows(frame, first, rows, axis)
        if axis is None:
            self.positions = max(self.positions, first + rows)

    def _add_rows(self, frame: Frame, first: int, rows: int, axis: str | None) -> None:
        """Index the rows of a call. Calls that go on where one of the same tensors ended are looked at once."""
        calls = self._calls.get(id(frame.tensors))
        if calls is None or not calls.goes_on(frame, first, rows, axis):
            for other in [other for other in self._calls.values() if not other.layout.keys().isdisjoint(frame.tensors)]:
                self._take_in(other)
            found = [(self._column(name, stored, first, rows, axis), stored) for name, stored in frame.tensors.items()]
            if rows == 0:
                return
            columns = [(column, stored.offset) for column, stored in found if column is not None]
            calls = self._calls[id(frame.tensors)] = _Calls(frame.tensors, axis, first, rows, columns)
        calls.starts.append(frame.start)

    def all_read(self) -> None:
        """Every frame of the sequence is indexed."""
        for calls in list(self._calls.values()):
            self._take_in(calls)

    def _take_in(self, calls: _Calls) -> None:
        for column, offset in calls.columns:
            column.add(calls.first, calls.stop, calls, offset)
        del self._calls[id(calls.layout)]

    def _column(self, name: str, stored: Stored, first: int, rows: int, axis: str | None) -> _Column | None:
        """Where the rows of a site go; None where they are left out. A site that is no longer what it was ends; the
        sequence goes on."""
        width = math.prod(stored.shape[1:])
        column = self._columns.get(name)
        why = None
        if not stored.shape or stored.shape[0] != rows:
            held = stored.shape[0] if stored.shape else "no"
            why = f"it has {held} rows where the call has {rows}"
        elif column is not None and column.ended:
            return None
        elif column is None:
            column = self._columns[name] = _Column(stored.dtype, width, axis=axis)
        elif (column.dtype, column.width) != (stored.dtype, width):
            why = f"{column.dtype} [{column.width}] becomes {stored.dtype} [{width}]"
        elif column.axis != axis:
            why = "its rows are no longer those of the same axis"
        if why is None:
            return column
        if column is not None:
            column.ended = True
        self._trace.site_ended(name, f"sequence {self.index}, position {first}: {why}")
        return None

    def add_step(self, frame: Frame) -> None:
        """Index a `step` frame; a step told again replaces the earlier one and what followed it."""
        index = frame.metadata["step"]
        if type(index) is not int or not 0 <= index <= len(self._steps):
            raise ValueError(f"step {index} follows {len(self._steps)} steps")
        if frame.tensors["token"].shape != (1,) or type(frame.metadata["position"]) is not int:
            raise ValueError("a step needs one token and a position")
        self._check_step(frame)
        del self._steps[index:]
        self._steps.append(frame)

    def _check_step(self, frame: Frame) -> None:
        """Raises ValueError where a step's values are not of the kind that the format says."""
        logits = frame.tensors.get("logits")
        if logits is not None and (len(logits.shape) != 1 or not is_float(logits.dtype)):
            raise ValueError("logits are not a row of floats")
        vocabulary = () if logits is None else (logits.shape[0] - 1,)
        check_ids(self._array(frame, "token"), "its tokens", *vocabulary)
        for one, other in (("survivors/id", "survivors/prob"), ("topk/id", "topk/logprob")):
            if (one in frame.tensors) != (other in frame.tensors):
                raise ValueError(f"{one} and {other} go together")
            if one in frame.tensors:
                ids, values = self._array(frame, one), frame.tensors[other]
                check_ids(ids, f"its {one}", *vocabulary)
                if values.shape != ids.shape or values.dtype not in ("float32", "float64"):
                    raise ValueError(f"{other} is not a number for each id")
        check("a step", frame.metadata, STEP)
        for row in frame.metadata.get("draws") or ():
            check("a draw", row, DRAW, ("op", "generator"))
        for row in frame.metadata.get("events") or ():
            check("an event", row, {"kind": lambda kind: isinstance(kind, str)}, ("kind",))


def _events(metadata: Json) -> tuple[Event, ...]:
    rows = metadata.get("events") or ()
    return tuple(Event(metadata["step"], row["kind"], row.get("detail")) for row in rows)


def _draw(step: int, row: Json) -> Draw:
    return Draw(
        step, row["op"], row["generator"], row.get("seed"), row.get("offset"), row.get("words"), row.get("result")
    )


class LogTrace(Browsable):
    """A trace read from a log; see `tracekit.trace.Trace`. Raises TraceError where no sound `open` frame leads."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.data: mmap.mmap = map_file(path)
        self.config: Json = {}
        self.weights: dict[str, Weight] = {}
        self.sequences: list[LogSequence] = []
        self.status = "recovered"
        self.status_detail: str | None = None
        self._rows: dict[str, Site] = {}
        self._troubles: list[str] = []
        self._ended: dict[str, str] = {}
        self._read()
        for sequence in self.sequences:
            sequence.all_read()

    @cached_property
    def sites(self) -> Mapping[str, Site]:
        rows = dict(self._rows)
        for name, why in self._ended.items():
            row = rows.get(name) or Site(name, "tap", len(rows))
            rows[name] = row if row.ended else replace(row, ended=why)
        return dict(sorted(rows.items(), key=lambda item: item[1].order))

    def site_ended(self, name: str, why: str) -> None:
        """Note that the values of a site cannot be read from here on; the first reason stays."""
        self._ended.setdefault(name, why)

    def close(self) -> None:
        """Drop the index; the map goes when the last view into it does."""
        self.sequences = []

    def __enter__(self) -> LogTrace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read(self) -> None:
        why = "the file ends without an end frame"
        taken = offset = 0
        try:
            for frame in read_frames(self.data):
                offset = frame.offset
                if (taken == 0) != (frame.kind == "open"):
                    raise ValueError("a log has one `open` frame, its first")
                self._take(frame)
                taken += 1
        except BadFrame as bad:
            why = str(bad)
        except LIBRARY_ERRORS as error:
            why = f"the frame at byte {offset} does not fit what came before ({error})"
        else:
            if self.status == "complete":
                self._say_troubles()
                return
        if taken == 0:
            raise TraceError(f"{self.path}: not a readable log: {why}; record it again")
        self.status = "recovered"
        self.status_detail = "; ".join([f"recovered {self._recovered()}", *(self._troubles or [why])])

    def _say_troubles(self) -> None:
        """A log that its writer closed, but which lacks something by its writer's own account."""
        if self._troubles:
            self.status, self.status_detail = "recovered", "; ".join(self._troubles)

    def _recovered(self) -> str:
        if not self.sequences:
            return "no sequence"
        last = self.sequences[-1]
        return f"{last.step_count} complete steps of sequence {last.index}"

    def _take(self, frame: Frame) -> None:
        metadata = frame.metadata
        if frame.kind == "open":
            self._open(frame)
        elif frame.kind == "sites":
            self._add_sites(metadata["sites"])
        elif frame.kind == "lost":
            for key in ("lost", "by_chance") if metadata.get("by_chance") is True else ("lost",):
                self.config.setdefault(key, []).append(str(metadata["what"]))
        elif frame.kind == "sequence":
            if metadata["sequence"] != len(self.sequences):
                raise ValueError(f"sequence {metadata['sequence']} follows {len(self.sequences)} sequences")
            self.sequences.append(LogSequence(self, frame))
        elif frame.kind == "call":
            self._sequence(metadata).add_call(frame)
        elif frame.kind == "step":
            self._sequence(metadata).add_step(frame)
        elif frame.kind == "trouble":
            self._troubles.append(str(metadata["detail"]))
            self.config["troubles"] = list(self._troubles)
        elif frame.kind == "end" and metadata["scope"] == "file":
            self.status = "complete"
        elif frame.kind == "end":
            ended = self._sequence(metadata)
            check("an end", metadata, END, ("reason",))
            ended.end_reason, ended.end_detail = metadata["reason"], metadata.get("detail")
            ended.told_at_end = {name: metadata.get(name) for name in TOLD_AT_END}

    def _sequence(self, metadata: Json) -> LogSequence:
        index = metadata["sequence"]
        if type(index) is not int or not 0 <= index < len(self.sequences):
            raise ValueError(f"sequence {index} has not begun")
        return self.sequences[index]

    def _open(self, frame: Frame) -> None:
        metadata = frame.metadata
        if metadata["format"] != FORMAT:
            raise TraceError(
                f"{self.path}: is of format {metadata['format']}, this tracekit reads format {FORMAT}; update tracekit"
            )
        self.implementation = str(metadata["implementation"])
        self.config = check_config({key: metadata[key] for key in CONFIG_KEYS if metadata.get(key) is not None})
        self._add_sites(metadata.get("sites") or [])
        rows: list[Any] = metadata.get("weights") or []
        digests = read_digests(frame.array(self.data, "weights/digest"), len(rows))
        for row, digest in zip(rows, digests, strict=True):
            check("a parameter", row, WEIGHT, ("name", "dtype", "shape"))
            self.weights[row["name"]] = Weight(row["name"], row["dtype"], tuple(row["shape"]), digest)

    def _add_sites(self, rows: list[Json]) -> None:
        for row in rows:
            check("a site", row, SITE, ("name", "class", "order"))
            self._rows[row["name"]] = site_from_row(row)
