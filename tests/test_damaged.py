"""Damaged files: a one-line refusal or an answer, never a traceback, a hang or an allocation that a file asks for.

`make fuzz` is the long form.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.attacks import fuzz
from tests.small_run import write_run
from tracekit.formats.archive import write_archive
from tracekit.formats.archive_trace import ArchiveTrace
from tracekit.formats.log import LogWriter
from tracekit.formats.opening import open_trace
from tracekit.formats.untrusted_hdf5 import HEAP
from tracekit.programs.native import write_tokens
from tracekit.trace import TraceError

FOUND = (133, 680, 1316, 2799, 4951, 6626, 7349, 9250, 10980, 11544)
"""Seeds that once ended in a traceback, or in a line that named no file, or in two lines."""
CASES = 120
HANG = 60.0
"""Seconds of CPU."""


@pytest.mark.parametrize("form", fuzz.FORMATS)
def test_damaged_files_are_refused_in_one_line_or_read(form: str, tmp_path: Path) -> None:
    seeds = [*FOUND, *range(1_000_000, 1_000_000 + CASES)]
    found = list(fuzz.outcomes(form, seeds, fuzz.make_bases(tmp_path), HANG, jobs=1))
    assert sorted(outcome.seed for outcome in found) == seeds
    faults = [outcome for outcome in found if outcome.fault is not None]
    assert not faults, f"python -m tests.attacks.fuzz --format {form} --seeds {faults[0].seed}:{faults[0].seed + 1}"
    assert max(outcome.peak for outcome in found) < 1 << 30


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with open_trace(write_run(tmp_path / "sound.tklog")) as trace:
        write_archive(trace, tmp_path / "sound.h5")
    return tmp_path / "sound.h5"


def refused(path: Path) -> str:
    """Why a file is not read, in one line that names it."""
    with pytest.raises(TraceError) as caught, open_trace(path) as trace:
        for sequence in trace.sequences:
            for index in range(sequence.step_count):
                sequence.step(index)
            for name, data in sequence.sites.items():
                for first, stop in data.ranges:
                    sequence.read(name, first, stop)
            assert sequence.inputs is not None
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_heap_without_an_end_is_refused_before_hdf5_reads_it(archive: Path) -> None:
    """Archives of earlier versions have texts in a heap, in which HDF5 1.14 runs in circles at an object of no size."""
    with h5py.File(archive, "r+") as file:
        file.attrs["implementation"] = "python"  # of any length
    with ArchiveTrace(archive) as trace:
        assert trace.implementation == "python"
    data = bytearray(archive.read_bytes())
    at = data.index(HEAP) + 16
    struct.pack_into("<H6xQ", data, at, 0, 0)
    archive.write_bytes(data)
    assert "heap" in refused(archive)


def test_an_archive_needs_no_heap(archive: Path) -> None:
    assert HEAP not in archive.read_bytes()


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("steps/token", np.array([1, 2, 50, 3, 4, 5]), "its tokens hold 50"),
        ("steps/token", np.array([1, 2, -1, 3, 4, 5]), "its tokens hold -1"),
        ("prompt/token_ids", np.array([1, -5, 3, 4]), "its token_ids hold -5"),
        ("prompt/token_ids", np.ones((2, 2), np.int64), "not a row of integers"),
        ("prompt/token_ids", np.array([1.0, 2.0]), "not a row of integers"),
        ("draws/step", np.array([0, 1, 2, 3, 4, 6]), "has no step 6"),
        ("draws/words", np.full(6, 2**60, np.uint64), "words of a draw"),
        ("steps/position", np.arange(5), "a row for every step"),
    ],
)
def test_values_that_index_something_are_checked(archive: Path, name: str, values: np.ndarray, why: str) -> None:
    with h5py.File(archive, "r+") as file:
        del file[f"sequences/0/{name}"]
        file[f"sequences/0/{name}"] = values
    assert why in refused(archive)


@pytest.mark.parametrize(
    "stated",
    [
        {"model": {"hidden_size": "many"}},
        {"model": {"rope_theta": float("nan")}},
        {"sampling": {"top_k": "5"}},
        {"sampling": {"eos_token_id": [[2]]}},
        {"model": [1]},
        {"seed": 2**70},
        {"sites": [{"name": "up", "class": "Linear", "order": "first"}]},
        {"sites": [{"name": ["up"], "class": "Linear", "order": 0}]},
        {"weights": [{"name": "w", "dtype": "float32", "shape": [-1]}]},
    ],
)
def test_statements_that_later_stages_compute_with_are_checked(tmp_path: Path, stated: dict[str, object]) -> None:
    path = tmp_path / "odd.tklog"
    log = LogWriter(path)
    log.open("python", **stated)
    log.close()
    assert "cannot be" in refused(path)


def test_a_step_that_does_not_fit_ends_what_is_read(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.tklog", steps=3, close=False)
    rest = LogWriter(tmp_path / "more.tklog")
    rest.step(0, 3, 6, 99, {"logits": np.zeros(50, np.float32)})
    rest.abandon()
    path.write_bytes(path.read_bytes() + (tmp_path / "more.tklog").read_bytes())
    with open_trace(path) as trace:
        assert trace.sequences[0].step_count == 3
        assert "its tokens hold 99, which is no token id of its vocabulary" in str(trace.status_detail)


def test_a_log_that_could_not_be_written_whole_is_let_go(archive: Path, tmp_path: Path) -> None:
    """Its lock went with the exception: a second try while that was held ended in a traceback."""
    with h5py.File(archive, "r+") as file:
        del file["sequences/0/steps/position"]
    for _ in range(2):
        with open_trace(archive) as trace, pytest.raises(TraceError, match="too short") as held:
            write_tokens(trace, tmp_path / "follow.tklog")
        assert held.value


def test_a_message_is_one_line_whatever_a_file_names() -> None:
    assert str(TraceError("x.h5: site a\nb\x1b[2J é: damaged")) == "x.h5: site a\\nb\\x1b[2J é: damaged"


def test_what_is_no_file_of_ours_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "text.h5").write_bytes(b"this is no trace\n" * 10)
    (tmp_path / "signature.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "folder.h5").mkdir()
    for name, why in {
        "missing.h5": "No such file",
        "folder.h5": "Is a directory",
        "empty.h5": "is empty",
        "text.h5": "is neither a log",
        "signature.h5": "is damaged",
    }.items():
        assert why in refused(tmp_path / name), name


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_no_permission_is_said(archive: Path) -> None:
    archive.chmod(0)
    assert "Permission denied" in refused(archive)
