"""What a diff costs: two archives that differ by rounding, two that hold the same bits, and these where one was copied
without its time, so that what its writer noted is not believed, against `np.copyto` of one archive's bytes.

    python benchmarks/diff_speed.py [--megabytes 2000]

All are read from a warm page cache, in turn; CPU seconds are compared, and ratios of medians printed. What a
process's memory peaks at is printed last.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

import tracekit
from tracekit.formats.archive import write_archive
from tracekit.formats.log import LogWriter
from tracekit.formats.log_trace import LogTrace

WIDTHS = (576, 576, 192, 192, 576, 576, 1536, 1536, 1536, 576)
"""Widths of the sites of a layer of SmolLM2-135M."""
LAYERS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000, help="size of each archive")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    positions = int(options.megabytes * 1e6 / (4 * LAYERS * sum(WIDTHS)))
    with tempfile.TemporaryDirectory() as folder:
        print(f"making two archives of {options.megabytes} MB", flush=True)
        one, other = (make(Path(folder) / f"{seed}.h5", positions, seed) for seed in (0, 1))
        same = Path(shutil.copy2(one, Path(folder) / "same.h5"))
        copied = Path(shutil.copyfile(one, Path(folder) / "copied.h5"))  # its time of change is not the recording's
        source = np.ones(one.stat().st_size // 4, dtype=np.float32)
        target = np.empty_like(source)
        runs: dict[str, Callable[[], object]] = {
            "np.copyto of one of them": lambda: np.copyto(target, source),
            "tracekit diff": lambda: diff(one, other),
            "tracekit diff, equal, noted": lambda: diff(one, same),
            "tracekit diff, equal, copied": lambda: diff(one, copied),
            "h5py, reading both": lambda: (read(one), read(same)),
        }
        seconds = alternate(runs, options.rounds)
        base = seconds["np.copyto of one of them"]
        for name, median in seconds.items():
            print(f"{name:28} {median:7.3f} s CPU   ratio {median / base:6.2f}")
        peak = peak_of([sys.executable, "-m", "tracekit_cli", "diff", str(one), str(other)])
        print(f"{'tracekit diff, a process':28} {peak / 1e6:7.0f} MB at its peak")
        if shutil.which("h5diff"):
            began = time.perf_counter()
            subprocess.run(["h5diff", "-q", str(one), str(other)], check=False, capture_output=True)
            took = time.perf_counter() - began
            print(f"{'h5diff':28} {took:7.3f} s wall  ratio {took / base:6.2f}")


def alternate(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each run, the runs taken in turn after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            run()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_of(command: list[str]) -> int:
    """Bytes that a process's memory peaks at, mapped files included. It is started by a small one: what a process takes
    over from the one that starts it counts as its own."""
    small = "import os, subprocess, sys; child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
    small += "print(os.wait4(child.pid, 0)[2].ru_maxrss * 1024)"
    return int(subprocess.run([sys.executable, "-c", small, *command], check=True, capture_output=True).stdout)


def read(path: Path) -> None:
    """Every site's values, one dataset at a time."""
    with h5py.File(path) as file:
        for site in file["sequences/0/sites"].values():
            site[...]


def diff(one: Path, other: Path) -> None:
    with tracekit.open(one) as reference, tracekit.open(other) as candidate:
        verdict = tracekit.diff(reference, candidate)
    if verdict.verdict != "parity":
        raise SystemExit(f"the archives should agree: {verdict.evidence}")


def make(path: Path, positions: int, seed: int) -> Path:
    """An archive of one sequence; `seed` 1 differs from 0 by rounding noise."""
    log = write_log(path.with_suffix(".tklog"), positions, seed)
    with LogTrace(log) as trace:
        write_archive(trace, path)
    log.unlink()
    return path


def write_log(path: Path, positions: int, seed: int, chunk: int = 64) -> Path:
    """The log of it, `chunk` positions a call."""
    log = LogWriter(path, hash_frames=chunk == 1)
    names = [f"layers.{layer}.site{index}" for layer in range(LAYERS) for index in range(len(WIDTHS))]
    log.open("python", dtype="float32")
    log.sites([{"name": name, "class": "Linear", "order": order} for order, name in enumerate(names)])
    log.sequence(0)
    for first in range(0, positions, chunk):
        rows = min(chunk, positions - first)
        values = np.random.default_rng(first).standard_normal((rows, LAYERS * sum(WIDTHS)), dtype=np.float32)
        if seed:
            values *= np.float32(1 + 2**-22)
        columns = np.cumsum([0, *WIDTHS * LAYERS])
        tensors = {name: values[:, columns[i] : columns[i + 1]] for i, name in enumerate(names)}
        log.call(0, first, rows, tensors)
    log.end_sequence(0, 0, "done")
    log.close()
    return path


if __name__ == "__main__":
    main()
