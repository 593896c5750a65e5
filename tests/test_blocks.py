"""What an archive notes of its values: digests of blocks, and whether they are finite. It holds while nobody has
changed the file."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash

import tracekit
from tracekit.dtypes import STORAGE, all_finite, to_float
from tracekit.formats.archive import NOTED_BYTES, write_archive
from tracekit.formats.log import LogWriter, Tensor
from tracekit.inspection.non_finite import first_non_finite
from tracekit.trace import TraceError

WIDTH, ROWS = 1024, 300
STEP = NOTED_BYTES // (4 * WIDTH)


def archive(path: Path, values: np.ndarray | None = None, first: int = 0) -> Path:
    """One site, [ROWS, WIDTH] in float32, in two ranges."""
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32) if values is None else values
    with LogWriter(path.with_suffix(".tklog")) as log:
        log.open("python", dtype="float32")
        log.sites([{"name": "a", "class": "Linear", "order": 0}])
        log.sequence(0)
        log.call(0, first, 200, {"a": values[:200]})
        log.call(0, first + 210, ROWS - 200, {"a": values[200:]})
        log.end_sequence(0, 0, "done")
    with tracekit.open(path.with_suffix(".tklog")) as trace:
        write_archive(trace, path)
    return path


def test_a_range_is_divided_from_its_start(tmp_path: Path) -> None:
    with tracekit.open(archive(tmp_path / "run.h5")) as trace:
        noted = trace.sequences[0].blocks("a")
        assert noted is not None and noted.finite.all()
        assert list(zip(noted.first, noted.stop, strict=True)) == [(0, STEP), (STEP, 200), (210, 310)]
        for first, stop, digest in zip(noted.first, noted.stop, noted.digest, strict=True):
            assert xxhash.xxh3_64_intdigest(trace.sequences[0].read("a", int(first), int(stop)).tobytes()) == digest


def test_a_file_that_was_changed_vouches_for_nothing(tmp_path: Path) -> None:
    path = archive(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        file["sequences/0/sites/a"][7, 5] = np.inf
    with tracekit.open(path) as trace:
        assert trace.sequences[0].blocks("a") is None
        found = first_non_finite(trace)
        assert found is not None and found.position == 7


def test_what_is_not_finite_is_found_by_its_block(tmp_path: Path) -> None:
    values = np.ones((ROWS, WIDTH), np.float32)
    values[STEP + 3, 1] = np.nan
    with tracekit.open(archive(tmp_path / "run.h5", values)) as trace:
        noted = trace.sequences[0].blocks("a")
        assert noted is not None and noted.finite.tolist() == [True, False, True]
        found = first_non_finite(trace)
        assert found is not None and (found.position, found.positions) == (STEP + 3, 1)


def test_too_few_notes_are_refused_in_one_line(tmp_path: Path) -> None:
    path = archive(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        written = int(file.attrs["written"])
        del file["sequences/0/blocks/digest"]
        file["sequences/0/blocks/digest"] = np.zeros(2, np.uint64)
    os.utime(path, ns=(written, written))
    with tracekit.open(path) as trace, pytest.raises(TraceError, match="blocks: a column is missing or too short"):
        trace.sequences[0].blocks("a")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_finite_is_told_by_the_bits(dtype: str) -> None:
    storage = STORAGE[dtype]
    unsigned = np.dtype(f"u{storage.itemsize}")
    bits = np.random.default_rng(0).integers(0, 2 ** (8 * storage.itemsize), 4096, dtype=unsigned)
    bits[:256] |= unsigned.type(0x7F << (8 * storage.itemsize - 8))
    finite = np.isfinite(to_float(bits.view(storage), dtype))
    assert 0 < finite.sum() < len(bits)
    assert [all_finite(bits[index : index + 1].view(storage), dtype) for index in range(len(bits))] == finite.tolist()
    assert all_finite(bits.view(storage)[finite], dtype) and not all_finite(bits.view(storage), dtype)


def test_every_dtype_has_its_notes(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "run.tklog") as log:
        log.open("python")
        log.sites([{"name": name, "class": "tap", "order": order} for order, name in enumerate(STORAGE)])
        log.sequence(0)
        tensors = {name: Tensor(name, (3, 2), bytes(6 * kind.itemsize)) for name, kind in STORAGE.items()}
        log.call(0, 0, 3, {**tensors, "empty": np.empty((3, 0), np.float32)})
        log.end_sequence(0, 0, "done")
    with tracekit.open(tmp_path / "run.tklog") as trace:
        write_archive(trace, tmp_path / "run.h5")
    with tracekit.open(tmp_path / "run.h5") as trace:
        for name in (*STORAGE, "empty"):
            noted = trace.sequences[0].blocks(name)
            assert noted is not None and noted.finite.all() and noted.stop.tolist() == [3]
