"""Runs that are fed from another trace: its tokens, its random numbers, its prompt; and what their diff says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tracekit
from tracekit.drift import drift

ROOT = Path(__file__).parent.parent
SETTINGS = ("--max-new-tokens", "30", "--temperature", "0.9", "--top-k", "30")
STEPS = 30
Record = Callable[..., tracekit.Trace]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("make_tiny_model", ROOT / "scripts/make_tiny_model.py")
    assert spec is not None and spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    sys.modules["make_tiny_model"] = tiny
    spec.loader.exec_module(tiny)
    made = tmp_path_factory.mktemp("llama")
    tiny.make("llama", made)
    return made


def tracekit_record(out: Path, *words: str) -> tracekit.Trace:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tracekit_cli.main", "record", "-o", str(out), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tracekit.open(out)


@pytest.fixture(scope="session")
def native(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    engine = os.environ.get("TRACEKIT_NATIVE", str(ROOT / "hooks/rust/target/release/tracekit-native"))
    scratch = tmp_path_factory.mktemp("native")

    def record(*arguments: str, before: tuple[str, ...] = (), seed: int = 0, prompt: str = "Hello") -> tracekit.Trace:
        out = scratch / f"{len(list(scratch.iterdir()))}.h5"
        program = ("--", engine, "--model", str(folder), "--prompt", prompt, *SETTINGS, "--seed", str(seed))
        return tracekit_record(out, *before, *program, *arguments)

    return record


@pytest.fixture(scope="session")
def python(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    scratch = tmp_path_factory.mktemp("python")

    def record(*, before: tuple[str, ...] = (), seed: int = 0) -> tracekit.Trace:
        out = scratch / f"{len(list(scratch.iterdir()))}.h5"
        program = (str(ROOT / "hooks/torch/examples/generate.py"), "--model", str(folder), "--prompt", "Hello")
        return tracekit_record(out, *before, *program, *SETTINGS, "--seed", str(seed))

    return record


@pytest.fixture(scope="session")
def reference(native: Record) -> tracekit.Trace:
    return native()


def following(trace: tracekit.Trace, *more: str) -> tuple[str, ...]:
    return ("--follow", trace.path, *more)


def test_a_fault_of_the_cache_that_starts_late_is_named_at_its_step_and_seen_to_stay(
    native: Record, reference: tracekit.Trace
) -> None:
    late = native("--fault", "stale-cache-row:12:1", before=following(reference))
    verdict = tracekit.diff(reference, late)
    assert (verdict.cause, verdict.step) == ("layer", 12)
    assert verdict.site == "model.layers.1.self_attn.o_proj:in"
    assert verdict.compared["steps"] == STEPS
    assert verdict.drift is not None and (verdict.drift["kind"], verdict.drift["step"]) == ("jump", 12)


def test_a_harmless_rewrite_that_follows_drifts_nowhere(python: Record, native: Record) -> None:
    first = python()
    verdict = tracekit.diff(first, native(before=following(first)))
    assert (verdict.verdict, verdict.drift, verdict.compared["steps"]) == ("parity", None, STEPS)
    assert any("follows another trace" in line for line in verdict.unexercised)


def test_a_sampler_at_fault_shows_though_its_tokens_are_forced(native: Record, reference: tracekit.Trace) -> None:
    verdict = tracekit.diff(reference, native("--fault", "inverse-cdf", before=following(reference)))
    assert verdict.cause == "sampler"


def test_another_choice_shows_though_both_went_on_with_the_same_token(
    native: Record, reference: tracekit.Trace
) -> None:
    """Another seed, and its draws not compared: the token that it would have taken is recorded."""
    verdict = tracekit.diff(reference, native(seed=5, before=following(reference)))
    assert verdict.cause == "config" and verdict.compared["steps"] == STEPS


@pytest.mark.parametrize("side", ["native", "python"])
def test_forced_draws_take_another_seed_back(
    side: str, native: Record, python: Record, reference: tracekit.Trace
) -> None:
    record, first = (native, reference) if side == "native" else (python, python())
    own = tracekit.diff(first, record(seed=5, before=following(first)))
    assert own.verdict == "divergence"
    forced = record(seed=5, before=following(first, "--follow-draws"))
    verdict = tracekit.diff(first, forced)
    assert verdict.verdict == "parity", verdict.evidence
    assert any("random numbers (forced)" in line for line in verdict.unexercised)
    choices = [event for step in range(STEPS) for event in forced.sequences[0].step(step).events]
    assert not [event for event in choices if event.kind == "forced"]


def test_a_forced_prompt_leaves_the_frontend_out(native: Record, reference: tracekit.Trace) -> None:
    plain = native(prompt="Something else", before=following(reference))
    assert tracekit.diff(reference, plain).cause == "input"
    forced = native(prompt="Something else", before=following(reference, "--follow-inputs"))
    assert tracekit.diff(reference, forced).verdict == "parity"


def test_what_is_forced_needs_a_trace(folder: Path) -> None:
    command = [sys.executable, "-m", "tracekit_cli.main", "record", "--follow-draws", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--follow" in done.stderr


# -------------------------------------------------------------------- drift


def noisy(levels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Steps of a real run scatter by half of their size."""
    return levels * np.exp(0.5 * np.random.default_rng(seed).standard_normal(len(levels)))


def test_a_jump_and_a_growth_are_told_apart() -> None:
    jumped = drift(noisy(np.repeat([0.5, 20.0], [30, 20])))
    assert jumped is not None and (jumped["kind"], jumped["step"]) == ("jump", 30)
    grown = drift(noisy(np.geomspace(0.5, 30.0, 60)))
    assert grown is not None and grown["kind"] == "growth"
    assert grown["before"] == pytest.approx(0.5, rel=0.5) and grown["after"] == pytest.approx(30.0, rel=0.5)


@pytest.mark.parametrize("seed", range(50))
def test_noise_drifts_nowhere(seed: int) -> None:
    assert drift(noisy(np.full(8 + 2 * seed, 0.7), seed)) is None


@pytest.mark.parametrize("values", [[], [1.0] * 5, [0.0] * 40, [np.inf] * 40, [np.nan] * 40])
def test_what_says_nothing_is_no_drift(values: list[float]) -> None:
    assert drift(np.array(values)) is None
