"""What the commands cost that have nothing to compute: help, a small diff, a look into a large trace, an import.

    python -m benchmarks.commands [--megabytes 1000] [--rounds 5]

Each is a process of its own; the runs are taken in turn, and medians of CPU and wall seconds are
printed. The large trace is made as a program records it, one position a call.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.diff_speed import LAYERS, WIDTHS, write_log
from tracekit.formats.archive import write_archive
from tracekit.formats.log_trace import LogTrace

DEMO = ("traces/python.h5", "traces/layer.h5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the large trace")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        positions = int(options.megabytes * 1e6 / (4 * LAYERS * sum(WIDTHS)))
        log = write_log(Path(folder) / "large.tklog", positions, seed=0, chunk=1)
        archive, copy, imported = (str(Path(folder) / name) for name in ("large.h5", "copy.tklog", "imported.h5"))
        with LogTrace(log) as trace:
            write_archive(trace, archive)
        tracekit = [sys.executable, "-m", "tracekit_cli"]
        runs = {
            "tracekit --help": [*tracekit, "--help"],
            "tracekit diff, demo pair": [*tracekit, "diff", *DEMO],
            f"tracekit show, {options.megabytes} MB": [*tracekit, "show", archive],
            f"cp, {options.megabytes} MB": [shutil.which("cp") or "cp", str(log), copy],
            f"tracekit import, {options.megabytes} MB": [*tracekit, "import", "--keep-log", "-o", imported, str(log)],
        }
        report(runs, options.rounds)


def report(runs: dict[str, list[str]], rounds: int) -> None:
    """Run the commands in turn, the first turn uncounted, and print a line each."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, command in runs.items():
            measured = cost(command)
            if turn:
                seen[name].append(measured)
    for name, rows in seen.items():
        cpu, wall = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:32} {cpu:7.3f} s CPU  {wall:7.3f} s wall", flush=True)


def cost(command: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of one process."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(child.pid, 0)
    return used.ru_utime + used.ru_stime, time.perf_counter() - began


if __name__ == "__main__":
    main()
