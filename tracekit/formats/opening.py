"""Opening a trace by what the file holds, not by its name."""

from __future__ import annotations

import os
from pathlib import Path

from tracekit.formats.archive_trace import ArchiveTrace
from tracekit.formats.log import MAGIC
from tracekit.formats.log_trace import LogTrace
from tracekit.trace import Trace, TraceError

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_trace(path: str | os.PathLike[str]) -> Trace:
    """The trace in a log or an archive. Raises TraceError, in one sentence, for anything else."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
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
