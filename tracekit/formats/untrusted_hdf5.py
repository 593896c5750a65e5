"""Reads an untrusted HDF5 file: no link is followed, nothing is believed or allocated unchecked."""

from __future__ import annotations

import contextlib
import json
import mmap
import struct
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tracekit.dtypes import STORAGE
from tracekit.formats.file_values import reading
from tracekit.formats.log import map_file
from tracekit.trace import Array, TraceError

RESIDENT_BYTES = 64 << 20
"""Bytes of values that are read before they leave memory: a trace may be larger than the machine's."""
HEAP = b"GCOL\x01"
"""How a collection of the global heap begins (HDF5 File Format Specification 3.0, III.E)."""


def _is_heap(data: mmap.mmap, at: int) -> bool:
    """Whether the objects of a heap fill it one after the other."""
    if at + 16 > len(data):
        return False
    (size,) = struct.unpack_from("<Q", data, at + 8)
    if size > len(data) - at:
        return False
    end, at = at + size, at + 16
    while end - at >= 16:
        index, length = struct.unpack_from("<H6xQ", data, at)
        taken = 16 + length + -length % 8 if index else length
        if not 16 <= taken <= end - at:
            return False
        at += taken
    return True


def _place(dataset: h5py.h5d.DatasetID) -> int | None:
    """Where a dataset's values begin in the file. Only a contiguous one has one place; one in external files has one in
    another file."""
    plist = dataset.get_create_plist()
    contiguous = plist.get_layout() == h5py.h5d.CONTIGUOUS and plist.get_external_count() == 0
    return dataset.get_offset() if contiguous else None


class UntrustedFile:
    """Hands out datasets of an untrusted HDF5 file: hard links, contiguous, no larger than the file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._heaps_are_sound = False
        self._resident = 0  # bytes of the mapped file, about
        try:
            told = Path(path).stat()
            self.size, self._changed = told.st_size, told.st_mtime_ns
            self.map = map_file(path)
            with reading(path):
                self.file = h5py.File(path, "r")
        except OSError as error:
            raise TraceError(f"{path}: cannot be read as a trace: {error.strerror}") from None

    def close(self) -> None:
        with contextlib.suppress(RuntimeError, ValueError, OSError):
            self.file.close()

    def handed_out(self, nbytes: int) -> None:
        """Note that a view of so many bytes is read: what was read before leaves memory, and comes back from the file
        where it is asked for again."""
        self._resident += nbytes
        if self._resident > RESIDENT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)
            self._resident = 0

    def fail(self, where: str, why: str) -> TraceError:
        return TraceError(f"{self.path}: {where}: {why}; record or import it again")

    @cached_property
    def as_written(self) -> bool:
        """Whether the file was last changed when it was written: what it notes of its values holds."""
        return "written" in self.file.attrs and self.number(self.file, "written") == self._changed

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

    def rows(self, parent: h5py.Group, name: str, dtype: str) -> Array | None:
        """All of a two-dimensional dataset as a read-only view into the mapped file, or None where there is none.

        HDF5 says where the values lie; to see them then costs no call and no copy. Through the low-level API: a trace
        has hundreds of sites, and h5py's objects cost 250 us each.
        """
        where, dataset = f"{parent.name}/{name}", self._table(parent, name)
        if dataset is None:
            return None
        storage, kind, shape = STORAGE[dtype], dataset.get_type(), dataset.shape
        little = kind.get_size() == 1 or not hasattr(kind, "get_order") or kind.get_order() == h5py.h5t.ORDER_LE
        if kind.get_size() != storage.itemsize or not little:
            raise self.fail(where, f"is not stored as {dtype}")
        offset = _place(dataset)
        values = self.view(offset or 0, shape, dtype)
        if values is None or (offset is None and values.size):
            raise self.fail(where, "is not stored in one piece in this file")
        return values

    def offset(self, parent: h5py.Group, name: str) -> int | None:
        """Where the values of a two-dimensional dataset begin in the file; None where they have no one place in it."""
        dataset = self._table(parent, name)
        return None if dataset is None else _place(dataset)

    def view(self, offset: int, shape: tuple[int, int], dtype: str) -> Array | None:
        """Values that lie in the mapped file, read-only; None where the file ends before they do."""
        storage, count = STORAGE[dtype], shape[0] * shape[1]
        if count == 0:
            return np.empty(shape, dtype=storage)
        if offset + count * storage.itemsize > self.size:
            return None
        return np.frombuffer(self.map, storage, count, offset).reshape(shape)

    def _table(self, parent: h5py.Group, name: str) -> h5py.h5d.DatasetID | None:
        encoded, where = name.encode(), f"{parent.name}/{name}"
        if not parent.id.links.exists(encoded):
            return None
        if parent.id.links.get_info(encoded).type != h5py.h5l.TYPE_HARD:
            raise self.fail(where, "is a link to elsewhere, which a trace never has")
        opened = h5py.h5o.open(parent.id, encoded)
        if not isinstance(opened, h5py.h5d.DatasetID) or len(opened.shape) != 2:
            raise self.fail(where, "is not a table of values")
        return opened

    def _item(self, parent: h5py.Group, name: str) -> Any:
        link = parent.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise self.fail(f"{parent.name}/{name}", "is a link to elsewhere, which a trace never has")
        return parent.get(name)

    def number(self, group: h5py.Group, name: str) -> int:
        """An attribute that is a whole number."""
        value = self._attribute(group, name)
        if not isinstance(value, np.integer):
            raise self.fail(f"{group.name}.{name}", "is not a whole number")
        return int(value)

    def text(self, group: h5py.Group, name: str) -> str | None:
        """An attribute that is a text, or None where there is none."""
        if name not in group.attrs:
            return None
        value = self._attribute(group, name)
        if not isinstance(value, str | bytes):
            raise self.fail(f"{group.name}.{name}", "is not a text")
        # h5py keeps bytes that are no UTF-8 as lone surrogates.
        encoded = value if isinstance(value, bytes) else value.encode(errors="surrogateescape")
        return encoded.decode(errors="replace")

    def _attribute(self, group: h5py.Group, name: str) -> Any:
        opened = group.attrs.get_id(name)
        if opened.shape != () or opened.dtype.itemsize > self.size:
            raise self.fail(f"{group.name}.{name}", "is not one value")
        if h5py.check_vlen_dtype(opened.dtype) is not None or h5py.check_string_dtype(opened.dtype) is not None:
            string = h5py.check_string_dtype(opened.dtype)
            if string is None or string.length is None:
                self._check_heaps()
        return group.attrs[name]

    def _check_heaps(self) -> None:
        """Raises TraceError where a global heap, in which strings of any length lie, is damaged: HDF5 reads it without
        an end where an object in it has no size. Traces of this version have none."""
        if self._heaps_are_sound:
            return
        at = self.map.find(HEAP)
        while at >= 0:
            if not _is_heap(self.map, at):
                raise self.fail(f"the heap at byte {at}", "is damaged")
            at = self.map.find(HEAP, at + 1)
        self._heaps_are_sound = True

    def json(self, parent: h5py.Group, name: str) -> Any:
        dataset = self.dataset(parent, name)
        if dataset is None:
            raise self.fail(f"{parent.name}/{name}", "is missing")
        try:
            return json.loads(dataset[()])
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise self.fail(str(dataset.name), "is not JSON") from None

    def array(self, parent: h5py.Group, name: str, kind: str, ndim: int = 1) -> Array | None:
        dataset = self.dataset(parent, name)
        if dataset is None:
            return None
        if dataset.dtype.kind not in kind or dataset.ndim != ndim or dataset.dtype.byteorder == ">":
            raise self.fail(str(dataset.name), "has an unexpected type or shape")
        return np.asarray(dataset[()])

    def strings(self, parent: h5py.Group, name: str) -> list[str] | None:
        raw = self.array(parent, name, "S")
        return None if raw is None else [bytes(text).decode(errors="replace") for text in raw]
