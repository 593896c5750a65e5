"""One program, one seed: run it, record it, and be left with what it did, whatever becomes of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tracekit.align.pair import Side
from tracekit.formats.opening import open_trace
from tracekit.generations import generated_count
from tracekit.inspection.summary import sequence_summary
from tracekit.postmortem.plan import Plan
from tracekit.programs.child import end, exit_code, last_line, start
from tracekit.programs.native import NativeOptions, environment
from tracekit.programs.python import interpreter_and_program, is_python
from tracekit.trace import Trace, TraceError
from tracekit.verdict.outcome import Run

LOG, ARCHIVE = "run.tklog", "run.h5"
OUTPUT = "output.txt"
POLL = 0.05
"""Seconds between looks at a program that runs."""
STOPPED = threading.Event()
"""Set when the postmortem itself is being stopped: programs that run are ended, none is started."""


class Stopped(Exception):
    """The postmortem is being stopped."""


class Slots:
    """How many programs may run at a time in this process; as many as there are threads, unless it is said.

    A thread that compares two traces holds none, so that the next program runs meanwhile.
    """

    def __init__(self) -> None:
        self._free: threading.Semaphore | None = None
        self.count: int | None = None

    def limit(self, count: int) -> None:
        """From now on, `count` at most."""
        self._free, self.count = threading.Semaphore(count), count

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Wait for one and hold it. Raises Stopped."""
        with self._free or contextlib.nullcontext():
            if STOPPED.is_set():
                raise Stopped
            yield


SLOTS = Slots()
SHARING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Environment of programs that run side by side: threads that wait let the other program have the core. What they
compute is the same. Two PyTorch programs of two threads each on two cores take 22 s with threads that spin, 5 s with
these, and 8.5 s one after the other."""


@dataclass(frozen=True)
class Ended:
    """How a program ended. `code` is None where it was stopped at its time limit."""

    code: int | None
    last_line: str
    trouble: str | None = None


def record(plan: Plan, side: Side, seed: int, level: str, scratch: Path) -> tuple[Run, Path | None]:
    """Run one side of a plan with one seed in the folder `scratch`: what became of it, and its trace, if there is one.

    Raises Stopped where the postmortem is being stopped.
    """
    words = plan.words(side, seed)
    python = is_python(words)
    # A seed goes in from outside where the command has no place for it.
    outside = None if plan.takes_seed(side) else seed
    out = scratch / (ARCHIVE if python else LOG)
    if python:
        interpreter, program = interpreter_and_program(words)
        options = ["--level", level, "-o", str(out)] + ([] if outside is None else ["--seed", str(outside)])
        words, variables = [interpreter, *plan.recorder, "record", *options, *program], dict(os.environ)
    else:
        variables = environment(out, NativeOptions(seed=outside, level=level), scratch)
    if SLOTS.count != 1:
        variables = SHARING | variables
    with SLOTS.one():
        ended = run(words, plan.folder, variables, plan.timeout, scratch)
    # A Python program that is killed leaves its log, not the archive.
    found = next((path for path in (out, scratch / LOG) if path.exists()), None)
    if ended.code == 2 and found is None and python:
        return Run(ended.code, 0, trouble=ended.trouble or ended.last_line or "nothing was recorded"), None
    return _described(found, ended), found


def _described(path: Path | None, ended: Ended) -> Run:
    trouble = ended.trouble
    if trouble is None and ended.code:
        trouble = f"ended with exit code {ended.code}" + (f": {ended.last_line}" if ended.last_line else "")
    if path is None:
        return Run(ended.code, 0, trouble=trouble or "nothing was recorded; is it built with tracekit's crate?")
    try:
        with open_trace(path) as trace:
            return counted(trace, ended.code, trouble)
    except TraceError as error:
        return Run(ended.code, 0, trouble=trouble or str(error).replace(str(path), "its trace"))


def counted(trace: Trace, code: int | None, trouble: str | None) -> Run:
    rows = [sequence_summary(trace, sequence) for sequence in trace.sequences]
    return Run(
        code,
        sum(generated_count(trace, sequence) for sequence in trace.sequences),
        tuple(str(row["end"]) for row in rows),
        sum(row.get("fallbacks") or 0 for row in rows),
        sum(row.get("redraws") or 0 for row in rows),
        trouble=trouble,
    )


def run(words: list[str], folder: str, variables: dict[str, str], timeout: float | None, scratch: Path) -> Ended:
    """Run a program to its end or to its time limit, in seconds; its output goes to a file in `scratch`.

    It may fill half of the disk's free space, so that the others have room. Raises Stopped.
    """
    most = shutil.disk_usage(scratch).free // 2
    output = scratch / OUTPUT
    with output.open("wb") as sink:
        try:
            process = start(words, folder, variables, sink, largest_file=most)
        except OSError as error:
            return Ended(127, "", f"{words[0]}: cannot be started: {error.strerror}")
        code = _wait(process, timeout)
    if code is None:
        return Ended(None, "", f"stopped after {timeout:g} seconds, its time limit (--timeout)")
    if code == -signal.SIGXFSZ:
        return Ended(
            128 + signal.SIGXFSZ, "", f"stopped: it wrote more than {most / 2**30:.1f} GiB, half of what is free"
        )
    return Ended(exit_code(code), last_line(output))


def _wait(process: subprocess.Popen[bytes], timeout: float | None) -> int | None:
    """Its exit code, or None where it ran out of time."""
    limit = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            return process.wait(POLL)
        except subprocess.TimeoutExpired:
            late = limit is not None and time.monotonic() > limit
            if late or STOPPED.is_set():
                end(process)
                if STOPPED.is_set():
                    raise Stopped from None
                return None


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for one run, gone with it."""
    return tempfile.TemporaryDirectory(prefix="tracekit-postmortem-", ignore_cleanup_errors=True)
