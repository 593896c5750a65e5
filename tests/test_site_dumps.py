"""`tracekit import` of a folder of dumps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tracekit as tk
from tests.speech_traces import tracekit


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def dump(folder: str, change: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {f"layers.{index}.mlp": rng.normal(size=(5, 8)).astype(np.float32) for index in (2, 10)}
    values["layers.10.mlp"][3, 1] += change
    Path(folder).mkdir()
    np.save(f"{folder}/layers.2.mlp.npy", values["layers.2.mlp"][None])
    save_file({"layers.10.mlp": values["layers.10.mlp"]}, f"{folder}/layers.10.safetensors")
    np.save(f"{folder}/input_ids.npy", np.array([[3, 4, 5, 6, 7]]))
    return values


def test_dumps_of_two_programs_are_compared() -> None:
    values = dump("one")
    dump("two", change=1.0)
    assert tracekit("import", "one") == (0, "one.h5: 1 sequences, 0 steps, complete\n")
    assert tracekit("import", "two")[0] == 0 and Path("one/layers.2.mlp.npy").exists()
    with tk.open("one.h5") as trace:
        (sequence,) = trace.sequences
        assert list(trace.sites) == ["layers.2.mlp", "layers.10.mlp"] and list(sequence.prompt_ids) == [3, 4, 5, 6, 7]
        for name, rows in values.items():
            assert np.array_equal(sequence.read(name, 0, 5), rows)
    code, said = tracekit("diff", "one.h5", "two.h5")
    assert code == 1 and "layers.10.mlp" in said.splitlines()[2]


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("a.npy", np.zeros((2, 3, 4), np.float32), "a is float32 [2, 3, 4], where a site is numbers [rows, width]"),
        ("a.npy", np.array(["x"]), "a is <U1 [1], where a site is numbers"),
        ("input_ids.npy", np.zeros(3, np.float32), "input_ids is float32, where token ids are integers"),
        ("a.npy", None, "cannot be read as tensors"),
    ],
)
def test_what_is_no_dump_of_a_site_gets_one_line(name: str, values: np.ndarray | None, said: str) -> None:
    Path("dumps").mkdir()
    Path("dumps", name).write_bytes(b"nothing") if values is None else np.save(f"dumps/{name}", values)
    code, line = tracekit("import", "dumps")
    assert code == 2 and line.startswith(f"dumps/{name}: {said}") and not Path("dumps.h5").exists()
