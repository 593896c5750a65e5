"""A program run once and recorded: what it prints goes to a file, what it computes into a trace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tracekit.errors import TraceError
from tracekit.formats.opening import open_trace
from tracekit.programs.child import end, exit_code, last_line, start
from tracekit.programs.native import NativeOptions, environment
from tracekit.programs.python import MODULE, as_python, interpreter_and_program, is_python

RECORD = (*MODULE, "record")
"""What records in an interpreter; a command that is this already, `tracekit record --engine NAME`, records itself."""


def recorded(
    words: list[str],
    folder: Path,
    *,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Path:
    """Run `words`, which may be `tracekit record --engine NAME ...`, with recording on, and return the trace, a file in
    `folder`, which is made. `variables` are added to the environment; `timeout` is in seconds.

    Raises TraceError, in one line, where the program cannot be started, fails, is not done in time, or records nothing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TraceError(f"{folder}: cannot be written: {error.strerror}") from None
    words = as_python(words)
    python = is_python(words)
    out = folder / ("run.h5" if python else "run.tklog")
    out.unlink(missing_ok=True)
    if python:
        interpreter, program = interpreter_and_program(words)
        own = tuple(program[: len(RECORD)]) == RECORD
        record = ["-o", str(out)]
        words = [interpreter, *program, *record] if own else [interpreter, *RECORD, *record, *program]
        told: Mapping[str, str] = os.environ
    else:
        told = environment(out, NativeOptions(), folder)
    code = _run(words, folder / "output.txt", str(cwd or Path.cwd()), {**told, **(variables or {})}, timeout)
    if code != 0:
        raise TraceError(
            f"{words[0]}: ended with exit code {code}: {last_line(folder / 'output.txt') or 'it printed nothing'}"
        )
    if not out.exists() or not out.stat().st_size:
        raise TraceError(f"{words[0]}: recorded nothing; build it with tracekit's crate, or give an --engine")
    with open_trace(out) as trace:
        if not trace.sequences:
            raise TraceError(f"{words[0]}: recorded no sequence; let it generate something")
    return out


def _run(words: list[str], output: Path, cwd: str, variables: Mapping[str, str], timeout: float | None) -> int:
    try:
        with output.open("wb") as sink:
            process = start(words, cwd, variables, sink)
    except OSError as error:
        raise TraceError(f"{words[0]}: cannot be started: {error.strerror}") from None
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        end(process)
        raise TraceError(f"{words[0]}: was not done after {timeout:g} seconds") from None
    except BaseException:
        end(process)
        raise
    return exit_code(code)
