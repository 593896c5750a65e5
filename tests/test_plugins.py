"""What other packages bring through entry points: kinds of generations, importers, adapters."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

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
        plugins.plugins.cache_clear()

    yield put
    plugins.plugins.cache_clear()


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
