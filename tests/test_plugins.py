"""What other packages bring through entry points: kinds of generations, importers, adapters."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit as core
from tests.speech_traces import tracekit
from tracekit import plugins
from tracekit.formats.log import LogWriter

TRACES = Path(__file__).parent.parent / "traces"
Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package of one module, `other_engine`, as far as Python can tell: its file and its metadata lie in a
    folder of the path."""
    monkeypatch.chdir(tmp_path)
    site = tmp_path / "site-packages"

    def put(source: str, group: str, value: str) -> None:
        about = site / "other_engine-1.0.dist-info"
        about.mkdir(parents=True)
        (site / "other_engine.py").write_text(source)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other-engine\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{group}]\nother = {value}\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, "other_engine", raising=False)
        importlib.invalidate_caches()
        plugins.loaded.cache_clear()

    yield put
    plugins.loaded.cache_clear()


BABBLE = """
class Babble:
    prompt_columns = {"sung_notes": "notes"}
    columns = {"bars": "bars"}

    def knows(self, trace, sequence):
        return (trace.config.get("model") or {}).get("model_type") == "babble"

    def generated(self, sequence):
        return sequence.tokens[1:]

    def numbers(self, sequence, generated):
        return {"sung_notes": 4, "bars": generated / 2}

    def differences(self, reference, candidate):
        return ()

BABBLE = Babble()
"""


def write(path: str, model_type: str) -> None:
    with LogWriter(path) as log:
        log.open("python", model={"model_type": model_type})
        log.sequence(0, {"prompt/token_ids": np.arange(3)})
        for step, token in enumerate((5, 6, 7)):
            log.step(0, step, 2 + step, token, {})
        log.end_sequence(0, 3, "length")


def test_a_package_brings_what_its_programs_count(install: Install) -> None:
    install(BABBLE, "tracekit.generations", "other_engine:BABBLE")
    write("song.tklog", "babble"), write("plain.tklog", "llama")
    song, plain = json.loads(tracekit("summary", "song.tklog", "plain.tklog", "--json")[1])
    assert (song["generated_tokens"], song["sung_notes"], song["bars"], song["seconds"]) == (2, 4, 1.0, None)
    assert (plain["generated_tokens"], plain["sung_notes"], plain["bars"]) == (3, None, None)
    assert "notes" in tracekit("summary", "song.tklog")[1] and "notes" not in tracekit("summary", "plain.tklog")[1]
    assert tracekit("tokens", "song.tklog") == (0, "6 7\n")


def test_what_cannot_be_loaded_is_named(install: Install) -> None:
    install("import no_such_module\n", "tracekit.generations", "other_engine:X")
    write("plain.tklog", "llama")
    code, said = tracekit("summary", "plain.tklog")
    assert code == 2 and said.startswith("tracekit.generations: other of the package other-engine cannot be loaded:")


@pytest.mark.parametrize("words", [["summary"], ["tokens"], ["show"], ["audit", "--weights", TRACES / "model"]])
def test_a_trace_of_another_model_meets_no_word_of_cosyvoice(words: list[str]) -> None:
    printed = tracekit(words[0], TRACES / "python.h5", *words[1:])[1]
    printed += tracekit("diff", TRACES / "python.h5", TRACES / "layer.h5")[1]
    assert len(printed) > 100 and not re.search("speech|cosyvoice|silen|second|fallback|redraw", printed, re.I)


NOTES = """
from tracekit.formats.log import LogWriter

class Notes:
    reads = "lists of notes (*.notes)"

    def knows(self, path):
        return path.suffix == ".notes"

    def log(self, path, scratch):
        with LogWriter(scratch / "notes.tklog") as log:
            log.open("piano")
            log.sequence(0)
            tokens = [int(word) for word in path.read_text().split()]
            for step, token in enumerate(tokens):
                log.step(0, step, step, token, {})
            log.end_sequence(0, len(tokens), "done")
        return scratch / "notes.tklog"

IMPORTER = Notes()
"""


def test_a_package_brings_an_importer(install: Install) -> None:
    install(NOTES, "tracekit.importers", "other_engine:IMPORTER")
    Path("song.notes").write_text("5 6 7")
    assert tracekit("import", "song.notes") == (0, "song.h5: 1 sequences, 3 steps, complete\n")
    assert Path("song.notes").exists() and tracekit("tokens", "song.h5") == (0, "5 6 7\n")
    Path("song.txt").write_text("5 6 7")
    code, said = tracekit("import", "song.txt")
    assert code == 2 and said.startswith("song.txt: no importer reads this file; supported: lists of notes (*.notes); ")
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


SINGER = """
import torch
from torch import nn

from tracekit_torch.adapters import ModelKind
from tracekit_torch.adapter import Choice
from tracekit_torch.recorder import generator_state


class Singer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.voice = nn.Linear(9, 9)

    def forward(self, heard):
        return self.voice(heard)

    def sing(self, notes):
        heard, sung = torch.zeros(1, 9), []
        for _ in range(notes):
            with torch.no_grad():
                heard = self(heard)
            sung.append(int(heard.argmax()))
        return sung


class Song:
    def __init__(self, recorder):
        self.recorder, self.row = recorder, None

    def begin(self, arguments):
        if self.row is None:
            self.row = self.recorder.new_row(0, 1)
            self.recorder.begin_sequence(self.row, [0], {}, generator_state(), row=0)
        self.recorder.taps.begin(1, 1, True)

    def end(self, output):
        self.write()
        self.recorder.taps.end()
        self.recorder.write_step(self.row, Choice(int(output.argmax()), output[0]))

    def write(self):
        self.recorder.write_sites()
        self.recorder.write_call(self.row, self.row.steps, 0, 0)
        self.recorder.taps.memory.clear()

    def listening(self):
        return False

    def finish(self, reason, detail):
        if self.row is not None:
            self.recorder.end_row(self.row, reason or "done", detail)


class Singers(ModelKind):
    def knows(self, module):
        return isinstance(module, Singer)

    def attach(self, recorder, model, sampling):
        recorder.attach(model, Song(recorder), None, sampling)


KIND = Singers()
"""
PROGRAM = "import other_engine\nprint(*other_engine.Singer().sing(3))\n"
BROKEN = {
    "at its import": ("import no_such_module", "", "other of the package other-engine cannot be loaded"),
    "by an exit": ("raise SystemExit(3)", "", "other of the package other-engine cannot be loaded"),
    "as no instance": ("KIND = object", "", "is not a ModelKind"),
    "when asked": ("", "def knows(self, module): raise OSError('lost the notes')", "OSError: lost the notes"),
    "when it watches": ("", "def watch(self, watching): raise OSError('lost the notes')", "OSError: lost the notes"),
}


def sung(out: str) -> list[int]:
    with core.open(out) as trace:
        (song,) = trace.sequences
        assert song.site("voice").values.shape == (3, 9)
        return [int(token) for token in song.tokens]


def test_a_package_brings_an_adapter(install: Install, tmp_path: Path) -> None:
    tracekit_torch = pytest.importorskip("tracekit_torch")
    install(SINGER, "tracekit.adapters", "other_engine:KIND")
    singer = importlib.import_module("other_engine").Singer()
    plain = singer.sing(3)
    with tracekit_torch.record(singer, "song.h5"):
        assert singer.sing(3) == plain
    assert sung("song.h5") == plain

    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "tracekit_cli.main", "record", "-o", "again.h5", "program.py"]
    paths = os.pathsep.join([str(tmp_path / "site-packages"), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=True)
    assert [int(note) for note in run.stdout.split()] == plain == sung("again.h5")


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_adapter_is_said_and_the_run_is_recorded(install: Install, how: str, capsys: Any) -> None:
    tracekit_torch = pytest.importorskip("tracekit_torch")
    torch = pytest.importorskip("torch")
    last, method, said = BROKEN[how]
    kind = f"{SINGER}\nclass Broken(Singers):\n    {method}\n\nKIND = Broken()\n" if method else last
    install(kind, "tracekit.adapters", "other_engine:KIND")
    model = torch.nn.Linear(4, 2)
    with tracekit_torch.record(model, "run.h5"):
        model(torch.ones(3, 4))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tracekit: ")]
    assert len(told) == 1 and said in told[0]
    with core.open("run.h5") as trace:
        assert trace.status == "complete" and len(trace.sequences) == 1


def test_an_adapter_that_cannot_attach_leaves_the_program_alone(install: Install, capsys: Any) -> None:
    tracekit_torch = pytest.importorskip("tracekit_torch")
    attach = "def attach(self, recorder, model, sampling): raise OSError('lost the notes')"
    broken = f"{SINGER}\nclass Broken(Singers):\n    {attach}\n\nKIND = Broken()\n"
    install(broken, "tracekit.adapters", "other_engine:KIND")
    singer = importlib.import_module("other_engine").Singer()
    plain = singer.sing(3)
    with tracekit_torch.record(singer, "song.h5"):
        assert singer.sing(3) == plain
    said = "the adapter other_engine.Broken failed: OSError: lost the notes"
    assert capsys.readouterr().err == f"tracekit: recording stopped, the program goes on: {said}\n"
    assert not Path("song.h5").exists()


@pytest.mark.parametrize("method", ["begin", "end", "write", "listening", "finish"])
def test_an_error_in_an_adapter_does_not_reach_the_program(install: Install, method: str, capsys: Any) -> None:
    tracekit_torch = pytest.importorskip("tracekit_torch")
    torch = pytest.importorskip("torch")
    broken = f"    def {method}(self, *arguments):\n        raise OSError('lost the notes')\n\n\nclass Singers("
    install(SINGER.replace("\nclass Singers(", broken), "tracekit.adapters", "other_engine:KIND")
    singer = importlib.import_module("other_engine").Singer()
    plain = singer.sing(3)
    with tracekit_torch.record(singer, "song.h5"):
        assert singer.sing(3) == plain
        torch.multinomial(torch.ones(4), 1)
    err = capsys.readouterr().err
    assert err.count("recording stopped, the program goes on: lost the notes\n") == 1 and "Traceback" not in err


def test_each_kind_of_model_has_its_place_in_the_order() -> None:
    adapters = pytest.importorskip("tracekit_torch.adapters")
    names = [type(kind).__name__ for kind in adapters.kinds(print)]
    assert names == ["SpeechModels", "CausalModels", "AnyModules"]
