"""Log and archive: what is written comes back bit for bit, from either file, whole or cut short."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import tracekit
from tracekit.dtypes import STORAGE, round_to, to_float
from tracekit.formats.archive import write_archive
from tracekit.formats.log import FRAME_HEAD, LogWriter, Tensor
from tracekit.inspection.non_finite import first_non_finite
from tracekit.report.contents import sequence_row
from tracekit.report.token_rows import TokenTexts

FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def write_sample(path: Path, steps: int = 3) -> None:
    """A log with every kind of frame: a prompt of 4 tokens in two chunks, then one call a step."""
    log = LogWriter(path)
    weights = [{"name": "w", "dtype": "float32", "shape": [2, 2], "digest": 2**64 - 1}]
    log.open("python", dtype="float32", seed=7, model={"hidden_size": 3}, weights=weights)
    log.sites([{"name": "a/b", "class": "Linear", "order": 0}, {"name": "a/b:in", "class": "input", "order": -1}])
    log.sequence(0, {"prompt/token_ids": np.arange(4)}, prompt_text="four", sampling={"top_k": 5})
    log.call(0, 0, 3, {"a/b": np.arange(9, dtype=np.float32).reshape(3, 3)})
    log.call(0, 3, 1, {"a/b": np.full((1, 3), 9, dtype=np.float32)})
    for step in range(steps):
        draw = {
            "op": "multinomial",
            "generator": "mt19937",
            "seed": 2**64 - 1,
            "offset": 10 * step,
            "result": step,
        }
        tensors = {
            "logits": np.linspace(0, step, 5, dtype=np.float32),
            "survivors/id": np.arange(step),
            "survivors/prob": np.ones(step, dtype=np.float32),
        }
        log.step(
            0, step, 3 + step, step, tensors, text=f"t{step}", draws=[draw], events=[{"kind": "note", "detail": 1}]
        )
        log.call(0, 4 + step, 1, {"a/b": np.full((1, 3), step, dtype=np.float32)})
    log.end_sequence(0, steps, "length")
    log.close()


def both(tmp_path: Path, steps: int = 3) -> list[tracekit.Trace]:
    log, archive = tmp_path / "run.tklog", tmp_path / "run.h5"
    write_sample(log, steps)
    with tracekit.open(log) as trace:
        write_archive(trace, archive)
    return [tracekit.open(log), tracekit.open(archive)]


def test_log_and_archive_tell_the_same(tmp_path: Path) -> None:
    for trace in both(tmp_path):
        assert (trace.status, trace.implementation, trace.config["seed"]) == ("complete", "python", 7)
        assert trace.weights["w"].digest == 2**64 - 1
        assert list(trace.sites) == ["a/b:in", "a/b"]
        sequence = trace.sequences[0]
        assert sequence.prompt_ids is not None
        assert sequence.prompt_ids.tolist() == [0, 1, 2, 3]
        assert (sequence.prompt_text, sequence.sampling, sequence.end_reason) == ("four", {"top_k": 5}, "length")
        assert sequence.tokens.tolist() == [0, 1, 2]
        assert sequence.sites["a/b"].ranges == ((0, 7),)
        assert sequence.read("a/b", 2, 5).tolist() == [[6, 7, 8], [9, 9, 9], [0, 0, 0]]
        step = sequence.step(2)
        assert (step.position, step.text, step.draws[0].offset, step.events[0].detail) == (5, "t2", 20, 1)
        assert (step.draws[0].seed, step.draws[0].words) == (2**64 - 1, None)
        assert step.survivors_id is not None
        assert step.survivors_id.tolist() == [0, 1]
        assert sequence.step(0).survivors_id is None or sequence.step(0).survivors_id.size == 0
        logits = sequence.logits(1, 3)
        assert logits is not None
        assert logits[:, -1].tolist() == [1, 2]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_steps_without_logits_are_no_steps_of_nan(tmp_path: Path, dtype: str) -> None:
    """A step with none, and one of another head; a row that was computed to be NaN is what it is."""
    log = LogWriter(tmp_path / "run.tklog")
    log.open("native", dtype=dtype)
    log.sequence(0, {"prompt/token_ids": np.arange(2)})
    rows = [np.ones(4), None, np.full(4, np.nan), np.ones(3), None]
    for step, row in enumerate(rows):
        tensors = {} if row is None else {"logits": Tensor(dtype, row.shape, round_to(row, dtype).tobytes())}
        log.step(0, step, 1 + step, 0, tensors)
    log.end_sequence(0, len(rows), "length")
    log.close()
    with tracekit.open(log.path) as trace:
        write_archive(trace, tmp_path / "run.h5")
    for path in (log.path, tmp_path / "run.h5"):
        with tracekit.open(path) as trace:
            sequence = trace.sequences[0]
            held = [sequence.logits(step, step + 1) is not None for step in range(len(rows))]
            assert held == [True, False, True, False, False]
            found = first_non_finite(trace)
            assert found is not None and (found.step, found.positions) == (2, 1)


def test_a_site_outside_its_positions_is_named(tmp_path: Path) -> None:
    for trace in both(tmp_path):
        with pytest.raises(tracekit.TraceError, match=r"sequence 0: site 'a/b' is not recorded at position 7"):
            trace.sequences[0].read("a/b", 6, 8)


def test_every_payload_is_stock_safetensors(tmp_path: Path) -> None:
    write_sample(tmp_path / "run.tklog")
    data = (tmp_path / "run.tklog").read_bytes()
    offset = frames = 0
    while offset < len(data):
        length = FRAME_HEAD.unpack_from(data, offset)[2]
        payload = data[offset + FRAME_HEAD.size : offset + FRAME_HEAD.size + length]
        safetensors.numpy.load(payload)
        assert struct.unpack_from("<Q", payload)[0] % 8 == 0
        offset += FRAME_HEAD.size + length
        frames += 1
    assert frames == 13


def test_cut_anywhere_keeps_every_complete_step(tmp_path: Path) -> None:
    whole = tmp_path / "whole.tklog"
    write_sample(whole, steps=2)
    data = whole.read_bytes()
    complete = []
    for length in range(1, len(data)):
        cut = tmp_path / "cut.tklog"
        cut.write_bytes(data[:length])
        try:
            trace = tracekit.open(cut)
        except tracekit.TraceError as error:
            assert complete == [], error
            continue
        assert trace.status == "recovered"
        complete.append(trace.sequences[0].step_count if trace.sequences else 0)
    assert complete == sorted(complete)
    assert set(complete) == {0, 1, 2}


def test_an_opening_alone_is_a_trace_without_sequences(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "run.tklog")
    log.open("python", dtype="float32")
    log.abandon()
    trace = tracekit.open(log.path)
    assert (trace.status, list(trace.sequences), trace.config["dtype"]) == ("recovered", [], "float32")
    assert trace.status_detail == "recovered no sequence; the file ends without an end frame"


def test_a_flipped_bit_is_not_read_past(tmp_path: Path) -> None:
    path = tmp_path / "run.tklog"
    write_sample(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    trace = tracekit.open(path)
    assert trace.status == "recovered"
    assert "does not match its hash" in str(trace.status_detail)


def test_rewound_positions_take_the_later_rows(tmp_path: Path) -> None:
    path = tmp_path / "run.tklog"
    log = LogWriter(path)
    log.open("python")
    log.sequence(0)
    log.call(0, 0, 4, {"x": np.zeros((4, 1), np.float32)})
    log.call(0, 1, 2, {"x": np.ones((2, 1), np.float32)})
    log.close()
    assert tracekit.open(path).sequences[0].read("x", 0, 4)[:, 0].tolist() == [0, 1, 1, 0]


@settings(max_examples=60, deadline=None)
@given(dtype=st.sampled_from(sorted(STORAGE)), rows=st.integers(1, 5), width=st.integers(0, 9), data=st.data())
def test_every_dtype_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, rows: int, width: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("bits")
    size = rows * width * STORAGE[dtype].itemsize
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if dtype == "bool":
        raw = bytes(byte & 1 for byte in raw)
    log = LogWriter(folder / "x.tklog")
    log.open("python")
    log.sequence(0)
    log.call(0, 0, rows, {"x": Tensor(dtype, (rows, width), raw)})
    log.close()
    with tracekit.open(folder / "x.tklog") as trace:
        assert trace.sequences[0].read("x", 0, rows).tobytes() == raw
        write_archive(trace, folder / "x.h5")
    with tracekit.open(folder / "x.h5") as trace:
        assert trace.sequences[0].sites["x"].dtype == dtype
        assert trace.sequences[0].read("x", 0, rows).tobytes() == raw


def test_stock_hdf5_tools_show_bfloat16_as_numbers(tmp_path: Path) -> None:
    for tool in ("h5ls", "h5dump"):
        assert shutil.which(tool), f"{tool} is missing; install Debian's hdf5-tools"
    log = LogWriter(tmp_path / "x.tklog")
    log.open("python")
    log.sequence(0)
    log.call(0, 0, 1, {"x": Tensor("bfloat16", (1, 3), np.array([0x3F80, 0xC040, 0x3E80], np.uint16).tobytes())})
    log.close()
    write_archive(tracekit.open(tmp_path / "x.tklog"), tmp_path / "x.h5")
    listing = subprocess.run(["h5ls", "-r", tmp_path / "x.h5"], check=True, capture_output=True, text=True).stdout
    assert "/sequences/0/sites/x" in listing
    dump = ["h5dump", "-d", "/sequences/0/sites/x", tmp_path / "x.h5"]
    assert "1, -3, 0.25" in subprocess.run(dump, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_of_bits(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    bits = np.arange(256 if STORAGE[dtype].itemsize == 1 else 65536, dtype=np.uint16)
    bits = bits.view(np.float16) if STORAGE[dtype].kind == "f" else bits
    with np.errstate(invalid="ignore"):  # signalling NaNs become quiet ones
        bits = bits.astype(STORAGE[dtype])
    want = torch.from_numpy(bits.copy()).view(getattr(torch, dtype)).double().numpy()
    assert np.array_equal(to_float(bits, dtype).astype(np.float64), want, equal_nan=True)


def test_an_archive_never_replaces_a_good_one_halfway(tmp_path: Path) -> None:
    traces = both(tmp_path)
    before = (tmp_path / "run.h5").read_bytes()

    class Failing:
        def __getattr__(self, name: str) -> object:
            if name == "sequences":
                raise OSError("no space left")
            return getattr(traces[0], name)

    with pytest.raises(tracekit.TraceError, match="cannot be written"):
        write_archive(Failing(), tmp_path / "run.h5")  # type: ignore[arg-type]
    assert (tmp_path / "run.h5").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.h5", "run.tklog"]


def test_archive_json_is_readable_with_plain_h5py(tmp_path: Path) -> None:
    both(tmp_path)
    with h5py.File(tmp_path / "run.h5") as file:
        assert json.loads(file["config"][()])["model"] == {"hidden_size": 3}
        assert file["sequences/0/sites/a%2Fb"].shape == (7, 3)


@pytest.mark.parametrize("kept", ["log", "archive"])
def test_a_parameter_without_a_digest_takes_none_of_the_others(kept: str, tmp_path: Path) -> None:
    """As one on the device `meta`: what is known of the others still tells that one of them has other bytes."""
    paths = []
    for name, digest in (("ours", 7), ("theirs", 8)):
        log = tmp_path / f"{name}.tklog"
        with LogWriter(log) as writer:
            weights = [("a.weight", None), ("b.weight", digest)]
            rows = [{"name": each, "dtype": "float32", "shape": [2], "digest": known} for each, known in weights]
            writer.open("python", weights=rows)
            writer.sites([{"name": "b", "class": "Linear", "order": 0, "parameters": {"weight": "b.weight"}}])
            writer.sequence(0, {"prompt/token_ids": np.array([1, 2])})
            writer.call(0, 0, 2, {"b": np.ones((2, 3), np.float32)})
            writer.end_sequence(0, 0, "length")
        if kept == "archive":
            write_archive(tracekit.open(log), log.with_suffix(".h5"))
        paths.append(log if kept == "log" else log.with_suffix(".h5"))
    one, other = map(tracekit.open, paths)
    assert [weight.digest for weight in one.weights.values()] == [None, 7]
    assert tracekit.diff(one, other).cause == "weights"
    assert tracekit.diff(one, one).cause != "weights"


def test_a_prompt_of_which_some_tokens_have_no_text(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "a.tklog")
    log.open("python", dtype="float32", model={})
    log.sequence(0, {"prompt/token_ids": np.array([1, 2])}, texts=[None, "ship"])
    log.end_sequence(0, 0, "done")
    log.close()
    with tracekit.open(tmp_path / "a.tklog") as trace:
        [sequence] = trace.sequences
        assert sequence_row(sequence)["prompt"] == "ship"
        assert TokenTexts((sequence,), None)[2] == "ship"
