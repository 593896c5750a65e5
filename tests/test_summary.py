"""`tracekit summary` and `tracekit import` of text logs: the numbers that people used to read out of two logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tracekit as tk
from tests.speech_traces import EOS, Run, golden, tracekit
from tracekit.summary import summarise

TRACES = Path(__file__).parent.parent / "traces"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_both_sides_of_a_segment_are_next_to_each_other():
    Run().write(Path("py.tklog"))
    Run("native", tokens=([10, 11, 11, EOS], [20, 21, 22, EOS])).write(Path("native.tklog"))
    assert tracekit("summary", "py.tklog", "native.tklog")[1] == golden("summary.txt")


def test_an_ordinary_model_has_no_seconds_and_counts_its_stop_token():
    rows = summarise([tk.open(TRACES / "python.h5"), tk.open(TRACES / "stop.h5")])
    assert [row["seconds"] for row in rows] == [None, None]
    assert [(row["generated_tokens"], row["stop_step"], row["end"]) for row in rows] == [
        (12, None, "length"),
        (9, 8, "stop"),
    ]
    assert "fallbacks" not in tracekit("summary", TRACES / "python.h5")[1]


def test_a_run_that_was_killed_is_cut_off():
    Run(ends=False, tokens=([10, 11],)).write(Path("cut.tklog"))
    (row,) = summarise([tk.open("cut.tklog")])
    assert (row["end"], row["generated_tokens"], row["stop_step"]) == ("cut off", 2, None)


def test_what_is_no_trace_gets_one_line():
    Path("no.h5").write_text("hello")
    assert tracekit("summary", "no.h5") == (
        2,
        "no.h5: is neither a log (*.tklog) nor an archive (*.h5) of tracekit; give a file that tracekit recorded",
    )


# -------------------------------------------------------------------- text logs

PYTHON_LOG = """\
2026-01-05 10:21:00,111 INFO prompt text 22 tokens, text 34, prompt speech 87
2026-01-05 10:21:04,113 INFO LLM generated 214 speech tokens
8.56 s: Welcome back
prompt speech token len: 87
LLM generated 175 speech tokens
"""
NATIVE_LOG = """\
loading text model 0.5B
LLM: stop token reached at step 147
Generated 147 speech tokens
Generated 195 speech tokens
"""


def test_two_old_logs_are_compared():
    Path("py_token_log.txt").write_text(PYTHON_LOG)
    Path("native_token_log.txt").write_text(NATIVE_LOG)
    assert tracekit("import", "py_token_log.txt") == (0, "py_token_log.h5: python, 2 sequences, counts only\n")
    told = json.loads(tracekit("import", "native_token_log.txt", "-o", "native.h5", "--json")[1])
    assert told["counts"] == [{"stop_step": 147, "generated_tokens": 147}, {"generated_tokens": 195}]
    assert Path("py_token_log.txt").read_text() == PYTHON_LOG
    assert tracekit("summary", "py_token_log.h5", "native.h5")[1] == golden("summary_of_text_logs.txt")


def test_counts_alone_are_no_parity():
    Path("log.txt").write_text(PYTHON_LOG)
    tracekit("import", "log.txt")
    code, said = tracekit("diff", "log.h5", "log.h5")
    assert code == 2
    assert "WITHHELD  capture" in said and "counts only; tracekit summary" in said


def test_token_ids_are_taken_where_a_log_has_them():
    lines = "prompt speech tokens: [1, 2]\nspeech tokens: [7, 8, 9]\nLLM generated 3 speech tokens\n"
    Path("log.txt").write_text(lines)
    tracekit("import", "log.txt")
    with tk.open("log.h5") as trace:
        (sequence,) = trace.sequences
        assert sequence.tokens.tolist() == [7, 8, 9]
        assert sequence.inputs["speech_token_ids"].tolist() == [1, 2]
    assert tracekit("tokens", "log.h5") == (0, "7 8 9\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing of interest\n", "bad.txt: is no log of tracekit, and has no line `LLM generated N speech tokens`"),
        ("", "bad.txt: is no log of tracekit"),
        (PYTHON_LOG + NATIVE_LOG, "bad.txt: holds lines of both programs; import the log of each side by itself"),
        ("token ids: [1, 2]\nGenerated 3 speech tokens\n", "bad.txt: segment 0 says 3 speech tokens and lists 2"),
    ],
)
def test_a_log_that_does_not_say_it_gets_one_line(text: str, said: str):
    Path("bad.txt").write_text(text)
    code, line = tracekit("import", "bad.txt")
    assert code == 2 and line.startswith(said)
    assert [path.name for path in Path().iterdir()] == ["bad.txt"]


def test_an_archive_is_not_written_where_there_is_no_folder():
    Path("log.txt").write_text(PYTHON_LOG)
    code, line = tracekit("import", "log.txt", "-o", "no/such/out.h5")
    assert (code, line) == (2, "no/such/out.h5: cannot be written: No such file or directory")
