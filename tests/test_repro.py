"""The repro of a failing group: its tests fail with the fault, and pass once the program is mended."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import tracekit
from tests import speech_model
from tracekit.repro import Case, Command, Repro, write_repro

ROOT = Path(__file__).parent.parent
NATIVE = os.environ.get("TRACEKIT_NATIVE", str(ROOT / "hooks/rust/target/release/tracekit-native"))
PROMPT = "72,101,50,290,280,12,270"
SHARED_TARGET = {
    "CARGO_TARGET_DIR": str(ROOT / "hooks/rust/target"),
    # As the workspace builds it: candle is not built again.
    "CARGO_PROFILE_RELEASE_DEBUG": "1",
}
FAULTS = {
    "rope-f16": "layer",
    "gain:model.layers.1.mlp.up_proj:1.01": "layer",
    "norm-eps:0.001": "layer",
    "swap-gate-up": "layer",
    "inverse-cdf": "sampler",
    "top-p": "filter",
    "seed": "rng",
    "stop-early": "stop",
}


@dataclass(frozen=True)
class Scene:
    """Programs in a folder."""

    folder: Path
    model: Path

    def words(self, *faults: str) -> list[str]:
        settings = ["--prompt-ids", PROMPT, "--max-new-tokens", "16", "--seed", "3", "--temperature", "0.8"]
        settings += ["--top-k", "50", "--top-p", "0.95", "--threads", "1"]
        planted = [word for fault in faults for word in ("--fault", fault, "--quiet-config")]
        return [NATIVE, "--model", str(self.model), *settings, *planted]

    def record(self, name: str, words: list[str]) -> Path:
        path = self.folder / f"{name}.tklog"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_")}
        environment |= {"TRACEKIT_LOG": str(path)}
        subprocess.run(words, env=environment, check=True, capture_output=True)
        return path

    def repro(self, fault: str) -> tuple[Repro, str]:
        """The repro of a fault, and the cause that it was found to have."""
        reference, candidate = self.record("reference", self.words()), self.record("candidate", self.words(fault))
        with tracekit.open(reference) as one, tracekit.open(candidate) as other:
            verdict = tracekit.diff(one, other).to_json()
        command = Command(tuple(self.words(fault)), str(self.folder))
        made = write_repro(self.folder / "repro", Case("group", 3, verdict, reference, candidate, command))
        assert made.path is not None, made.why
        return made, str(verdict["cause"])


@dataclass(frozen=True)
class SpokenScene(Scene):
    """CosyVoice3's language model."""

    def words(self, *faults: str) -> list[str]:
        planted = [word for fault in faults for word in ("--fault", fault)]
        return [NATIVE, "cosyvoice3", "--model", str(self.model), "--seed", "3", *planted]


@pytest.fixture
def scene(tmp_path: Path, tiny_llama: Path) -> Scene:
    return Scene(tmp_path, tiny_llama)


def run_pytest(path: Path, mended: list[str] | None) -> int:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_repro.py"]
    return subprocess.run(words, cwd=path, env=_environment(mended), capture_output=True, check=False).returncode


def run_cargo(path: Path, mended: list[str] | None) -> subprocess.CompletedProcess[str]:
    words = ["cargo", "test", "--offline", "--release"]
    environment = _environment(mended) | SHARED_TARGET
    return subprocess.run(words, cwd=path, env=environment, capture_output=True, text=True, check=False)


def _environment(mended: list[str] | None) -> dict[str, str]:
    return dict(os.environ) | ({} if mended is None else {"REPRO_COMMAND": shlex.join(mended)})


@pytest.mark.parametrize(("fault", "cause"), FAULTS.items())
def test_its_test_fails_until_the_program_is_mended(scene: Scene, fault: str, cause: str) -> None:
    made, found = scene.repro(fault)
    assert found == cause
    assert made.path is not None
    assert run_pytest(made.path, mended=None) == 1
    assert run_pytest(made.path, mended=scene.words()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["rope-f16", "inverse-cdf", "stop-early"])
def test_cargo_says_the_same(scene: Scene, fault: str) -> None:
    made, _ = scene.repro(fault)
    assert made.path is not None
    broken = run_cargo(made.path, mended=None)
    assert broken.returncode and "test result: FAILED" in broken.stdout, broken.stderr
    mended = run_cargo(made.path, mended=scene.words())
    assert mended.returncode == 0 and "1 passed" in mended.stdout, mended.stdout + mended.stderr


def test_it_does_not_need_tracekit_in_rust(scene: Scene) -> None:
    made, _ = scene.repro("rope-f16")
    assert made.path is not None
    assert "tracekit" not in (made.path / "Cargo.toml").read_text()
    assert "use tracekit" not in (made.path / "tests/repro.rs").read_text()


@pytest.mark.parametrize("fault", ["gain:model.layers.1.mlp.up_proj:1.01", "inverse-cdf"])
def test_input_is_cut_to_what_still_shows_it(scene: Scene, fault: str) -> None:
    made, _ = scene.repro(fault)
    assert made.steps[1] < made.steps[0] == 16
    assert made.prompt[1] < made.prompt[0] == len(PROMPT.split(","))
    assert made.runs <= 12


SPOKEN = ("inverse-cdf", "window-from-start", "stop-on-eos-only", "stop-masked")


@pytest.mark.slow
@pytest.mark.parametrize("fault", SPOKEN)
def test_repetition_aware_sampling_is_cut_too(tmp_path: Path, fault: str) -> None:
    """A shorter prompt has another `min_len`, and what is drawn besides the repetition rule is drawn as in the run."""
    scene = SpokenScene(tmp_path, speech_model.folder())
    made, _ = scene.repro(fault)
    assert made.path is not None
    assert made.prompt[1] < made.prompt[0] and made.steps[1] < made.steps[0]
    assert run_pytest(made.path, mended=None) == 1
    assert run_pytest(made.path, mended=scene.words()) == 0


def test_it_holds_what_a_person_needs(scene: Scene) -> None:
    made, _ = scene.repro("rope-f16")
    assert made.path is not None
    for name in ("input", "parameters", "expected", "actual"):
        load_file(made.path / f"{name}.safetensors")
    readme = (made.path / "README.md").read_text()
    assert "rotary table rounded to float16" in readme and "REPRO_COMMAND" in readme
    assert len(readme.splitlines()) <= 14


def test_what_cannot_be_cut_says_why(scene: Scene) -> None:
    reference = scene.record("reference", scene.words())
    with tracekit.open(reference) as one, tracekit.open(reference) as other:
        verdict = tracekit.diff(one, other).to_json()
    command = Command(tuple(scene.words()), str(scene.folder))
    made = write_repro(scene.folder / "repro", Case("none", 3, verdict, reference, reference, command))
    assert made.path is None and made.why
    assert not (scene.folder / "repro" / "none").exists()


def test_a_repro_that_was_there_is_replaced(scene: Scene) -> None:
    first, _ = scene.repro("rope-f16")
    assert first.path is not None
    (first.path / "old").write_text("")
    second, _ = scene.repro("rope-f16")
    assert second.path == first.path and not (first.path / "old").exists()
    shutil.rmtree(first.path)
