"""A file that is there whole or not at all: it is written under another name first."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tracekit.trace import TraceError


def write_whole(path: Path, data: bytes, mend: str = "") -> None:
    """Write a file, or replace one. Raises TraceError where it cannot be written; `mend` says what to do then."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(data)
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        said = f"{path}: cannot be written: {error.strerror}"
        raise TraceError(f"{said}; {mend}" if mend else said) from None
