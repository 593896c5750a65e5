"""A program that is run in a session of its own, so that it can be ended with everything that it started."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

LAST_LINE = 400
"""Characters of a program's last line that are kept."""
OUTPUT_END = 8192
"""Bytes of its output in which that line is looked for."""
PIP = "[notice]"
"""How lines of pip begin that come after what it has to say."""
LIMITED = """
import os, resource, sys
most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: cannot be started: {error.strerror}")
"""
"""Sets the limit, then becomes the program. A limit set from outside comes too late for what the program does at once:
it may have written more, or have started another program that has no limit."""


def start(
    words: list[str],
    folder: str,
    variables: Mapping[str, str],
    output: int | IO[bytes],
    largest_file: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program without input; what it prints, errors as well, goes to `output`. Raises OSError.

    No file that it or what it starts writes grows beyond `largest_file` bytes: the signal SIGXFSZ ends it before.
    """
    if largest_file is not None:
        _check_program(words[0], folder, variables)
        words = [sys.executable, "-ISc", LIMITED, str(largest_file), *words]
    return subprocess.Popen(
        words,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _check_program(name: str, folder: str, variables: Mapping[str, str]) -> None:
    """Raises the OSError that starting a program of this name would."""
    found = shutil.which(Path(folder) / name if os.sep in name else name, path=variables.get("PATH", os.defpath))
    if found is None:
        there = os.sep in name and (Path(folder) / name).exists()
        code = errno.EACCES if there else errno.ENOENT
        raise OSError(code, os.strerror(code), name)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def exit_code(returned: int) -> int:
    """What a shell makes of a program's return code: 128 and the signal's number where one ended it."""
    return returned if returned >= 0 else 128 - returned


def last_line(said: bytes | Path) -> str:
    """The last line that a program printed, or that is in the file of its output, cut to `LAST_LINE`; empty where it
    printed none."""
    if isinstance(said, Path):
        with said.open("rb") as file:
            file.seek(max(0, said.stat().st_size - OUTPUT_END))
            said = file.read()
    lines = [line.strip() for line in said.decode(errors="replace").split("\n")]
    return next((line[-LAST_LINE:] for line in reversed(lines) if line and not line.startswith(PIP)), "")
