"""`tracekit audio`: WAV files in numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.speech_traces import EOS, Run, golden, tracekit

soundfile = pytest.importorskip("soundfile")
RATE = 24000


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tone(path: str, seconds: float, gain: float = 0.5, **how: object) -> str:
    wave = gain * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE)) / RATE)
    channels = how.pop("channels", 1)
    soundfile.write(path, wave if channels == 1 else np.stack([wave, wave / 2], axis=1), RATE, **how)
    return path


def test_two_sounds_beside_their_tokens():
    tone("py.wav", 0.16), tone("native.wav", 0.12, 0.4)
    Run().write(Path("py.tklog"))
    Run("native", tokens=([10, 11, 11, 6562],)).write(Path("native.tklog"))
    assert tracekit("audio", "py.wav", "native.wav") == (0, golden("audio.txt"))
    assert tracekit("audio", "py.wav", "native.wav", "--traces", "py.tklog", "native.tklog") == (
        0,
        golden("audio_beside_tokens.txt"),
    )


def test_a_file_a_segment():
    for name in ("one.wav", "two.wav"):
        tone(name, 0.1)
    Run().write(Path("py.tklog"))
    told = json.loads(tracekit("audio", "one.wav", "two.wav", "--traces", "py.tklog", "--json")[1])
    assert [(row["trace"], row["tokens"]) for row in told["files"]] == [("py.tklog[0]", 4), ("py.tklog[1]", 2)]
    assert told["files"][1]["difference"] == {"seconds": 0.0, "rms_db": 0.0, "max_difference": 0.0}


def test_memory_is_a_block_and_blocks_line_up():
    tone("long.wav", 30.0), tone("late.wav", 30.0)
    wave, _ = soundfile.read("late.wav")
    wave[-5] = -0.9
    soundfile.write("late.wav", wave, RATE)
    told = json.loads(tracekit("audio", "long.wav", "late.wav", "--json")[1])["files"][1]
    assert told["max_amplitude"] == pytest.approx(0.9, abs=1e-4)
    assert 0.4 < told["difference"]["max_difference"] < 1.4


@pytest.mark.parametrize(
    ("how", "note"),
    [
        ({"subtype": "PCM_U8"}, "odd.wav: 8 bits a sample; amplitudes are exact to 0.0078 only"),
        ({"channels": 2}, "odd.wav: 2 channels; RMS and maximum are over all of them"),
        ({"gain": 0.0}, "odd.wav: is silent throughout"),
    ],
)
def test_what_is_odd_is_said(how: dict[str, object], note: str):
    tone("odd.wav", 0.1, **how)
    code, said = tracekit("audio", "odd.wav")
    assert code == 0 and said.endswith(f"note: {note}\n")


def test_other_channels_and_rates_are_not_compared_sample_by_sample():
    tone("one.wav", 0.1), tone("two.wav", 0.1, channels=2)
    soundfile.write("slow.wav", np.full(1200, 0.25), 12000)
    rows = json.loads(tracekit("audio", "one.wav", "two.wav", "slow.wav", "--json")[1])["files"]
    assert [row["difference"]["max_difference"] for row in rows[1:]] == [None, None]
    assert rows[2]["seconds"] == pytest.approx(0.1)


def test_a_file_cut_short_is_said():
    tone("cut.wav", 1.0)
    Path("cut.wav").write_bytes(Path("cut.wav").read_bytes()[:12044])
    code, said = tracekit("audio", "cut.wav")
    assert code == 0 and "cut.wav: is cut short, its header promises more than these 0.25 s" in said


def not_sound(name: str) -> None:
    if name == "samples.wav":
        soundfile.write(name, np.zeros(0), RATE)
    elif name == "nan.wav":
        soundfile.write(name, np.array([0.0, np.nan]), RATE, subtype="FLOAT")
    elif name == "head.wav":
        Path(name).write_bytes(b"RIFF\x24\x00\x00\x00WAVE")
    elif name != "missing.wav":
        Path(name).write_text("" if name == "empty.wav" else "no sound in here")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty.wav", "is empty; give a WAV"),
        ("samples.wav", "holds no samples; give a file with sound in it"),
        ("nan.wav", "holds samples that are no numbers; make it again"),
        ("text.wav", "is not a WAV, or damaged at its head; give a WAV"),
        ("head.wav", "is not a WAV, or damaged at its head; give a WAV"),
        ("missing.wav", "is no file; give a WAV"),
    ],
)
def test_what_is_no_sound_gets_one_line(name: str, said: str):
    not_sound(name)
    assert tracekit("audio", name) == (2, f"{name}: {said}")


def test_traces_that_do_not_fit_get_one_line():
    for name in ("1.wav", "2.wav", "3.wav"):
        tone(name, 0.1)
    Run().write(Path("py.tklog"))
    code, said = tracekit("audio", "1.wav", "2.wav", "3.wav", "--traces", "py.tklog")
    assert code == 2 and said.startswith("3 sounds fit neither 1 traces nor their 2 sequences")
    assert tracekit("audio", "py.tklog")[1].startswith("py.tklog: is a trace; give WAV files")


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    tone("one.wav", 0.1)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert tracekit("audio", "one.wav") == (
        2,
        "one.wav: measuring sound needs a library; pip install 'tracekit[audio]'",
    )


def test_a_segment_is_compared_with_the_same_segment():
    for index, name in enumerate(("py0.wav", "py1.wav", "native0.wav", "native1.wav")):
        tone(name, 0.1, gain=(0.5, 0.25, 0.5, 0.125)[index])
    Run().write(Path("py.tklog"), silent_token_ids=[11])
    Run("native").write(Path("native.tklog"))
    words = ("py0.wav", "py1.wav", "native0.wav", "native1.wav", "--traces", "py.tklog", "native.tklog")
    rows = json.loads(tracekit("audio", *words, "--json")[1])["files"]
    assert [row["compared_with"] for row in rows] == [None, None, "py0.wav", "py1.wav"]
    louder = [row["difference"] and round(row["difference"]["rms_db"], 1) for row in rows]
    assert louder == [None, None, 0.0, -6.0]
    assert "compared with" in tracekit("audio", *words)[1]


def test_tokens_that_were_dropped_make_no_sound():
    tone("py.wav", 0.16)
    Run(tokens=([11] * 8 + [EOS], [20, EOS])).write(Path("py.tklog"), silent_token_ids=[11])
    told = json.loads(tracekit("audio", "py.wav", "--traces", "py.tklog", "--json")[1])
    assert (told["files"][0]["tokens"], told["files"][0]["dropped_silent_tokens"]) == (9, 3)
    assert told["files"][0]["token_seconds"] == 6 / 25
    assert "3 of 9 tokens are silent ones after the fifth in a row, which llm_job drops" in told["notes"][0]
