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


def values(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)


STEPS = [values(5, 0), values(1, 1), values(1, 2)]
IDS = [np.array([[3, 4, 5, 6, 7]]), np.array([[8]]), np.array([[9]])]


def write(shape: str, start: int = 0) -> str:
    """Three calls of one site, as programs dump them."""
    import torch

    Path("dumps").mkdir()
    named = [{"input_ids": ids, "layer.0": rows} for ids, rows in zip(IDS, STEPS, strict=True)]
    for step, tensors in enumerate(named, start):
        match shape:
            case "files":
                for name, array in tensors.items():
                    np.save(f"dumps/step{step}_{name}.npy", array)
            case "folders":
                Path(f"dumps/step_{step}").mkdir()
                for name, array in tensors.items():
                    np.save(f"dumps/step_{step}/{name}.npy", array[None] if name != "input_ids" else array)
            case "safetensors":
                save_file(tensors, f"dumps/step-{step}.safetensors")
            case "torch":
                torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, f"dumps/iter{step}.pt")
    if shape == "one file":
        both = {f"step_{step}": each for step, each in enumerate(named, start)}
        torch.save({step: {k: torch.from_numpy(v) for k, v in each.items()} for step, each in both.items()}, "run.pt")
        return "run.pt"
    return "dumps"


@pytest.mark.parametrize("shape", ["files", "folders", "safetensors", "torch", "one file"])
@pytest.mark.parametrize("start", [0, 1])
def test_steps_go_on_where_the_one_before_ended(shape: str, start: int) -> None:
    assert tracekit("import", write(shape, start), "-o", "out.h5") == (0, "out.h5: 1 sequences, 2 steps, complete\n")
    with tk.open("out.h5") as trace:
        (sequence,) = trace.sequences
        assert list(trace.sites) == ["layer.0"] and list(sequence.prompt_ids) == [3, 4, 5, 6, 7]
        assert np.array_equal(sequence.read("layer.0", 0, 7), np.concatenate(STEPS))
        assert list(sequence.tokens) == [8, 9] and [sequence.step(step).position for step in (0, 1)] == [4, 5]


def test_one_file_of_tensors_by_name_is_a_dump() -> None:
    import torch

    save_file({"blocks.0.hook_resid_post": STEPS[0][None]}, "one.safetensors")
    torch.save({"blocks": [torch.from_numpy(STEPS[0])], "input_ids": torch.tensor(IDS[0])}, "two.pt")
    for file, site in (("one.safetensors", "blocks.0.hook_resid_post"), ("two.pt", "blocks.0")):
        assert tracekit("import", file, "-o", "out.h5")[0] == 0
        with tk.open("out.h5") as trace:
            assert list(trace.sites) == [site] and np.array_equal(trace[0].read(site, 0, 5), STEPS[0])


REFUSED = {
    "a step is missing": ({"step0_a": STEPS[0], "step2_a": STEPS[1]}, "step 1 is missing"),
    "the first ones are missing": ({"step3_a": STEPS[0]}, "steps before step 3 are missing"),
    "without a cache": ({"step0_a": STEPS[0], "step1_a": values(6, 1)}, "step 1: a has 6 rows, where 1 is expected"),
    "no site": ({"step0": STEPS[0]}, "names a step and no site; name it as in step_0_SITE"),
    "heads": ({"q": values(5, 0).reshape(1, 5, 2, 4)}, "reshape it to [rows, heads * width]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_positions_that_are_not_known_are_refused(case: str) -> None:
    Path("dumps").mkdir()
    dumped, said = REFUSED[case]
    for name, array in dumped.items():
        np.save(f"dumps/{name}.npy", array)
    code, line = tracekit("import", "dumps")
    assert code == 2 and said in line and not Path("dumps.h5").exists()


def test_what_is_no_dump_by_name_is_refused() -> None:
    import torch

    save_file({"model.norm.weight": np.ones(8, np.float32)}, "model.safetensors")
    torch.save(torch.nn.Linear(2, 2), "module.pt")
    torch.save({0: {"a": torch.ones(1, 2)}}, "numbers.pt")
    torch.save({}, "empty.pt")
    for file, said in (
        ("model.safetensors", "holds the parameter model.norm.weight"),
        ("module.pt", "holds an object of a class"),
        ("numbers.pt", "has the key 0, which is no name"),
        ("empty.pt", "holds no tensor by name"),
    ):
        code, line = tracekit("import", file, "-o", "out.h5")
        assert code == 2 and said in line and line.startswith(file) and not Path("out.h5").exists(), line
