"""The repro of a failing group: its tests fail with the fault, and pass once the program is mended."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import tracekit
from benchmarks.repros import TEXT, Bench, Engine, run_cargo, run_pytest
from tests import speech_model
from tracekit.report.json import record_of
from tracekit.repro import Case, Command, Repro, write_repro

ROOT = Path(__file__).parent.parent
NATIVE = Path(os.environ.get("TRACEKIT_NATIVE", ROOT / "hooks/rust/target/release/tracekit-native"))
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


@pytest.fixture
def bench(tmp_path: Path, tiny_llama: Path) -> Bench:
    return Bench(Engine(NATIVE, tiny_llama), tmp_path)


def repro(bench: Bench, fault: str) -> tuple[Repro, str]:
    """The repro of a fault, and the cause that it was found to have."""
    verdict, made = bench.repro(fault)
    assert made is not None and made.path is not None, made
    return made, str(verdict.cause)


@pytest.mark.parametrize(("fault", "cause"), FAULTS.items())
def test_its_test_fails_until_the_program_is_mended(bench: Bench, fault: str, cause: str) -> None:
    made, found = repro(bench, fault)
    assert found == cause
    assert made.path is not None
    assert run_pytest(made.path, mended=None).returncode == 1
    assert run_pytest(made.path, mended=bench.engine.words()).returncode == 0


@pytest.mark.slow
@pytest.mark.xdist_group("cargo")  # as in `tests/test_candle_models.py`
@pytest.mark.parametrize("fault", ["rope-f16", "inverse-cdf", "stop-early"])
def test_cargo_says_the_same(bench: Bench, fault: str) -> None:
    made, _ = repro(bench, fault)
    assert made.path is not None
    broken = run_cargo(made.path, mended=None)
    assert broken.returncode and "test result: FAILED" in broken.stdout, broken.stderr
    mended = run_cargo(made.path, mended=bench.engine.words())
    assert mended.returncode == 0 and "1 passed" in mended.stdout, mended.stdout + mended.stderr


def test_it_does_not_need_tracekit_in_rust(bench: Bench) -> None:
    made, _ = repro(bench, "rope-f16")
    assert made.path is not None
    assert "tracekit" not in (made.path / "Cargo.toml").read_text()
    assert "use tracekit" not in (made.path / "tests/repro.rs").read_text()


@pytest.mark.parametrize("fault", ["gain:model.layers.1.mlp.up_proj:1.01", "inverse-cdf"])
def test_input_is_cut_to_what_still_shows_it(bench: Bench, fault: str) -> None:
    made, _ = repro(bench, fault)
    assert made.steps[1] < made.steps[0] == 16
    assert made.prompt[1] < made.prompt[0] == len(TEXT[1].split(","))
    assert made.runs <= 12


SPOKEN = ("inverse-cdf", "window-from-start", "stop-on-eos-only", "stop-masked")


@pytest.mark.slow
@pytest.mark.parametrize("fault", SPOKEN)
def test_repetition_aware_sampling_is_cut_too(tmp_path: Path, fault: str) -> None:
    """A shorter prompt has another `min_len`, and what is drawn besides the repetition rule is drawn as in the run."""
    bench = Bench(Engine(NATIVE, speech_model.folder(), speech=True), tmp_path)
    made, _ = repro(bench, fault)
    assert made.path is not None
    assert made.prompt[1] < made.prompt[0] and made.steps[1] < made.steps[0]
    assert run_pytest(made.path, mended=None).returncode == 1
    assert run_pytest(made.path, mended=bench.engine.words()).returncode == 0


def test_it_holds_what_a_person_needs(bench: Bench) -> None:
    made, _ = repro(bench, "rope-f16")
    assert made.path is not None
    for name in ("input", "parameters", "expected", "actual"):
        load_file(made.path / f"{name}.safetensors")
    readme = (made.path / "README.md").read_text()
    assert "rotary table rounded to float16" in readme and "REPRO_COMMAND" in readme
    assert len(readme.splitlines()) <= 14


def test_what_cannot_be_cut_says_why(bench: Bench) -> None:
    reference = bench.record("reference", bench.engine.words())
    with tracekit.open(reference) as one, tracekit.open(reference) as other:
        verdict = record_of(tracekit.diff(one, other))
    command = Command(tuple(bench.engine.words()), str(bench.folder))
    made = write_repro(bench.folder / "repro", Case("none", 3, verdict, reference, reference, command))
    assert made.path is None and made.why
    assert not (bench.folder / "repro" / "none").exists()


def test_a_repro_that_was_there_is_replaced(bench: Bench) -> None:
    first, _ = repro(bench, "rope-f16")
    assert first.path is not None
    (first.path / "old").write_text("")
    second, _ = repro(bench, "rope-f16")
    assert second.path == first.path and not (first.path / "old").exists()
    shutil.rmtree(first.path)
