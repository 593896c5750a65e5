"""Where a postmortem keeps what it has: a folder, or any place that fsspec reaches.

A file is there whole or not at all: it is written under another name first. What is in the store is all that a
restarted postmortem knows.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from tracekit.trace import Json, TraceError

Kept = TypeVar("Kept")


class Store(Protocol):
    """Names are relative, with `/` between their parts."""

    @property
    def place(self) -> str:
        """As it was given: a worker opens the same one from it."""

    def exists(self, name: str) -> bool: ...
    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

    def write(self, name: str, data: bytes) -> None: ...
    def deliver(self, path: Path, name: str) -> None:
        """Move a finished file into the store."""

    def local(self, name: str) -> Any:
        """A context manager that gives the path of a copy on this machine."""

    def remove(self, name: str) -> None:
        """A file or a whole folder; nothing where there is none."""


def open_store(place: str) -> Store:
    """The store at a path or an fsspec URL. Raises TraceError where it cannot be opened."""
    return Remote(place) if "://" in place else Folder(place)


def read_json(store: Store, name: str) -> Json | None:
    """An object that was written with `write_json`; None where there is none, or something else."""
    try:
        value = json.loads(store.read(name))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_as(store: Store, name: str, make: Callable[[Json], Kept]) -> Kept | None:
    """The same as what it was written from; None where it is not that, as after an earlier version wrote it."""
    row = read_json(store, name)
    try:
        return None if row is None else make(row)
    except (KeyError, TypeError, ValueError):
        return None


def write_json(store: Store, name: str, value: Json) -> None:
    """An object, readable, the same bytes for the same object."""
    store.write(name, (json.dumps(value, indent=1) + "\n").encode())


class Folder:
    """A folder of this machine, or one that all workers share."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._root = Path(place)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TraceError(f"{place}: cannot be made: {error.strerror}; choose another folder with -o") from None

    def exists(self, name: str) -> bool:
        return (self._root / name).exists()

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        with self._whole(name) as path:
            path.write_bytes(data)

    def deliver(self, path: Path, name: str) -> None:
        with self._whole(name) as unfinished:
            shutil.move(path, unfinished)

    @contextmanager
    def _whole(self, name: str) -> Iterator[Path]:
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            yield unfinished
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        yield self._root / name

    def remove(self, name: str) -> None:
        path = self._root / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class Remote:
    """A place that fsspec reaches, such as `s3://bucket/run` or `memory://run`."""

    def __init__(self, place: str) -> None:
        try:
            import fsspec
        except ModuleNotFoundError:
            raise TraceError(f"{place}: needs fsspec: pip install 'tracekit[cluster]'") from None
        try:
            self._files, self._root = fsspec.core.url_to_fs(place)
            self._files.makedirs(self._root, exist_ok=True)
        except (ImportError, OSError, ValueError) as error:
            raise TraceError(f"{place}: cannot be opened: {error}") from None
        self.place = place

    def _path(self, name: str) -> str:
        return str(PurePosixPath(self._root) / name)

    def exists(self, name: str) -> bool:
        return bool(self._files.exists(self._path(name)))

    def read(self, name: str) -> bytes:
        return bytes(self._files.cat_file(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
        unfinished = f"{self._path(name)}.{uuid.uuid4().hex[:8]}"
        self._files.pipe_file(unfinished, data)
        self._files.mv(unfinished, self._path(name))

    def deliver(self, path: Path, name: str) -> None:
        self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
        unfinished = f"{self._path(name)}.{uuid.uuid4().hex[:8]}"
        self._files.put_file(str(path), unfinished)
        self._files.mv(unfinished, self._path(name))
        path.unlink()

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        import tempfile

        with tempfile.TemporaryDirectory(prefix="tracekit-") as scratch:
            path = Path(scratch) / PurePosixPath(name).name
            self._files.get_file(self._path(name), str(path))
            yield path

    def remove(self, name: str) -> None:
        if self._files.exists(self._path(name)):
            self._files.rm(self._path(name), recursive=True)
