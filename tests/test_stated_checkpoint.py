"""Where a trace says its weights came from, and what is said where they are not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tracekit_torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tracekit_cli.main import group
from transformers import AutoModelForCausalLM

import tracekit
from tracekit.checkpoints.stated import find_checkpoint
from tracekit.formats.log import LogWriter
from tracekit.trace import TraceError


def a_log(path: Path, **told: Any) -> Path:
    log = LogWriter(path)
    log.open("native", dtype="float32", **told)
    log.sequence(0, {"prompt/token_ids": np.array([1])})
    log.end_sequence(0, 0, "done")
    log.close()
    return path


def found(path: Path, **told: Any) -> str | None:
    where = find_checkpoint(tracekit.open(a_log(path, **told)))
    return None if where is None else str(Path(where).resolve())


def refused(path: Path) -> str:
    done = CliRunner().invoke(group, ["audit", str(path)])
    assert isinstance(done.exception, TraceError)
    return str(done.exception)


def test_a_trace_that_states_none_is_told_how(tmp_path: Path) -> None:
    said = refused(a_log(tmp_path / "silent.tklog"))
    assert "states no checkpoint; give --weights" in said and "tracekit::describe" in said and "first frame" in said


def test_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = refused(a_log(tmp_path / "gone.tklog", checkpoint="/nowhere/model"))
    assert "states the checkpoint /nowhere/model, which is not there" in said and "--weights" in said
    said = refused(a_log(tmp_path / "hub.tklog", checkpoint="nobody/no-model"))
    assert "hub's cache" in said


def test_one_of_another_model_is_said_to_be_the_traces_own(tmp_path: Path, tiny_llama: Path) -> None:
    said = refused(a_log(tmp_path / "other.tklog", checkpoint=str(tiny_llama), model={"hidden_size": 7}))
    assert "(which the trace states): is of another model" in said and "hidden_size" in said


@pytest.mark.parametrize("way", ["cwd", "beside", "moved"])
def test_relative_and_moved_folders_are_found(tmp_path: Path, tiny_llama: Path, way: str) -> None:
    ran, kept = tmp_path / "ran", tmp_path / "kept"
    kept.mkdir()
    shutil.copytree(tiny_llama, (ran if way == "cwd" else kept) / "model")
    told: dict[str, Any] = {
        "cwd": {"checkpoint": "model", "command": {"argv": ["x"], "cwd": str(ran)}},
        "beside": {"checkpoint": "model", "command": {"argv": ["x"], "cwd": "/gone"}},
        "moved": {"checkpoint": "/gone/model"},
    }[way]
    assert found(kept / "run.tklog", **told) == str((ran if way == "cwd" else kept) / "model")


@pytest.mark.parametrize("said", ["tiny/llama", "/elsewhere/hub/models--tiny--llama/snapshots/abc123"])
def test_a_model_of_the_hub_is_found_in_its_cache(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub/models--tiny--llama/snapshots/abc123"
    shutil.copytree(tiny_llama, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc123")
    assert found(tmp_path / "run.tklog", checkpoint=said) == str(snapshot)


def test_python_states_a_path_that_is_found_from_anywhere(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded by `tracekit_torch.record`, no command says in which folder it ran."""
    import torch
    import tracekit_torch

    shutil.copytree(tiny_llama, tmp_path / "there/model")
    monkeypatch.chdir(tmp_path / "there")
    model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    with tracekit_torch.record(model, tmp_path / "elsewhere.h5"):
        model(torch.tensor([[1, 2, 3]]))
    monkeypatch.chdir("/")
    where = find_checkpoint(tracekit.open(tmp_path / "elsewhere.h5"))
    assert where is not None and Path(where).resolve() == tmp_path / "there/model"


@pytest.mark.parametrize("changed", [False, True])
def test_parameters_under_another_prefix_are_known_by_their_content(
    tmp_path: Path, tiny_llama: Path, changed: bool
) -> None:
    """As transformers saves `model.language_model.layers.0` as `language_model.model.layers.0`."""
    folder = shutil.copytree(tiny_llama, tmp_path / "renamed")
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
    if changed:
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.mul_(1.01)
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        model.generate(torch.tensor([[5, 6, 7, 8]]), do_sample=False, max_new_tokens=3)
    file = folder / "model.safetensors"
    save_file({f"lm.{name.replace('layers.', 'blocks.')}": value for name, value in load_file(file).items()}, file)
    found = tracekit.audit(tmp_path / "run.h5", folder)
    assert found.weights == (("model.layers.1.mlp.down_proj.weight",) if changed else ()), found.text
    assert found.exit_code == int(changed) and len(found.clean) > 20
