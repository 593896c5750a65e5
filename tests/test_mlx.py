"""mlx-lm's own Llama, unedited, recorded by the example: clean on a real model, and what it reads wrongly is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tracekit
from tests import tiny_families

pytest.importorskip("mlx_lm")

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "hooks/python/examples/mlx_engine.py"
MODEL = Path(os.environ.get("TRACEKIT_MODEL", ROOT / ".cache/smollm2-135m"))
PROMPT = [504, 3575, 282, 4649, 314, 260, 1234, 77, 900, 12]


def recorded(model: Path, prompt: list[int], log: Path) -> Path:
    """The example's log; its tokens are those of a run that is not recorded."""
    command = [sys.executable, str(EXAMPLE), str(model), *map(str, prompt)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_LOG")}
    runs = [
        subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
        for variables in (plain, plain | {"TRACEKIT_LOG": str(log)})
    ]
    assert runs[0] == runs[1]
    return log


def with_theta(model: Path, folder: Path) -> Path:
    """The model, with its theta where mlx-lm looks for it."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(not MODEL.is_dir(), reason="no real checkpoint here (make model)")
def test_the_real_model_is_within_its_bounds(tmp_path: Path) -> None:
    trace = recorded(with_theta(MODEL, tmp_path / "model"), PROMPT, tmp_path / "mlx.tklog")
    audit = tracekit.audit(trace)
    assert audit.exit_code == 0, audit
    assert "392 of 392 sites" in str(audit)


def test_a_theta_that_is_not_read_is_named(tmp_path: Path) -> None:
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}
    model = tiny_families.make("llama", tmp_path / "model", **theta)
    tiny_families.run(tiny_families.load(model), tmp_path / "reference.h5").close()
    trace = recorded(model, tiny_families.PROMPT[0], tmp_path / "mlx.tklog")
    verdict = tracekit.diff(tmp_path / "reference.h5", trace)
    assert (verdict.cause, verdict.site) == ("layer", "model.layers.0.self_attn.o_proj:in")
    assert "rotary theta 10000 instead of 100000" in verdict.text
