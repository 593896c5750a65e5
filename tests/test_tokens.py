"""Token ids side by side, and out of a trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import tracekit as tk
from tests.speech_traces import EOS, Run, golden, tracekit
from tracekit.align.pair import Pair
from tracekit.compare.side_by_side import token_tables

TRACES = Path(__file__).parent.parent / "traces"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Run().write(Path("py.tklog"))


def table(*words: object) -> str:
    """What `diff --tokens` prints after the verdict."""
    return tracekit("diff", "py.tklog", *words)[1].split("\n\n", 1)[1]


def test_the_first_difference_is_marked():
    Run("native", tokens=([10, 11, 11, 13, EOS], [20, 21])).write(Path("native.tklog"))
    assert table("native.tklog", "--tokens", 4) == golden("tokens.txt")


def test_a_draw_that_differs_is_marked_where_the_tokens_are_still_the_same():
    Run("native", offset=1).write(Path("native.tklog"))
    found = token_tables(Pair.of(tk.open("py.tklog"), tk.open("native.tklog")), 9)
    firsts = [one.first_difference for one in found]
    assert [(first.step, first.difference) for first in firsts if first] == [(0, "draw"), (0, "draw")]
    assert "the draws differ from step 0" in table("native.tklog", "--tokens", 1)


def test_equal_runs_have_no_mark():
    Run("native").write(Path("native.tklog"))
    said = table("native.tklog", "--tokens", 9)
    assert said.startswith("sequence 0, the first 5 tokens: the same on both sides") and "\n>" not in said
    assert all(
        one.first_difference is None for one in token_tables(Pair.of(tk.open("py.tklog"), tk.open("native.tklog")), 9)
    )


def test_an_ordinary_model_shows_its_texts():
    (found,) = token_tables(Pair.of(tk.open(TRACES / "python.h5"), tk.open(TRACES / "rng.h5")), 5)
    first = found.first_difference
    assert first is not None and (first.step, first.difference) == (3, "token")
    code, said = tracekit("diff", TRACES / "python.h5", TRACES / "rng.h5", "--tokens", 5)
    assert code == 1 and '>        3  57 "Z"' in said and '195 "\\x07"' in said


def test_rows_are_in_the_json():
    Run("native", tokens=([10, 12], [20])).write(Path("native.tklog"))
    told = json.loads(tracekit("diff", "py.tklog", "native.tklog", "--tokens", 2, "--json")[1])
    first = told["tokens"][0]
    assert first["first_difference"] == 1
    assert [row["difference"] for row in first["rows"]] == [None, "token"]
    assert first["rows"][1]["candidate"]["draws"][0]["offset"] == 4
    assert "tokens" not in json.loads(tracekit("diff", "py.tklog", "native.tklog", "--json")[1])


def test_ids_are_written_in_each_format_without_the_stop_token():
    wanted = {"sequence_0": [10, 11, 11, 12], "sequence_1": [20, 21]}
    assert tracekit("tokens", "py.tklog") == (0, "10 11 11 12\n20 21\n")
    for name in ("ids.safetensors", "ids.json", "ids.txt"):
        assert tracekit("tokens", "py.tklog", "-o", name)[1] == f"{name}: sequence_0 [4], sequence_1 [2]\n"
    assert {name: ids.tolist() for name, ids in load_file("ids.safetensors").items()} == wanted
    assert json.loads(Path("ids.json").read_text()) == wanted
    assert Path("ids.txt").read_text() == "10 11 11 12\n20 21\n"
    assert json.loads(tracekit("tokens", "py.tklog", "--sequence", 1, "--json")[1]) == {"sequence_1": [20, 21]}


def test_prompt_speech_tokens_are_one_tensor_for_other_programs():
    assert tracekit("tokens", "py.tklog", "--prompt-speech", "-o", "speech.safetensors")[0] == 0
    (ids,) = load_file("speech.safetensors").values()
    assert (ids.dtype, ids.tolist()) == ("int64", [0, 1, 2, 3, 4])
    assert list(load_file("speech.safetensors")) == ["speech_token_ids"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("py.tklog", "-o", "ids.csv"), "ids.csv: has no suffix that says a format"),
        (("py.tklog", "-o", "no/such/ids.txt"), "no/such/ids.txt: cannot be written: No such file"),
        (("py.tklog", "-o", "py.tklog/ids.txt"), "py.tklog/ids.txt: cannot be written: Not a directory"),
        (("py.tklog", "--sequence", 2), "py.tklog: has no sequence 2; it holds 2, counted from 0"),
        ((TRACES / "python.h5", "--prompt-speech"), f"{TRACES / 'python.h5'}: holds no prompt speech tokens"),
    ],
)
def test_trouble_is_one_line(words: tuple[object, ...], said: str):
    code, line = tracekit("tokens", *words)
    assert code == 2 and line.startswith(said)
    assert sorted(path.name for path in Path().iterdir()) == ["py.tklog"]
