"""`tracekit import` of what other tools dump: parity with a recording of the same model, a fault named, refusals."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tracekit as tk
from tests import tiny_families
from tests.speech_traces import tracekit
from tracekit.formats.dumped import Dump, DumpedSequence, safetensors_of
from tracekit.formats.log import Tensor, map_file, read_frames

torch = pytest.importorskip("torch")

from transformers.model_debugging_utils import model_addition_debugger_context  # noqa: E402

from tests.tool_dumps import FAULT, TOOLS, model_of  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a recording of it, and each tool's dump of it: sound, and with a gain of 1.01 in one matrix."""
    out = tmp_path_factory.mktemp("dumps")
    tiny_families.make("llama", out / "model")
    tiny_families.run(tiny_families.load(out / "model"), out / "reference.h5").close()
    for gain, kind in ((1.0, "sound"), (1.01, "faulty")):
        for name, dump in TOOLS.items():
            dump(model_of(out / "model", gain), out / f"{name}-{kind}")
    return out


@pytest.mark.parametrize("tool", TOOLS)
def test_a_sound_dump_is_at_parity_with_a_recording(folder: Path, tool: str, tmp_path: Path) -> None:
    made = tmp_path / "dump.h5"
    assert tracekit("import", str(folder / f"{tool}-sound"), "-o", str(made))[0] == 0
    verdict = tk.diff(folder / "reference.h5", made)
    assert (verdict.verdict, verdict.cause) == ("parity", None), verdict.text
    assert verdict.compared is not None and verdict.compared.sites >= (2 if tool == "edge" else 16)


@pytest.mark.parametrize("turned", [False, True])
def test_the_order_in_which_a_file_is_read_says_nothing(turned: bool, tmp_path: Path) -> None:
    """The library gives the tensors of a file in an order of its own, another one in each process."""
    shared = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    names = ["model.layers.10.mlp", "model.layers.10.mlp.down_proj", "model.layers.2.mlp:in", "model.layers.2.norm"]
    values = dict(zip(names, (shared, shared, shared + 1, shared + 1), strict=True))
    dump = Dump("dumps", [DumpedSequence()])
    for name in reversed(names) if turned else names:
        dump.sequences[0].add(name, 0, Tensor("float32", (5, 16), values[name].tobytes()))
    frames = read_frames(map_file(dump.write(tmp_path, tmp_path)))
    rows = next(frame.metadata["sites"] for frame in frames if frame.metadata.get("sites"))
    passed = {row["name"]: (row.get("same_as"), row.get("input")) for row in rows}
    assert passed["model.layers.10.mlp"] == ("model.layers.10.mlp.down_proj", None)
    assert passed["model.layers.10.mlp.down_proj"] == (None, None)
    save_file(values, tmp_path / "dump.safetensors")
    assert list(safetensors_of(tmp_path / "dump.safetensors")) == [*names[2:], *names[:2]]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_planted_fault_is_named(folder: Path, tool: str, tmp_path: Path) -> None:
    made = tmp_path / "dump.h5"
    assert tracekit("import", str(folder / f"{tool}-faulty"), "-o", str(made))[0] == 0
    verdict = tk.diff(folder / "reference.h5", made)
    assert (verdict.verdict, verdict.site) == ("divergence", FAULT), verdict.text


def test_what_was_printed_in_part_is_compared_in_part_and_said(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "dump.h5"
    tracekit("import", str(folder / "eval_callback-sound"), "-o", str(made))
    code, said = tracekit("diff", str(folder / "reference.h5"), str(made))
    assert code == 0 and "6 of 32 columns to 4 decimals" in said and "22 of 29 sites" in said
    with tk.open(made) as trace:
        assert trace[0].sites["model.layers.0"].ranges == ((0, 3), (7, 10))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def huge(path: Path) -> None:
    """A length beyond all memory, where the format says one."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        path.write_bytes((1 << 60).to_bytes(8, "little") + data[8:])
    elif path.suffix == ".npy":
        path.write_bytes(data.replace(b"(1, 10,", b"(1<<50,").replace(b"'shape': (1, ", b"'shape': (9999999999, "))
    elif path.suffix == ".json":
        path.write_text("[" * 100_000)
    elif path.suffix == ".pt":
        path.write_bytes(data.replace(b"data/0", b"data/9"))
    else:
        path.write_text(path.read_text().replace("{32, 10, 1, 1}", "{32, 999999999999, 1, 1}"))


FILES = {
    "npy": "model.norm.npy",
    "safetensors": "prefill.safetensors",
    "sglang": "*norm.output*.pt",
    "debugger": "*FULL_TENSORS.json",
    "edge": "edgellm_dump.safetensors",
    "eval_callback": "",
}


@pytest.mark.parametrize("damage", [cut, huge])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_damaged_dump_is_one_line(folder: Path, tool: str, damage: Any, tmp_path: Path) -> None:
    source, copy = folder / f"{tool}-sound", tmp_path / f"{tool}-bad"
    shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    damage(next(copy.glob(FILES[tool])) if copy.is_dir() else copy)
    code, said = tracekit("import", str(copy), "-o", str(tmp_path / "bad.h5"))
    assert (code, len(said.splitlines()), (tmp_path / "bad.h5").exists()) == (2, 1, False), said
    assert copy.name in said


class Code:
    """What runs a program when it is unpickled."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __reduce__(self) -> Any:
        return os.system, (self.words,)


def test_a_dump_with_code_in_it_runs_nothing(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    bad = tmp_path / "dumps"
    bad.mkdir()
    torch.save({"value": Code(f"touch {ran}"), "meta": {}}, bad / "step=0___rank=0___dump_index=1___name=a.pt")
    code, said = tracekit("import", str(bad))
    assert code == 2 and "wants to run posix.system" in said and not ran.exists()
    (bad / "step=0___rank=0___dump_index=1___name=a.pt").unlink()
    np.save(bad / "a.npy", np.array([Code(f"touch {ran}")], dtype=object), allow_pickle=True)
    code, said = tracekit("import", str(bad))
    assert code == 2 and "a.npy: cannot be read as tensors" in said and not ran.exists()


def test_printed_tensors_of_the_debugger_are_refused(folder: Path, tmp_path: Path) -> None:
    with model_addition_debugger_context(model_of(folder / "model"), debug_path=str(tmp_path / "dump")) as model:
        model(input_ids=torch.tensor(tiny_families.PROMPT))
    code, said = tracekit("import", str(tmp_path / "dump"))
    assert code == 2 and "use_repr=False" in said


def test_a_dump_of_several_requests_is_refused(tmp_path: Path) -> None:
    for name, value in (("positions", [0, 1, 2, 0, 1]), ("input_ids", [5, 6, 7, 5, 6])):
        file = tmp_path / f"step=0___rank=0___dump_index={len(name)}___name={name}.pt"
        torch.save({"value": torch.tensor(value), "meta": {}}, file)
    code, said = tracekit("import", str(tmp_path), "-o", str(tmp_path / "out.h5"))
    assert code == 2 and "several requests" in said


def test_a_cache_that_changes_is_seen(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "edge-sound" / "edgellm_dump.safetensors")
    for later in (2, 3):
        tensors[f"round_{later}.layer_1.kv"][0, 1, :, 3] += 1.0
    (tmp_path / "dump").mkdir()
    save_file(tensors, tmp_path / "dump" / "edgellm_dump.safetensors")
    assert tracekit("import", str(tmp_path / "dump"), "-o", str(tmp_path / "out.h5"))[0] == 0
    verdict = tk.diff(folder / "reference.h5", tmp_path / "out.h5")
    assert (verdict.verdict, verdict.site, verdict.position) == ("divergence", FAULT, 3)
    assert "round 2: rows of layer 1's cache are no longer those of round 1" in verdict.text
