"""`tracekit check`: an engine against itself. All faults of the native engine's cache are found, and no others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.speech_traces import tracekit

ROOT = Path(__file__).parent.parent
NATIVE = os.environ.get("TRACEKIT_NATIVE", str(ROOT / "hooks/rust/target/release/tracekit-native"))
PROMPT = "72,101,50,290,280,12,270"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.test_engine import tiny

    folder = tmp_path_factory.mktemp("tiny")
    tiny.make("llama", folder, seed=3)
    return folder


def words(model: Path, *more: str) -> list[str]:
    return [NATIVE, "--model", str(model), "--prompt-ids", PROMPT, "--max-new-tokens", "8", "--greedy", *more]


def test_a_sound_engine_has_no_finding(model: Path) -> None:
    code, said = tracekit("check", "--engine", "native", "--", *words(model))
    assert code == 0 and "none in 12 variations" in said, said
    assert "FAULT" not in said and "not tried" not in said


FAULTS = {
    "stale-cache-row": {"checkpoint", "at_once", "chunks"},
    "overwritten-cache-row": {"checkpoint", "at_once", "chunks"},
    "cache-hole": {"checkpoint", "at_once", "chunks"},
    "cache-f16": {"checkpoint"},
    "stale-request-row": {"second_request"},
    "kept-row-off-by-one": {"prefix_reused"},
    "rope-decode-zero": {"checkpoint", "at_once", "chunks"},
    "rope-k-unrotated": {"checkpoint", "setting", "at_once"},
}
"""Fault -> ways of which at least these compute something else."""


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_cache_is_found(model: Path, fault: str) -> None:
    code, said = tracekit("check", "--json", "--engine", "native", "--", *words(model, "--fault", fault))
    found = json.loads(said)["findings"]
    assert code == 1, said
    wrong = {each["way"] for each in found if each["outcome"] == "fault"}
    assert wrong >= FAULTS[fault], {each["way"]: each["outcome"] for each in found}
    assert not [each for each in found if each["outcome"] in ("failed", "withheld")]


def test_a_command_with_places(model: Path, tmp_path: Path) -> None:
    program = [NATIVE, "--model", str(model), "--prompt-ids", "{prompt_ids}", "--prefill-chunk", "{chunk}", "--greedy"]
    vary = ["--vary", "chunk=7,2", "--prompt-ids", PROMPT]
    code, said = tracekit("check", *vary, "-o", str(tmp_path / "kept"), "--", *program, "--max-new-tokens", "5")
    assert code == 0 and "chunk 2: within rounding" in said and "none in 7 variations" in said, said
    assert (tmp_path / "kept" / "base" / "run.tklog").exists()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--", "./engine", "{threads}"], "{threads} has no value in the command"),
        (["--vary", "threads=1,2", "--", "./engine"], "the command has no place {threads}"),
        (["--engine", "none", "--", "./engine"], "--engine none: there is no such engine"),
        (["--", "./no-such-engine"], "./no-such-engine: cannot be started: No such file or directory"),
        (["--", "false"], "false: ended with exit code 1: it printed nothing"),
        (["--", "true"], "true: recorded nothing"),
    ],
)
def test_what_cannot_be_checked_is_one_line(given: list[str], line: str) -> None:
    code, said = tracekit("check", *given)
    assert code == 2 and line in said and len(said.strip().splitlines()) == 1
