"""What a diff costs: two archives that differ by rounding, against `np.copyto` of the same bytes; and two equal ones,
against reading both.

    python benchmarks/diff_speed.py [--megabytes 1000]

Both are read from a warm page cache, in turn; CPU seconds are compared, and ratios of medians printed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
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
    parser.add_argument("--megabytes", type=int, default=1000, help="size of each archive")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    positions = int(options.megabytes * 1e6 / (4 * LAYERS * sum(WIDTHS)))
    with tempfile.TemporaryDirectory() as folder:
        print(f"making two archives of {options.megabytes} MB", flush=True)
        one, other = (make(Path(folder) / f"{seed}.h5", positions, seed) for seed in (0, 1))
        same = Path(shutil.copy(one, Path(folder) / "same.h5"))
        source = np.ones(one.stat().st_size // 4, dtype=np.float32)
        target = np.empty_like(source)
        runs: dict[str, Callable[[], object]] = {
            "np.copyto of one of them": lambda: np.copyto(target, source),
            "tracekit diff": lambda: diff(one, other),
            "h5py, reading both": lambda: (read(one), read(same)),
            "tracekit diff, equal": lambda: diff(one, same),
        }
        seconds = alternate(runs, options.rounds)
        base = seconds["np.copyto of one of them"]
        for name, median in seconds.items():
            print(f"{name:28} {median:7.3f} s CPU   ratio {median / base:6.2f}")
        equal = seconds["tracekit diff, equal"] / seconds["h5py, reading both"]
        print(f"{'of equal ones / reading both':28} {equal:23.2f}  (aim 1.5)")
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
    log = LogWriter(path.with_suffix(".tklog"), hash_frames=False)
    names = [f"layers.{layer}.site{index}" for layer in range(LAYERS) for index in range(len(WIDTHS))]
    log.open("python", dtype="float32")
    log.sites([{"name": name, "class": "Linear", "order": order} for order, name in enumerate(names)])
    log.sequence(0)
    chunk = 64
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
    with LogTrace(log.path) as trace:
        write_archive(trace, path)
    Path(log.path).unlink()
    return path


if __name__ == "__main__":
    main()
