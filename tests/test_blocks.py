"""What an archive notes of its values: digests of blocks, and whether they are finite. It holds while nobody has
changed the file; after that it is taken of the values again."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash

import tracekit
from tracekit.align.sites import SequencePair, SitePair
from tracekit.compare.noted import noted_alike
from tracekit.compare.yardstick import _Conditions
from tracekit.dtypes import STORAGE, all_finite, to_float
from tracekit.formats.archive import NOTED_BYTES, write_archive
from tracekit.formats.log import LogWriter, Tensor
from tracekit.formats.untrusted_hdf5 import UntrustedFile
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
        noted = file["sequences/0/blocks/digest"][:]
        file["sequences/0/sites/a"][7, 5] = np.inf
    with tracekit.open(path) as trace:
        taken = trace.sequences[0].blocks("a")
        assert taken is not None and taken.finite.tolist() == [False, True, True]
        assert (taken.digest == noted).tolist() == [False, True, True]
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


def alike(one: Path, other: Path) -> tuple[bool, list[str]]:
    """Whether the site is alike by its notes, up to position 310, and of which files values were read for it."""
    with tracekit.open(one) as reference, tracekit.open(other) as candidate:
        pair, site = SequencePair(0, reference.sequences[0], candidate.sequences[0]), SitePair("a", "a", 0)
        read = []
        for sequence in (reference.sequences[0], candidate.sequences[0]):
            kept = sequence.read
            sequence.read = lambda *asked, kept=kept, path=sequence.path: (read.append(path), kept(*asked))[1]  # type: ignore
        return noted_alike(pair, site, 0, 200) and noted_alike(pair, site, 210, 300), read


def test_equal_digests_spare_the_reading(tmp_path: Path) -> None:
    one, other = archive(tmp_path / "one.h5"), archive(tmp_path / "other.h5")
    assert alike(one, other) == (True, [])


@pytest.mark.parametrize("row", [0, STEP, 199, 200, 289])
def test_one_changed_bit_shows(tmp_path: Path, row: int) -> None:
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
    values.view(np.uint32)[row, WIDTH - 1] ^= 1
    one, other = archive(tmp_path / "one.h5"), archive(tmp_path / "other.h5", values)
    assert not alike(one, other)[0]
    with tracekit.open(one) as reference, tracekit.open(other) as candidate:
        found = tracekit.diff(reference, candidate)
    assert found.compared is not None and found.compared.values == ROWS * WIDTH
    assert "largest error" in repr(found)


def test_what_lies_beyond_the_compared_rows_does_not_count(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
    values[295] = 0
    one, other = archive(tmp_path / "one.h5"), archive(tmp_path / "other.h5", values)
    assert alike(one, other) == (True, [str(one), str(other)])  # the last block reaches beyond position 300


def test_other_positions_and_changed_files_are_read(tmp_path: Path) -> None:
    one, other = archive(tmp_path / "one.h5"), archive(tmp_path / "other.h5", first=1)
    assert not alike(one, other)[0]
    touched = archive(tmp_path / "touched.h5")
    os.utime(touched)
    assert alike(one, touched) == (True, [str(touched)] * 2)  # its two ranges, once each; the other side's not at all
    assert decided(one, touched) == decided(touched, touched) == "parity"


def test_of_a_copy_only_the_values_count(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
    one, other = archive(tmp_path / "one.h5", values), archive(tmp_path / "other.h5", values * 2)
    with h5py.File(one) as file:
        claimed = file["sequences/0/blocks/digest"][:]
    noting(other, digest=claimed)
    os.utime(other)
    assert not alike(one, other)[0] and decided(one, other) == "divergence"


@pytest.mark.parametrize(
    ("bits", "verdict"), [(0x7FC00001, "parity"), (0x80000000, "parity"), (0x3F800000, "divergence")]
)
def test_equal_values_of_other_bits_are_compared_as_values(tmp_path: Path, bits: int, verdict: str) -> None:
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
    values[5, 9] = np.nan if np.isnan(np.uint32(bits).view(np.float32)) else 0.0
    one = archive(tmp_path / "one.h5", values)
    values.view(np.uint32)[5, 9] = bits
    other = archive(tmp_path / "other.h5", values)
    assert not alike(one, other)[0] and decided(one, other) == verdict
    os.utime(other)
    assert not alike(one, other)[0] and decided(one, other) == verdict


def test_an_archive_of_before_there_were_notes_is_read(tmp_path: Path) -> None:
    one, other = archive(tmp_path / "one.h5"), archive(tmp_path / "other.h5")
    with h5py.File(other, "r+") as file:
        del file["sequences/0/blocks"], file.attrs["written"]
    assert alike(one, other) == (True, [str(other)] * 2) and decided(one, other) == "parity"


def test_conditions_are_those_of_the_sites_before() -> None:
    conditions = _Conditions()
    conditions.add(1, 0, np.array([1.0, 5.0]))
    conditions.add(1, 3, np.array([2.0]))
    assert conditions.before(1, 0, 4).tolist() == [1, 1, 1, 1]
    assert conditions.before(2, 1, 5).tolist() == [5, 1, 2, 1]
    conditions.add(2, 0, np.array([9.0]))
    assert conditions.before(2, 0, 2).tolist() == [1, 5]
    assert conditions.before(7, 0, 2).tolist() == [9, 5]


def noting(path: Path, **columns: np.ndarray) -> Path:
    """The archive with other columns of `blocks`, by a writer that vouches for them."""
    with h5py.File(path, "r+") as file:
        written = int(file.attrs["written"])
        for name, column in columns.items():
            del file[f"sequences/0/blocks/{name}"]
            file[f"sequences/0/blocks/{name}"] = column
    os.utime(path, ns=(written, written))
    return path


def decided(one: Path, other: Path) -> str:
    with tracekit.open(one) as reference, tracekit.open(other) as candidate:
        return tracekit.diff(reference, candidate).verdict


@pytest.mark.parametrize("both", [True, False])
def test_a_writer_of_wrong_digests_hides_no_difference(tmp_path: Path, both: bool) -> None:
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
    one, other = archive(tmp_path / "one.h5", values), archive(tmp_path / "other.h5", values * 2)
    with tracekit.open(one) as trace:
        blocks = trace.sequences[0].blocks("a")
        assert blocks is not None
        claimed = np.zeros_like(blocks.digest) if both else blocks.digest
    noting(other, digest=claimed)
    if both:
        noting(one, digest=claimed)
    with tracekit.open(other) as trace:
        taken = trace.sequences[0].blocks("a")
        assert taken is not None and (taken.digest != claimed).all()
    assert decided(one, other) == "divergence"


def test_right_digests_written_by_another_are_taken(tmp_path: Path) -> None:
    one, other = archive(tmp_path / "one.h5"), archive(tmp_path / "other.h5")
    with tracekit.open(one) as trace:
        blocks = trace.sequences[0].blocks("a")
        assert blocks is not None
        noting(other, digest=blocks.digest)
    assert alike(one, other) == (True, [])


def test_damage_that_changes_no_time_is_seen(tmp_path: Path) -> None:
    one, other = archive(tmp_path / "one.h5"), archive(tmp_path / "other.h5")
    assert decided(one, other) == "parity"
    with h5py.File(other) as file:
        offset, written = file["sequences/0/sites/a"].id.get_offset(), int(file.attrs["written"])
    with other.open("r+b") as raw:
        raw.seek(offset + 4 * WIDTH * 7)
        raw.write(np.full(WIDTH, 3, np.float32).tobytes())
    os.utime(other, ns=(written, written))
    assert decided(one, other) == "divergence"


def test_an_offset_that_hdf5_does_not_know_is_not_believed(tmp_path: Path) -> None:
    path = archive(tmp_path / "run.h5")
    with tracekit.open(path) as trace:
        right = trace.sequences[0].read("a", 0, 200)
    for offset in (8, 2**63):
        noting(path, offset=np.array([offset], np.uint64))
        with tracekit.open(path) as trace:
            assert np.array_equal(trace.sequences[0].read("a", 0, 200), right)
    noting(path, offset=np.empty(0, np.uint64))
    with tracekit.open(path) as trace, pytest.raises(TraceError, match="blocks: a column is missing or too short"):
        trace.sequences[0].read("a", 0, 200)


def test_values_are_read_where_they_are_noted_to_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"site{index}" for index in range(12)]
    with LogWriter(tmp_path / "run.tklog") as log:
        log.open("python", dtype="float32")
        log.sites([{"name": name, "class": "Linear", "order": order} for order, name in enumerate(names)])
        log.sequence(0)
        rows = np.random.default_rng(0).standard_normal((len(names), 40, 64)).astype(np.float32)
        log.call(0, 0, 40, {**dict(zip(names, rows, strict=True)), "none": np.empty((40, 0), np.float32)})
        log.end_sequence(0, 0, "done")
    with tracekit.open(tmp_path / "run.tklog") as trace:
        write_archive(trace, tmp_path / "run.h5")
    asked = []
    monkeypatch.setattr(UntrustedFile, "rows", lambda *arguments: asked.append(arguments))
    with tracekit.open(tmp_path / "run.h5") as trace:
        for name, row in zip(names, rows, strict=True):
            values = trace.sequences[0].read(name, 0, 40)
            assert np.array_equal(values, row) and values.flags.aligned
    assert not asked
