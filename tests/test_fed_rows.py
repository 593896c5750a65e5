"""Rows that were fed and not told, and ids that no table has a row for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tracekit
from tests.speech_traces import tracekit as run
from tests.spoken import evidence
from tracekit.align.pair import Side
from tracekit.formats.log import LogWriter
from tracekit.verdict.evidence import RowUnmatched

WIDTH, VOCABULARY = 16, 30
TABLE = np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
IDS = [3, 7, 7, 11, 3]


def write(path: Path, rows: np.ndarray, ids: list[int] = IDS, dtype: str = "float32") -> Path:
    """A run that tells `ids` and is fed `rows` [n, WIDTH] at once."""
    log = LogWriter(path)
    sites = [
        {"name": "layers.0.norm:in", "class": "input", "order": 0},
        {"name": "norm", "class": "RMSNorm", "order": 1},
    ]
    log.open("native", dtype=dtype, seed=0, model={"hidden_size": WIDTH}, sites=sites)
    log.sequence(0, {"prompt/token_ids": np.array(ids)})
    log.call(0, 0, len(rows), {"layers.0.norm:in": rows, "norm": rows[:, ::-1].copy()})
    log.step(0, 0, len(rows) - 1, 5, {"logits": np.zeros(VOCABULARY, np.float32)})
    log.end_sequence(0, 1, "stop")
    log.close()
    return path


def with_row(at: int) -> np.ndarray:
    return np.insert(TABLE[IDS], at, np.full(WIDTH, 0.25, np.float32), axis=0)


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("side", ["candidate", "reference"])
def test_a_row_that_was_put_in_untold_is_named(tmp_path: Path, at: int, side: str) -> None:
    plain, more = write(tmp_path / "plain.tklog", TABLE[IDS]), write(tmp_path / "more.tklog", with_row(at))
    pair = (plain, more) if side == "candidate" else (more, plain)
    with tracekit.open(pair[0]) as one, tracekit.open(pair[1]) as other:
        verdict = tracekit.diff(one, other)
    assert (verdict.cause, verdict.step, verdict.position) == ("input", 0, at)
    assert f"{side}: 6 rows fed for 5 prompt entries" in evidence(verdict)
    assert verdict.evidence[-1] == RowUnmatched(Side(side), (at,), added=True)


def test_a_row_that_was_left_out_is_named(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.tklog", TABLE[IDS])
    less = write(tmp_path / "less.tklog", np.delete(TABLE[IDS], 3, axis=0))
    with tracekit.open(plain) as one, tracekit.open(less) as other:
        verdict = tracekit.diff(one, other)
    assert (verdict.cause, verdict.position) == ("input", 3)
    assert verdict.evidence[-1] == RowUnmatched(Side.REFERENCE, (3,), added=False)


def test_equal_inputs_say_nothing_of_rows(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.tklog", with_row(1)), write(tmp_path / "other.tklog", with_row(1))
    with tracekit.open(one) as first, tracekit.open(other) as second:
        assert tracekit.diff(first, second).verdict == "parity"


def test_a_site_without_values_is_not_proposed_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "run.tklog"
    log = LogWriter(path)
    rows = [
        {"name": "model.norm", "class": "RMSNorm", "order": 0, "skipped": "its shape does not have 4 rows"},
        {"name": "model.norm2", "class": "RMSNorm", "order": 1},
    ]
    log.open("native", sites=rows)
    log.sequence(0, {})
    log.call(0, 0, 1, {"model.norm2": np.ones((1, 4), np.float32)})
    log.close()
    code, said = run("show", path, "--site", "model.norm")
    assert code == 2 and said.endswith("'model.norm': its shape does not have 4 rows")
    assert "did you mean model.norm2" in run("show", path, "--site", "model.norn")[1]


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_an_id_without_a_row_gets_one_line(tmp_path: Path, token: int) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    name = "model.embed_tokens"
    save_file({f"{name}.weight": TABLE}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": WIDTH}))
    path = tmp_path / "run.tklog"
    log = LogWriter(path)
    site = {"name": name, "class": "Embedding", "order": 0, "parameters": {"weight": f"{name}.weight"}}
    log.open("native", dtype="float32", sites=[site], model={"model_type": "llama", "hidden_size": WIDTH})
    log.sequence(0, {"prompt/token_ids": np.array([3, token, 7])})
    log.call(0, 0, 3, {name: TABLE[[3, 0, 7]]})
    log.end_sequence(0, 0, "done")
    log.close()
    code, said = run("audit", path, "--weights", folder)
    assert code == 2 and f"sequence 0, position 1: token id {token} has no row in {name}.weight, which has 30" in said
