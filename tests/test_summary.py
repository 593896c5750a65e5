"""`tracekit summary` and `tracekit import` of text logs: the numbers that people used to read out of two logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tracekit as tk
from tests.speech_traces import EOS, Run, golden, tracekit
from tracekit.formats.log import LogWriter
from tracekit.inspection.summary import summarise

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
        ("nothing of interest\n", "bad.txt: no importer reads this file; supported: "),
        ("", "bad.txt: no importer reads this file; supported: "),
        (PYTHON_LOG + NATIVE_LOG, "bad.txt: holds lines of both programs; import the log of each side by itself"),
        (
            "token ids: [1, 2]\nGenerated 1 speech tokens\n",
            "bad.txt: segment 0 says 1 speech tokens and lists 2, which",
        ),
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


NATIVE_EXAMPLE = """\
DEBUG: mel_len=120, token_len=61, aligned_token_len=60
Prompt token length: 67
Segment 0 token length: 34
DEBUG: Prompt tokens: [4, 5, 6]
2026-01-01T00:00:00Z DEBUG port: Gen token 0: 1
LLM: stop token reached at step 147 (token id 6562)
Generated 147 speech tokens: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
Input speech_tokens shape: [1, 147]
Replacing prompt_speech_tokens: [1, 87] -> [1, 120]
Segment 0 token length: 33
LLM: stop token reached at step 3 (token id 6562)
Generated 3 speech tokens: [1, 2, 3]
"""
"""The lines that native_example.rs prints, with its lists of the first 20."""


def test_a_list_shorter_than_its_count_is_the_beginning():
    Path("native.txt").write_text(NATIVE_EXAMPLE)
    assert tracekit("import", "native.txt")[0] == 0
    rows = json.loads(tracekit("summary", "native.h5", "--json")[1])
    keys = ("prompt_text_tokens", "text_tokens", "prompt_speech_tokens", "generated_tokens", "stop_step")
    assert [tuple(row[key] for key in keys) for row in rows] == [(67, 34, 60, 147, 147), (67, 33, 60, 3, 3)]
    with tk.open("native.h5") as trace:
        assert [list(sequence.tokens) for sequence in trace.sequences] == [[*range(1, 21)], [1, 2, 3]]
    code, said = tracekit("tokens", "native.h5")
    assert code == 0 and "native.h5: sequence 0: the log lists the first 20 of 147 tokens" in said


def test_listed_tokens_are_compared_as_far_as_they_go():
    Path("one.txt").write_text(NATIVE_EXAMPLE)
    Path("two.txt").write_text(
        NATIVE_EXAMPLE.replace("Generated 147", "Generated 190").replace("[1, 2, 3]", "[1, 2, 4]")
    )
    Path("three.txt").write_text(NATIVE_EXAMPLE.replace("length: 33", "length: 35"))
    for name in ("one", "two", "three"):
        assert tracekit("import", f"{name}.txt")[0] == 0
    code, said = tracekit("diff", "one.h5", "two.h5")
    assert code == 2 and "WITHHELD  capture" in said
    assert "sequence 0: generated tokens: 147 in the reference, 190 in the candidate" in said
    assert "sequence 0: the first 20 tokens are equal; those after it, up to step 189, are not recorded" in said
    assert "sequence 1: tokens differ from step 2: reference 3 | candidate 4" in said
    assert (
        "sequence 1: text tokens: 33 in the reference, 35 in the candidate" in tracekit("diff", "one.h5", "three.h5")[1]
    )
    assert "counts only" not in said


def test_segments_may_be_told_first_and_generation_skipped():
    lines = [
        "Prompt token length: 7",
        "Segment 0 token length: 4",
        "Segment 1 token length: 5",
        "Generated 9 speech tokens: [1]",
    ]
    Path("log.txt").write_text("\n".join([*lines, "Skipping LLM generation, using 12 forced tokens.", ""]))
    assert tracekit("import", "log.txt")[0] == 0
    rows = json.loads(tracekit("summary", "log.h5", "--json")[1])
    assert [(row["text_tokens"], row["generated_tokens"]) for row in rows] == [(4, 9), (5, 0)]


def test_what_nobody_recorded_is_not_counted_as_none():
    log = LogWriter(Path("bare.tklog"))
    log.open("native", dtype="float32", model={"model_type": "cosyvoice3"})
    log.sequence(0, {})
    log.step(0, 0, 0, 5, {})
    log.end_sequence(0, 1, "stop")
    log.close()
    Run().write(Path("py.tklog"))
    rows = json.loads(tracekit("summary", "py.tklog", "bare.tklog", "--json")[1])
    assert [(row["fallbacks"], row["redraws"]) for row in rows] == [(1, 0), (None, None), (0, 0)]
    assert tracekit("summary", "py.tklog", "bare.tklog")[1].splitlines()[3].split()[-2:] == ["-", "-"]


def test_silent_tokens_that_the_program_drops_are_counted():
    run = Run(tokens=([1, 1, 1, 1, 1, 1, 1, 2, 3, 1, EOS], [20, 21, EOS]))
    run.write(Path("py.tklog"), silent_token_ids=[1, 2])
    Run("native", tokens=run.tokens).write(Path("native.tklog"))
    rows = json.loads(tracekit("summary", "py.tklog", "native.tklog", "--json")[1])
    assert [row["dropped_silent_tokens"] for row in rows] == [3, None, None, None]
    said = tracekit("diff", "py.tklog", "native.tklog")[1]
    assert (
        "sequence 0: llm_job drops 3 silent tokens, those after the fifth in a row; the other side drops none: 0.12 s"
        in said
    )
