"""The file that HDF5 writes an archive to: it takes every write, and keeps the first error for its owner to raise.

HDF5 1.14 cannot close a file that does not take what it flushes (a full disk, a quota): it prints a page of errors and
ends the process with a segmentation fault, which may be a program that is recorded.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tracekit.trace import Array


class UnfailingFile:
    """A new file for `h5py.File(file, "w")`. Leaving the block raises the OSError of the first write that failed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = Path(path).open("w+b", buffering=0)  # noqa: SIM115
        self.error: OSError | None = None

    def __enter__(self) -> UnfailingFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()
        if self.error is not None:
            raise self.error

    def write(self, data: Any) -> int:
        """Write all of `data`, unless a write has failed."""
        length = len(data)
        rest = memoryview(data)
        try:
            while rest and self.error is None:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            self.error = error
        return length

    def write_at(self, offset: int, values: Array) -> None:
        """Write a contiguous array at a byte of the file, unless a write has failed."""
        rest = values.reshape(-1).view(np.uint8).data
        try:
            while rest and self.error is None:
                written = os.pwrite(self._file.fileno(), rest, offset)
                rest, offset = rest[written:], offset + written
        except OSError as error:
            self.error = error

    def truncate(self, size: int) -> int:
        """Set the length, unless a write has failed."""
        try:
            if self.error is None:
                self._file.truncate(size)
        except OSError as error:
            self.error = error
        return size

    def readinto(self, buffer: Any) -> int | None:
        """As of a file."""
        return self._file.readinto(buffer)

    def read(self, size: int = -1) -> bytes | None:
        """As of a file."""
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of a file."""
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is held back."""
