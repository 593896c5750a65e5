"""tracekit's own log, as a program left it."""

from __future__ import annotations

from pathlib import Path

from tracekit.formats.log import MAGIC

SUFFIX = ".tklog"


class Logs:
    """By its name, or by what it begins with."""

    reads = f"tracekit logs (*{SUFFIX})"

    def knows(self, path: Path) -> bool:
        if path.suffix == SUFFIX:
            return True
        try:
            with path.open("rb") as file:
                return file.read(len(MAGIC)) == MAGIC
        except OSError:
            return False

    def log(self, path: Path, scratch: Path) -> Path:
        return path


IMPORTER = Logs()
