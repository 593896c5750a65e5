"""The log (`*.tklog`): append-only frames of safetensors, as docs/format.md specifies them.

`LogWriter` is what the PyTorch side records through; `read_frames` gives the sound frames of a file and where it stops
being sound. What the frames mean is `log_trace`'s business.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import mmap
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tracekit.dtypes import FROM_SAFETENSORS, MOST_DIMENSIONS, SAFETENSORS, STORAGE
from tracekit.formats.weight_digests import written_digests
from tracekit.trace import Array, Json, TraceError

MAGIC = b"TKL1"
FORMAT = 1
FRAME_HEAD = struct.Struct("<4sIQQ")
HEADER_LIMIT = 100 << 20
"""Longest safetensors header in bytes, as in the safetensors library."""
PAD_NAME = "__pad__"
IOV_LIMIT = 1000
"""Buffers handed to one writev; Linux takes 1024."""

_NUMPY_NAMES = {
    storage: name for name, storage in STORAGE.items() if name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write, in a dtype that numpy may lack: `data` holds its bytes, C order, little-endian."""

    dtype: str  # torch's word
    shape: tuple[int, ...]
    data: Any  # anything with the buffer protocol


TensorLike = Array | Tensor


@dataclass(frozen=True)
class Layout:
    """Names, dtypes and shapes of tensors as a safetensors header says them: made once, used for many frames."""

    entries: str  # each led by a comma
    nbytes: int  # of the tensors, without `__pad__`

    @classmethod
    def of(cls, tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> Layout:
        """The layout of tensors (name, torch's word for the dtype, shape) that lie one after the other."""
        entries = []
        offset = 0
        for name, dtype, shape in tensors:
            end = offset + STORAGE[dtype].itemsize * math.prod(shape)
            entries.append((name, SAFETENSORS[dtype], list(shape), [offset, end]))
            offset = end
        if offset % 8:
            entries.append((PAD_NAME, "U8", [-offset % 8], [offset, offset + -offset % 8]))
        text = "".join(
            f',{json.dumps(name)}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'
            for name, dtype, shape, offsets in entries
        )
        return cls(text, offset)


class LogWriter:
    """Writes a log. One `write` a frame, no fsync until `close`; after a kill every frame that was written is there. A
    frame that the file does not take whole is taken back.

    Raises OSError where the file cannot be written, or another process writes it; KeyError for a numpy dtype that the
    format does not have.
    """

    def __init__(self, path: str | os.PathLike[str], *, hash_frames: bool = True) -> None:
        self.path = os.fspath(path)
        self._hash = hash_frames
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._length = 0  # bytes of whole frames
        self._identity = _identity(self._file)
        if stat.S_ISREG(os.fstat(self._file).st_mode):
            self._claim()

    def _claim(self) -> None:
        """Empty the file, which no other process may be writing: it would be writing into this log."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.abandon()
            raise OSError(errno.EWOULDBLOCK, "another process writes it", self.path) from None
        except OSError:
            pass  # a file system without locks
        os.ftruncate(self._file, 0)

    def write_frame(
        self, kind: str, metadata: Mapping[str, Any], tensors: Mapping[str, TensorLike] | None = None
    ) -> None:
        """Append one frame. `metadata` values are anything that JSON can say; None values are left out."""
        parts = [_as_tensor(value) for value in (tensors or {}).values()]
        layout = Layout.of([(name, part.dtype, part.shape) for name, part in zip(tensors or {}, parts, strict=True)])
        self.write_packed(kind, metadata, layout, [part.data for part in parts])

    def write_packed(self, kind: str, metadata: Mapping[str, Any], layout: Layout, buffers: Sequence[Any]) -> None:
        """As `write_frame`, where the tensors' layout is made already and their bytes lie in `buffers` one after the
        other: hundreds of tensors of every decoding step cost no more than one."""
        words = {"kind": kind} | {name: json.dumps(value) for name, value in metadata.items() if value is not None}
        header = ('{"__metadata__":' + json.dumps(words) + layout.entries + "}").encode()
        header += b" " * (-len(header) % 8)
        padding = bytes(-layout.nbytes % 8)
        parts = [struct.pack("<Q", len(header)), header, *buffers, padding]
        length = 8 + len(header) + layout.nbytes + len(padding)
        self._write([FRAME_HEAD.pack(MAGIC, 0, length, self._digest(parts)), *parts], FRAME_HEAD.size + length)

    def open(self, implementation: str, **metadata: Any) -> None:
        """The first frame. `weights` (a list of name, dtype, shape, digest) is split as the format wants it."""
        weights = metadata.pop("weights", None)
        tensors: dict[str, TensorLike] = {}
        if weights:
            tensors["weights/digest"] = written_digests(row.get("digest") for row in weights)
        if weights is not None:
            rows = [{key: row[key] for key in ("name", "dtype", "shape")} for row in weights]
            metadata["weights"] = rows
        self.write_frame("open", {"format": FORMAT, "implementation": implementation, **metadata}, tensors)

    def sites(self, rows: list[Json]) -> None:
        """More rows of the site table."""
        self.write_frame("sites", {"sites": rows})

    def sequence(self, sequence: int, tensors: Mapping[str, TensorLike] | None = None, **metadata: Any) -> None:
        """A sequence begins; `tensors` are `prompt/...` and `rng/state`."""
        self.write_frame("sequence", {"sequence": sequence, **metadata}, tensors)

    def call(
        self,
        sequence: int,
        position: int,
        rows: int,
        tensors: Mapping[str, TensorLike],
        axis: str | None = None,
        again: int = 0,
    ) -> None:
        """The values of one forward call: each tensor [rows, width]. `axis` says what the rows are, where they are no
        positions of the sequence; `again`: positions before the first that the call computed again, without a cache."""
        call = {"sequence": sequence, "position": position, "rows": rows, "axis": axis, "again": again or None}
        self.write_frame("call", call, tensors)

    def lost(self, what: str, by_chance: bool = False) -> None:
        """Something that the program computed and that is not in this log. `by_chance`: another run may have it instead
        of what is here."""
        self.write_frame("lost", {"what": what, "by_chance": by_chance or None})

    def step(
        self, sequence: int, step: int, position: int, token: int, tensors: Mapping[str, TensorLike], **metadata: Any
    ) -> None:
        """One token was chosen; `tensors` are `logits`, `topk/...`, `survivors/...`, `draw/value`."""
        chosen = {"token": np.array([token], dtype=np.int64)}
        self.write_frame(
            "step", {"sequence": sequence, "step": step, "position": position, **metadata}, {**chosen, **tensors}
        )

    def end_sequence(self, sequence: int, steps: int, reason: str, detail: str | None = None, **metadata: Any) -> None:
        """A sequence ends: `stop`, `length`, `error`, `left` or `done`."""
        ended = {"scope": "sequence", "sequence": sequence, "steps": steps, "reason": reason, "detail": detail}
        self.write_frame("end", ended | metadata)

    def trouble(self, detail: str) -> None:
        """What of this run the log does not hold, and why; a log with this frame reads as recovered."""
        self.write_frame("trouble", {"detail": detail})

    def close(self, reason: str = "done") -> None:
        """Write the final frame, fsync, close. A second call does nothing."""
        if self._file < 0:
            return
        self.write_frame("end", {"scope": "file", "reason": reason})
        os.fsync(self._file)
        self.abandon()

    def abandon(self) -> None:
        """Close the file as it is: it reads as recovered."""
        if self._file >= 0:
            if self._holds_the_log():
                os.close(self._file)
            self._file = -1

    def _holds_the_log(self) -> bool:
        """Whether the descriptor is still the log's: a program that closes all of them may have a file of its own there
        now."""
        try:
            return _identity(self._file) == self._identity
        except OSError:
            return False

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close it; abandon it where something went wrong."""
        if kind is None:
            self.close()
        self.abandon()

    def _digest(self, buffers: list[Any]) -> int:
        if not self._hash:
            return 0
        state = xxhash.xxh3_64()
        for buffer in buffers:
            state.update(buffer)
        # 0 means "not hashed"; a payload whose hash is 0 is written as such and simply not verified.
        return state.intdigest()

    def _write(self, buffers: list[Any], length: int) -> None:
        if not self._holds_the_log():
            raise OSError(errno.EBADF, "the program closed it", self.path)
        if len(buffers) > IOV_LIMIT:
            buffers = [b"".join(buffers)]
        try:
            written = os.writev(self._file, buffers)
            if written < length:
                rest = memoryview(b"".join(buffers))[written:]
                while rest:
                    rest = rest[os.write(self._file, rest) :]
        except OSError:
            # What was written of it goes, so that a reader finds whole frames, and one more may follow.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._length)
            raise
        self._length += length


def _identity(file: int) -> tuple[int, int]:
    """Which file a descriptor is open on."""
    found = os.fstat(file)
    return found.st_dev, found.st_ino


def _as_tensor(value: TensorLike) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.ascontiguousarray(value)
    dtype = array.dtype.newbyteorder("<")
    return Tensor(_NUMPY_NAMES[dtype], array.shape, array.astype(dtype, copy=False).reshape(-1).view(np.uint8).data)


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in the data of its frame."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Frame:
    """One sound frame: `metadata` decoded from JSON (but for the kind), tensors by name. Frames of the same tensors
    mostly have one and the same mapping of them."""

    offset: int
    kind: str
    metadata: Json
    tensors: Mapping[str, Stored]
    start: int
    """Where its data begins in the file."""

    def array(self, data: mmap.mmap | bytes, name: str) -> Array | None:
        """A tensor's bits in its shape, as a read-only view into the file, or None where the frame has none of this
        name."""
        stored = self.tensors.get(name)
        if stored is None:
            return None
        storage, at = STORAGE[stored.dtype], self.start + stored.offset
        return np.frombuffer(data, storage, stored.nbytes // storage.itemsize, at).reshape(stored.shape)


class BadFrame(Exception):
    """Why reading stopped; the file is sound up to `offset`."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(why)
        self.offset = offset


def read_frames(data: mmap.mmap | bytes) -> Iterator[Frame]:
    """The frames of a log in order. Raises BadFrame at the first byte that is not a sound frame.

    Every length is checked against the file before anything is allocated; hashes are verified (XXH3 is faster than
    any disk), so a frame that comes out of here is what its writer wrote.
    """
    size = len(data)
    offset = 0
    view_of_all = memoryview(data)
    headers = _Headers()
    while offset < size:
        if size - offset < FRAME_HEAD.size:
            raise BadFrame(offset, f"the file ends inside a frame at byte {offset}")
        magic, reserved, length, digest = FRAME_HEAD.unpack_from(data, offset)
        start = offset + FRAME_HEAD.size
        if magic != MAGIC or reserved != 0 or length % 8 or length < 16:
            raise BadFrame(offset, f"no frame starts at byte {offset}, where one should")
        if length > size - start:
            raise BadFrame(offset, f"the file ends inside a frame at byte {offset}")
        payload = view_of_all[start : start + length]
        if digest and xxhash.xxh3_64_intdigest(payload) != digest:
            raise BadFrame(offset, f"the frame at byte {offset} does not match its hash")
        try:
            yield headers.frame(payload, start, offset)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BadFrame(offset, f"the frame at byte {offset} is not sound safetensors ({error})") from None
        offset = start + length


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return row


METADATA = '{"__metadata__":'
"""What a header begins with where its metadata lead it."""
KEPT, KEPT_LENGTH = 16, 1 << 20
"""How many headers are kept of a log, and their longest."""
_decoder = json.JSONDecoder(object_pairs_hook=_unique)


class _Headers:
    """Reads the headers of a log's frames. Those of one kind mostly say the same but for their metadata, so what comes
    after these is read and checked once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], dict[str, Stored]] = {}  # by text after the metadata and length of the data

    def frame(self, payload: memoryview, start: int, offset: int) -> Frame:
        """The frame of a payload that begins at byte `start`. Raises what reading it raises."""
        (header_length,) = struct.unpack_from("<Q", payload)
        if header_length > min(len(payload) - 8, HEADER_LIMIT):
            raise ValueError("its header is longer than the frame")
        header = str(payload[8 : 8 + header_length], "utf-8", "surrogatepass")
        data_length = len(payload) - 8 - header_length
        words: Any = {}
        rest = ""
        if header.startswith(METADATA + "{") and header_length <= KEPT_LENGTH:
            words, end = _decoder.raw_decode(header, len(METADATA))
            rest = header[end:].rstrip(" ")
        tensors = self._known.get((rest, data_length))
        if tensors is None:
            told = _decoder.decode(header)
            if not isinstance(told, dict):
                raise ValueError("its header is not an object")
            words = told.pop("__metadata__", {})
            tensors = _tensors(told, data_length)
            tensors.pop(PAD_NAME, None)
            if rest:
                if len(self._known) == KEPT:
                    self._known.clear()
                self._known[rest, data_length] = tensors
        kind = words["kind"]
        metadata = {name: json.loads(text) for name, text in words.items() if name != "kind"}
        return Frame(offset, kind, metadata, tensors, start + 8 + header_length)


def _tensors(header: Json, data_length: int) -> dict[str, Stored]:
    """Check that the tensors tile the data exactly, as safetensors demands."""
    tensors = {}
    spans = []
    for name, entry in header.items():
        name.encode()  # a lone surrogate is no name: no archive could hold it
        dtype = FROM_SAFETENSORS[entry["dtype"]]
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if len(shape) > MOST_DIMENSIONS:
            raise ValueError(f"{name!r} has {len(shape)} dimensions")
        count = STORAGE[dtype].itemsize
        for number in (*shape, begin, end):  # of each of a million tensors: a generator costs as much as all the rest
            if type(number) is not int or number < 0:
                raise ValueError(f"{name!r} has a shape or an offset that is no count")
        for dimension in shape:
            count *= dimension
        if not begin <= end <= data_length or end - begin != count:
            raise ValueError(f"the shape of {name!r} does not fit its bytes")
        spans.append((begin, end))
        tensors[name] = Stored(dtype, shape, begin, end - begin)
    covered = 0
    for begin, end in sorted(spans):
        if begin != covered:
            raise ValueError("its tensors overlap or leave a hole")
        covered = end
    if covered != data_length:
        raise ValueError("its tensors do not fill it")
    return tensors


def map_file(path: str | os.PathLike[str]) -> mmap.mmap:
    """The file as read-only memory. Raises TraceError where it cannot be read or is empty."""
    try:
        with Path(path).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is empty"
        raise TraceError(f"{path}: cannot be read as a trace: {reason}") from None
