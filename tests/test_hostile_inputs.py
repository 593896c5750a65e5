"""Absurd contents of sound containers: an answer or one line, in bounded memory and time; nothing in a file is run."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest

from tests.attacks import fuzz, hostile_inputs
from tests.small_run import write_run
from tracekit.formats.archive import write_archive
from tracekit.formats.log_trace import LogTrace

MEMORY = 1 << 30
"""Bytes of address space beyond what a process has before it reads."""
SECONDS = 30.0
"""Of CPU that a command may take."""
MARK = Path("/tmp/tracekit-was-here")
"""What a file makes if anything in it is run."""
Case = tuple[str, list[str], Path]


def of_checkpoints(folder: Path) -> Iterator[Case]:
    model = fuzz.ROOT / "traces/model"
    paths = hostile_inputs.write(folder, hostile_inputs.checkpoints())
    for name, files in hostile_inputs.folders().items():
        hostile_inputs.write(folder / name, files)
        paths.append(folder / name)
    for path in paths:
        commands: list[list[str | Path]] = [
            ["weights", model, path],
            ["weights", path, model, "--json"],
            ["audit", fuzz.ROOT / "traces/layer.h5", "--weights", path],
        ]
        for words in commands:
            yield path.name, list(map(str, words)), path


def of_configs(folder: Path) -> Iterator[Case]:
    model = (fuzz.ROOT / "traces/model/model.safetensors").read_bytes()
    for path in hostile_inputs.write(folder, hostile_inputs.configs()):
        yield path.name, ["config", str(path), str(fuzz.ROOT / "traces/layer.h5")], path
        if path.name == "config.json":
            (path.parent / "model.safetensors").write_bytes(model)
            words = ["audit", str(fuzz.ROOT / "traces/layer.h5"), "--weights", str(path.parent)]
            yield path.parent.name, words, path


def of_archives(folder: Path) -> Iterator[Case]:
    with LogTrace(write_run(folder / "sound.tklog")) as trace:
        write_archive(trace, folder / "sound.h5")
    sound = (folder / "sound.h5").read_bytes()
    for name, edit in hostile_inputs.archives().items():
        path = folder / f"{name}.h5"
        path.write_bytes(sound)
        with h5py.File(path, "r+") as file:
            edit(file)
        commands: list[list[str | Path]] = [
            ["show", path, "--json"],
            ["show", path, "--step", "1", "--site", "up"],
            ["diff", folder / "sound.tklog", path],
            ["audit", path, "--weights", fuzz.ROOT / "traces/model"],
            ["summary", path],
            ["tokens", path],
            ["names", folder / "sound.tklog", path],
        ]
        for words in commands:
            yield name, list(map(str, words)), path


def work(make: Callable[[Path], Iterator[Case]], folder: Path, found: list[str]) -> None:
    """Run all cases; what is wrong goes into `found`."""
    first = True
    for name, words, path in make(folder):
        if first:
            fuzz.run(words, path)  # what commands import is there before memory is limited
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
            first = False
        began = time.process_time()
        fault, detail = fuzz.run(words, path)
        took = time.process_time() - began
        if fault is not None and not (fault == "file not named" and path.parent.name in detail):
            found.append(f"{name}: {fault}: {' '.join(words)}: {detail[-600:]}")
        if took > SECONDS:
            found.append(f"{name}: {took:.0f} s: {' '.join(words)}")


@pytest.mark.parametrize("make", [of_checkpoints, of_configs, of_archives])
def test_absurd_contents(make: Callable[[Path], Iterator[Case]], tmp_path: Path) -> None:
    MARK.unlink(missing_ok=True)
    with multiprocessing.get_context("spawn").Manager() as manager:
        found = manager.list()
        process = multiprocessing.get_context("spawn").Process(target=work, args=(make, tmp_path, found))
        process.start()
        process.join()
        assert not list(found), "\n".join(found)
        assert process.exitcode == 0
    assert not MARK.exists()
