"""A program that is run in a session of its own, so that it can be ended with everything that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from typing import IO


def start(
    words: list[str], folder: str, variables: Mapping[str, str], output: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a program without input; what it prints, errors as well, goes to `output`. Raises OSError."""
    return subprocess.Popen(
        words,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
