"""CosyVoice3 in the native engine against the PyTorch program: parity, the faults of real ports, and what it is fed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import tracekit
from benchmarks.cosyvoice_faults import CASES, Case
from tests import speech_model
from tests.forked import Forks
from tests.spoken import spoken

ROOT = Path(__file__).parent.parent
ENGINE = os.environ.get("TRACEKIT_NATIVE", str(ROOT / "hooks/rust/target/release/tracekit-native"))
TEXT = "The last train leaves at nine, so please have your ticket ready before you reach the platform."
"""At seed 0 each of the faults changes what is said of this text."""
Speak = Callable[..., tracekit.Trace]


def record(forks: Forks, out: Path, *words: str) -> tracekit.Trace:
    done = forks.tracekit("record", "-o", str(out), *words, cwd=out.parent)
    assert done.code == 0, done.err
    return tracekit.open(out)


@pytest.fixture(scope="module")
def reference(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tracekit.Trace:
    """The PyTorch program."""
    program = str(speech_model.EXAMPLES / "cosyvoice3_example.py")
    words = ("--model", str(speech_model.folder()), "--text", TEXT, "--seed", "0")
    return record(forks, tmp_path_factory.mktemp("python") / "py.h5", program, *words)


@pytest.fixture
def speak(forks: Forks, tmp_path: Path) -> Speak:
    """The engine, with more words for it and for `record`."""

    def run(*more: str, before: tuple[str, ...] = (), text: str = TEXT) -> tracekit.Trace:
        words = ("--model", str(speech_model.folder()), "--text", text, "--seed", "0")
        return record(forks, tmp_path / "native.h5", *before, "--", ENGINE, "cosyvoice3", *words, *more)

    return run


def test_both_sides_are_at_parity(reference: tracekit.Trace, speak: Speak) -> None:
    verdict = tracekit.diff(reference, speak())
    assert verdict.verdict == "parity", verdict.evidence
    assert not any("temperature" in one or "repetition penalty" in one for one in spoken(verdict.unexercised))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_of_a_real_port_is_named(reference: tracekit.Trace, speak: Speak, case: Case) -> None:
    verdict = tracekit.diff(reference, speak(*case.options))
    assert case.is_named(verdict), (verdict.cause, verdict.site, verdict.evidence)


def test_prompt_speech_tokens_come_from_a_trace(reference: tracekit.Trace, speak: Speak, tmp_path: Path) -> None:
    tokens = list(reference.sequences[0].inputs["speech_token_ids"])
    other = speak("--fault", "fewer-speech-tokens", before=("--keep-log",))
    assert list(other.sequences[0].inputs["speech_token_ids"]) == tokens[:-4]
    for name in ("native.h5", "native.tklog"):
        kept = tmp_path / name.replace("native", "kept")
        (tmp_path / name).rename(kept)
    for kept in ("kept.h5", "kept.tklog"):
        given = speak("--prompt-speech-tokens", str(tmp_path / kept))
        assert list(given.sequences[0].inputs["speech_token_ids"]) == tokens[:-4]
    given = speak("--prompt-speech-tokens", reference.path)
    assert tracekit.diff(reference, given).verdict == "parity"


def test_a_followed_trace_hands_over_its_whole_prompt(reference: tracekit.Trace, speak: Speak) -> None:
    follow = ("--follow", reference.path, "--follow-inputs")
    verdict = tracekit.diff(reference, speak(before=follow, text="Another text."))
    assert verdict.verdict == "parity", verdict.evidence
    assert "the candidate's prompt (forced)" in spoken(verdict.unexercised)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("text.h5", b"no tokens here", "is no safetensors file"),
        ("head.h5", b"\x89HDF\r\n\x1a\n" + bytes(600), "is no sound archive"),
        ("log.tklog", b"TKL1", "is no log to follow"),
        ("missing.h5", None, "cannot be read"),
    ],
)
def test_what_holds_no_speech_tokens_gets_one_line(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    words = [ENGINE, "cosyvoice3", "--model", str(speech_model.folder()), "--prompt-speech-tokens", name]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"tracekit-native: {name}: {said}")
