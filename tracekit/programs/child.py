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
