"""NaN and infinities: said as such, with the first site, how many, and what went in; masks are none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tracekit
from tests.small_run import write_run
from tests.spoken import notes
from tests.test_gaps import told
from tracekit.formats.log import LogWriter, Tensor, map_file, read_frames
from tracekit.inspection.non_finite import _counts, first_non_finite

UP = "model.layers.1.mlp.up_proj"
Alter = Callable[[str, np.ndarray, int], np.ndarray]
"""(site, rows f32 of a call, position of the first) -> rows."""


def altered(log: Path, out: Path, alter: Alter) -> Path:
    """The log with the values of its sites altered."""
    data, writer = map_file(log), LogWriter(out)
    for frame in read_frames(data):
        tensors = {}
        for name, stored in frame.tensors.items():
            rows = frame.array(data, name)
            assert rows is not None
            if frame.kind == "call" and stored.dtype == "float32":
                rows = alter(name, rows.copy(), frame.metadata["position"])
            elif frame.kind == "step" and name == "logits":
                rows = alter(name, rows.copy()[None], frame.metadata["position"])[0]
            else:
                tensors[name] = Tensor(stored.dtype, stored.shape, rows.tobytes())
                continue
            tensors[name] = rows
        writer.write_frame(frame.kind, frame.metadata, tensors)
    writer.abandon()
    return out


def at(site: str, position: int, value: float, count: int = 3) -> Alter:
    """`count` elements of one row; every later site gets whole rows of NaN from there on."""

    def alter(name: str, rows: np.ndarray, first: int) -> np.ndarray:
        if name == site and first <= position < first + len(rows):
            rows[position - first, :count] = value
        return rows

    return alter


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_one_is_named_with_what_went_in(
    whole_run: Callable[..., Path],
    tiny_llama: Path,
    tmp_path: Path,
    value: float,
) -> None:
    log = altered(whole_run(), tmp_path / "bad.tklog", at(UP, 3, value))
    word = "NaN" if np.isnan(value) else "infinite"
    wanted = f"not finite: {UP} first, at step 0, position 3: 3 {word} of "
    code, said = told("audit", str(log), "--weights", str(tiny_llama))
    assert (
        code == 1 and wanted in said and "its input model.layers.1.post_attention_layernorm is finite (largest " in said
    )
    assert UP in said.split("DEPARTS")[1] and "down_proj" not in said.split("audited:")[0].split("DEPARTS")[1]
    code, said = told("diff", str(whole_run()), str(log), "--weights", str(tiny_llama))
    assert code == 1 and wanted in said and f"position 3, {UP}" in said
    assert wanted in told("show", str(log))[1] and f"{UP} at position 3" in told("summary", str(log))[1]


def test_what_is_made_of_it_is_no_second_culprit(
    whole_run: Callable[..., Path],
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    """As it goes on in a real run: every later value of the layer is NaN from that position on."""
    order = {name: site.order for name, site in tracekit.open(whole_run()).sites.items()}
    start = order[UP]

    def alter(name: str, rows: np.ndarray, first: int) -> np.ndarray:
        if name == "logits" or order.get(name, -1) >= start:
            rows[max(0, 5 - first) :] = np.nan
        return rows

    log = altered(whole_run(), tmp_path / "nan.tklog", alter)
    code, said = told("audit", str(log), "--weights", str(tiny_llama))
    assert code == 1 and f"{UP} at step 0, position 5" in said and "more culprits" not in said
    assert said.count("local error") == 1, said


def test_the_same_on_both_sides_is_said(whole_run: Callable[..., Path], tmp_path: Path) -> None:
    logs = [altered(whole_run(), tmp_path / f"{name}.tklog", at(UP, 3, np.nan)) for name in ("one", "other")]
    code, said = told("diff", str(logs[0]), str(logs[1]), "--no-audit")
    assert code == 0 and said.count(f"not finite: {UP} first") == 2 and "both fail in the same way" in said


def test_masked_logits_and_masks_are_no_fault(tmp_path: Path) -> None:
    def masked(site: str, position: int, row: np.ndarray) -> np.ndarray:
        if site == "logits":
            row[5:9] = -np.inf
        return row

    traces = [tracekit.open(write_run(tmp_path / f"{name}.tklog", change=masked)) for name in ("one", "other")]
    assert first_non_finite(traces[0]) is None
    assert not any("not finite" in note for note in notes(tracekit.diff(*traces)))
    mask = np.array([0, 0, -np.inf, -np.inf], dtype=np.float32)
    assert _counts(mask, "mask") is None and _counts(mask + 1, "scores") == (0, 2)
    assert _counts(mask, "logits") is None and _counts(-mask, "logits") == (0, 2)


def test_an_overflow_of_float16_is_no_mistake_of_the_site() -> None:
    from tracekit.auditing.own_error import _overflowed

    recorded, right = np.array([[np.inf, np.inf, -np.inf, 1.0]]), np.array([[7e4, 6e4, 7e4, 1.0]])
    assert _overflowed(recorded, right, "float16").tolist() == [[7e4, np.inf, -np.inf, 1.0]]
    assert np.isinf(_overflowed(recorded, right, "float32")[0, :3]).all()


@pytest.mark.parametrize("seed", range(8))
def test_nothing_that_is_not_finite_or_huge_makes_a_warning(
    whole_run: Callable[..., Path],
    tiny_llama: Path,
    tmp_path: Path,
    seed: int,
) -> None:
    chance = np.random.default_rng(seed)

    def alter(name: str, rows: np.ndarray, first: int) -> np.ndarray:
        if chance.random() < 0.05:
            value = chance.choice([np.nan, np.inf, -np.inf, 3e38, -1e30, 1e-40])
            rows[chance.integers(len(rows)), chance.integers(rows.shape[1], size=3)] = value
        return rows

    log = altered(whole_run(), tmp_path / "odd.tklog", alter)
    weights = ("--weights", str(tiny_llama))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert told("audit", str(log), *weights)[0] in (1, 2)
        for oracle in ((), ("--oracle", str(whole_run())), ("--noise", str(whole_run()))):
            assert told("diff", str(whole_run()), str(log), *weights, *oracle)[0] in (1, 2)
        assert told("diff", str(log), str(log), *weights)[0] in (0, 2)
        for words in (["show", str(log)], ["show", str(log), "--step", "0"], ["summary", str(log)]):
            assert told(*words)[0] == 0
        assert told("show", str(log), "--site", UP)[0] == 0
        assert told("names", str(whole_run()), str(log))[0] == 0
        assert told("report", str(whole_run()), str(log), *weights, "-o", str(tmp_path / "page.html"))[0] in (0, 1, 2)
