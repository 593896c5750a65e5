"""Opening a trace by what the file holds, not by its name."""

from __future__ import annotations

import os
from pathlib import Path

from tracekit.formats.archive import UNFINISHED
from tracekit.formats.archive_trace import ArchiveTrace
from tracekit.formats.log import MAGIC
from tracekit.formats.log_beside import log_beside
from tracekit.formats.log_trace import LogTrace
from tracekit.trace import Trace, TraceError

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_trace(path: str | os.PathLike[str]) -> Trace:
    """The trace in a log or an archive. Raises TraceError, in one sentence, for anything else."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
    except OSError as error:
        log = log_beside(Path(path))
        if log != Path(path) and is_trace(log):
            raise TraceError(
                f"{path}: was not made, as its program was killed or still runs; what it recorded is in {log}: give "
                f"that, or make the archive with `tracekit import {log}`"
            ) from None
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    if Path(path).suffix == UNFINISHED:
        raise TraceError(
            f"{path}: is an archive whose writing was cut off, or goes on; what was recorded is in the log (*.tklog) "
            "beside it: give that"
        )
    if head[:4] == MAGIC:
        return LogTrace(path)
    if head == HDF5_SIGNATURE:
        return ArchiveTrace(path)
    what = "is empty" if not head else "is neither a log (*.tklog) nor an archive (*.h5) of tracekit"
    raise TraceError(f"{path}: {what}; give a file that tracekit recorded")


def is_trace(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a log or an archive does. False where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
    except OSError:
        return False
    return head[:4] == MAGIC or head == HDF5_SIGNATURE
