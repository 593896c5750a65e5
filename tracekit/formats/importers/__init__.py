"""Importers: each turns a file or folder of one kind into a log, of which an archive is made.

A module of this folder brings one as `IMPORTER`, another package by the entry points `tracekit.importers`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tracekit.errors import TraceError
from tracekit.formats.archive import write_archive
from tracekit.formats.log_trace import LogTrace
from tracekit.generations import counts
from tracekit.plugins import plugins
from tracekit.trace import Json

GROUP = "tracekit.importers"


class Importer(Protocol):
    """One kind of file or folder."""

    @property
    def reads(self) -> str:
        """What it reads, for a message: `tracekit logs (*.tklog)`."""

    def knows(self, path: Path) -> bool:
        """Whether a file or folder, which exists, is of this kind. Raises nothing."""

    def log(self, path: Path, scratch: Path) -> Path:
        """The log of what `path` holds: `path` itself, or one that it writes in the folder `scratch` with
        `tracekit.formats.log.LogWriter`. Raises TraceError where `path` is damaged."""


@dataclass(frozen=True)
class Imported:
    """An archive that was made."""

    implementation: str
    status: str
    detail: str | None
    sequences: int
    steps: int
    counts: tuple[Json, ...]
    """What a text log says of each sequence, where it is all that is left of the run."""
    kept_nothing_else: bool
    """What was imported is a log, of which the archive holds everything."""


def importers() -> tuple[Importer, ...]:
    """All importers, those of other packages first. Raises TraceError where one cannot be loaded."""
    return plugins(GROUP, __name__, "IMPORTER")


def import_trace(path: Path, target: Path) -> Imported:
    """Write the archive `target` of what a file or folder holds. Raises TraceError where it cannot be read, no importer
    knows it, or the archive cannot be written."""
    importer = _importer_of(path)
    with _scratch(target) as scratch:
        log = importer.log(path, scratch)
        with LogTrace(log) as trace:
            write_archive(trace, target)
            told = tuple(_numbers(counts(sequence)) for sequence in trace.sequences)
            return Imported(
                implementation=trace.implementation,
                status=trace.status,
                detail=trace.status_detail,
                sequences=len(trace.sequences),
                steps=sum(sequence.step_count for sequence in trace.sequences),
                counts=told if any(told) else (),
                kept_nothing_else=log == path,
            )


def _importer_of(path: Path) -> Importer:
    try:
        path.stat()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    known = importers()
    found = next((importer for importer in known if importer.knows(path)), None)
    if found is None:
        what = "folder" if path.is_dir() else "file"
        names = "; ".join(importer.reads for importer in known)
        raise TraceError(f"{path}: no importer reads this {what}; supported: {names}")
    return found


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside `target`, on whose disk there has to be room anyway."""
    try:
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise TraceError(f"{target}: cannot be written: {error.strerror}") from None
    with folder as name:
        yield Path(name)


def _numbers(told: Json) -> Json:
    return {name: value for name, value in told.items() if not isinstance(value, bool)}
