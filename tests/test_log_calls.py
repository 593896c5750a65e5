"""Calls of a log: whichever way they lie in it, a site's rows are those of its last call at each position."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tracekit
from tracekit.formats.archive import write_archive
from tracekit.formats.log import FRAME_HEAD, MAGIC, BadFrame, LogWriter, read_frames
from tracekit.trace import TraceError

NAMES = "abcde"


def random_calls(seed: int) -> list[tuple[int, int, dict[str, np.ndarray]]]:
    """Calls (first position, rows, rows of each site): mostly the next position, at times rewound, with a gap, of other
    sites, of several or no rows, and with a site that is no longer what it was."""
    rng = np.random.default_rng(seed)
    calls, at = [], 0
    names = list(NAMES)
    for _ in range(60):
        kind = rng.random()
        if kind < 0.05:
            at = int(rng.integers(0, at + 1))
        elif kind < 0.1:
            at += int(rng.integers(1, 4))
        elif kind < 0.2:
            names = [name for name in NAMES if rng.random() < 0.7]
        rows = 1 if rng.random() < 0.8 else int(rng.integers(0, 4))
        values = {name: rng.standard_normal((rows, 1 + index)).astype(np.float32) for index, name in enumerate(names)}
        if rng.random() < 0.02 and "b" in values:
            values["b"] = values["b"].astype(np.float16)
        if rng.random() < 0.02 and "c" in values:
            values["c"] = np.ones((rows + 1, 3), np.float32)
        calls.append((at, rows, values))
        at += rows
    return calls


def expected(calls: list[tuple[int, int, dict[str, np.ndarray]]]) -> dict[str, dict[int, bytes]]:
    """Bytes of each row by site and position, a call at a time."""
    out: dict[str, dict[int, bytes]] = {}
    kinds: dict[str, tuple[object, int]] = {}
    ended = set()
    for first, rows, values in calls:
        for name, value in values.items():
            kind = value.dtype, value.shape[1]
            if len(value) != rows or kinds.get(name, kind) != kind:
                if name in out:
                    ended.add(name)
            elif name not in ended:
                kinds[name] = kind
                out.setdefault(name, {}).update({first + index: row.tobytes() for index, row in enumerate(value)})
    return out


@pytest.mark.parametrize("seed", range(12))
def test_a_position_has_the_row_of_its_last_call(tmp_path: Path, seed: int) -> None:
    calls = random_calls(seed)
    with LogWriter(tmp_path / "run.tklog") as log:
        log.open("python", dtype="float32")
        log.sites([{"name": name, "class": "tap", "order": order} for order, name in enumerate(NAMES)])
        log.sequence(0)
        for index, (first, rows, values) in enumerate(calls):
            log.call(0, first, rows, values)
            if index % 3 == seed % 3:  # frames of other lengths lie between
                log.lost("x" * (index % 40))
        log.end_sequence(0, 0, "done")
    wanted = expected(calls)
    with tracekit.open(tmp_path / "run.tklog") as trace:
        write_archive(trace, tmp_path / "run.h5")
    for name in ("run.tklog", "run.h5"):
        with tracekit.open(tmp_path / name) as trace:
            sequence = trace.sequences[0]
            assert set(sequence.sites) == set(wanted)
            for site, rows_of in wanted.items():
                held = [at for first, stop in sequence.sites[site].ranges for at in range(first, stop)]
                assert held == sorted(rows_of)
                assert all(sequence.read(site, at, at + 1).tobytes() == rows_of[at] for at in held)
                for first, stop in sequence.sites[site].ranges:
                    whole = b"".join(rows_of[at] for at in range(first, stop))
                    assert sequence.read(site, first, stop).tobytes() == whole
                    with pytest.raises(TraceError):
                        sequence.read(site, first, stop + 1)


def frame(header: str, data: bytes = bytes(8)) -> bytes:
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return FRAME_HEAD.pack(MAGIC, 0, 8 + len(text) + len(data), 0) + len(text).to_bytes(8, "little") + text + data


def test_a_header_may_be_written_in_any_way(tmp_path: Path) -> None:
    entry = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    led = {"__metadata__": {"kind": "x", "n": "1"}, **entry}
    texts = [json.dumps(led), json.dumps(led, separators=(",", ":")), json.dumps({**entry, **led}, indent=1)]
    raw = b"".join(frame(text) for text in (*texts, *texts))
    read = list(read_frames(raw))
    assert [(one.kind, one.metadata, one.tensors) for one in read] == [("x", {"n": 1}, read[0].tensors)] * 6
    assert [one.start + 8 for one in read] == [one.offset for one in read[1:]] + [len(raw)]
    assert read[1].tensors is read[4].tensors


@pytest.mark.parametrize(
    "header",
    [
        '{"__metadata__":{"kind":"x"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}',
        '{"__metadata__":{"kind":"x","kind":"x"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"__metadata__":{},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"__metadata__":{"kind":"x"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} x',
        '{"__metadata__":{"kind":"x"},"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}',
    ],
)
def test_a_bad_header_after_a_good_one_is_refused(tmp_path: Path, header: str) -> None:
    good = frame('{"__metadata__":{"kind":"x"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}')
    read = read_frames(good + frame(header))
    next(read)
    with pytest.raises(BadFrame):
        next(read)


def test_the_same_header_does_not_fit_other_data() -> None:
    text = '{"__metadata__":{"kind":"x"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    read = read_frames(frame(text) + frame(text, bytes(16)))
    next(read)
    with pytest.raises(BadFrame):
        next(read)
