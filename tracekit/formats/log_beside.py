"""The log that a recording writes until its archive is made: it stands beside the archive, under the same name."""

from __future__ import annotations

from pathlib import Path

from tracekit.errors import TraceError
from tracekit.formats.archive import write_archive
from tracekit.formats.log import LogWriter
from tracekit.formats.log_trace import LogTrace

LOG_SUFFIX = ".tklog"


def log_beside(archive: Path) -> Path:
    """The log of an archive; what is named as a log is its own."""
    return archive if archive.suffix == LOG_SUFFIX else archive.with_suffix(LOG_SUFFIX)


def begin_anew(archive: Path, followed: str | None = None) -> Path:
    """The log of a recording that begins now, in a folder that is made. An archive of an earlier run is removed, so
    that it is not taken for this run's where the program is killed; not so one that is followed.

    Raises OSError.
    """
    log = log_beside(archive)
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive != log and archive.is_file() and not (followed and Path(followed).resolve() == archive.resolve()):
        archive.unlink()
    return log


def new_log(archive: Path, followed: str | None = None) -> LogWriter:
    """As `begin_anew`, the log opened. Raises TraceError where it cannot be written."""
    try:
        return LogWriter(begin_anew(archive, followed))
    except OSError as error:
        raise TraceError(f"{archive}: cannot be written: {error.strerror}") from None


def finish(log: LogWriter, archive: Path, *, keep_log: bool = False) -> None:
    """Make the archive of a log that is closed; the log then goes, unless it is kept or is what was asked for. Raises
    TraceError and OSError."""
    path = Path(log.path)
    if path == archive:
        return
    with LogTrace(path) as trace:
        write_archive(trace, archive)
    if not keep_log:
        path.unlink()
