"""The public face: paths or traces go in, arrays and texts come out."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from tracekit_cli.main import group

import tracekit
from tests.small_run import PROMPT, STEPS, VOCABULARY, WIDTH, write_run
from tracekit.align.renamed import Elsewhere, named
from tracekit.align.rotary_order import reordered
from tracekit.checkpoints.rotary_pairs import halves
from tracekit.dtypes import round_to, to_float
from tracekit.formats.archive import write_archive
from tracekit.formats.log import LogWriter, Tensor
from tracekit.formats.name_map import Alias, NameMap

TRACES = Path(__file__).parent.parent / "traces"
PYTHON, LAYER = TRACES / "python.h5", TRACES / "layer.h5"
MODEL = TRACES / "model"


def printed(*words: object) -> str:
    return CliRunner().invoke(group, [str(word) for word in words]).output.rstrip("\n")


def test_a_verdict_of_paths_is_the_verdict_of_traces_and_shows_what_diff_prints() -> None:
    found = tracekit.diff(PYTHON, str(LAYER), weights=MODEL)
    with tracekit.open(PYTHON) as one, tracekit.open(LAYER) as other:
        same = tracekit.diff(one, other, weights=str(MODEL))
        assert len(one[0].site("model.norm").values)  # still open
    assert found.to_json() == same.to_json()
    assert repr(found) == found.text == printed("diff", PYTHON, LAYER, "--weights", MODEL)
    assert isinstance(found, tracekit.Verdict)
    assert json.loads(printed("diff", PYTHON, LAYER, "--weights", MODEL, "--json")) == json.loads(
        json.dumps(found.to_json())
    )


def test_an_audit_shows_what_audit_prints() -> None:
    found = tracekit.audit(LAYER, MODEL)
    assert repr(found) == printed("audit", LAYER, "--weights", MODEL)
    assert found.exit_code == 1 and found.to_json()["verdict"] == "departs"
    assert found.culprits[0].site in found._repr_html_()
    with tracekit.open(LAYER) as run:
        assert tracekit.audit(run, str(MODEL)).to_json() == found.to_json()


def test_oracle_and_noise_may_be_paths(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"{noise}.tklog", noise=noise) for noise in range(3)]
    truth = write_run(tmp_path / "truth.tklog", dtype="float64")
    assert tracekit.diff(runs[0], runs[1], truth).calibration == "oracle"
    assert tracekit.diff(runs[0], runs[1], noise=[runs[2]]).calibration == "noise"
    with tracekit.open(runs[2]) as another:
        alone = [tracekit.diff(runs[0], runs[1], noise=one) for one in (runs[2], str(runs[2]), another)]
    assert {each.calibration for each in alone} == {"noise"}


def test_an_oracle_without_a_sequence_is_not_passed_over(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "empty.tklog")
    log.open("python", dtype="float64")
    log.close()
    run = write_run(tmp_path / "run.tklog")
    with tracekit.open(tmp_path / "empty.tklog") as empty:
        assert len(empty) == 0 and empty
        with pytest.raises(tracekit.TraceError):
            tracekit.diff(run, run, empty)


def test_names_may_be_a_file_or_a_map(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.tklog")
    (tmp_path / "map.toml").write_text('[names]\n"nothing" = "else"\n')
    assert tracekit.diff(run, run, names=tmp_path / "map.toml").verdict == "parity"
    assert tracekit.diff(run, run, names=NameMap((Alias("nothing", ("else",)),))).verdict == "parity"


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(tracekit.TraceError, match=r"none\.h5: cannot be read"):
        tracekit.diff(tmp_path / "none.h5", PYTHON)
    with pytest.raises(tracekit.TraceError, match="of another model"):
        config = tmp_path / "model"
        config.mkdir()
        (config / "config.json").write_text(
            json.dumps(json.loads((MODEL / "config.json").read_text()) | {"hidden_size": 8})
        )
        (config / "model.safetensors").write_bytes((MODEL / "model.safetensors").read_bytes())
        tracekit.audit(LAYER, config)


def test_a_trace_is_a_collection_of_its_sequences() -> None:
    with tracekit.open(PYTHON) as trace:
        assert len(trace) == 1 and list(trace) == [trace[0]] and trace[-1] is trace[0] and len(trace[:1]) == 1
        with pytest.raises(IndexError, match=r"python\.h5: no sequence 1; it holds 1"):
            trace[1]


@pytest.mark.parametrize("archived", [False, True])
def test_values_of_a_site_with_positions_and_tokens(tmp_path: Path, archived: bool) -> None:
    path = write_run(tmp_path / "run.tklog")
    if archived:
        with tracekit.open(path) as log:
            write_archive(log, tmp_path / "run.h5")
        path = tmp_path / "run.h5"
    with tracekit.open(path) as trace:
        sequence = trace[0]
        up = sequence.site("up")
        assert up.values.shape == (PROMPT + STEPS - 1, WIDTH) == (up.positions.size, up.width)
        assert np.array_equal(up.values, sequence.read("up", 0, PROMPT + STEPS - 1)) and up.dtype == "float32"
        assert up.positions.tolist() == list(range(PROMPT + STEPS - 1))
        assert up.tokens.tolist() == [*sequence.prompt_ids.tolist(), *sequence.tokens.tolist()[:-1]]
        assert sequence.site("down:in").stored_as == "up" and sequence.site("down:in").name == "down:in"
        logits = sequence.site("logits")
        assert logits.values.shape == (STEPS, VOCABULARY)
        assert logits.positions.tolist() == [PROMPT - 1 + step for step in range(STEPS)]
        assert np.array_equal(logits.values[2], sequence.step(2).logits)


def test_values_outlive_their_trace() -> None:
    with tracekit.open(PYTHON) as trace:
        norm, logits = trace[0].site("model.norm"), trace[0].site("logits")
    assert norm.values.shape == (21, 64) and logits.values.shape[0] == 12


def test_bfloat16_comes_as_float32_and_gaps_are_left_out(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    bits = round_to(values, "bfloat16")
    log = LogWriter(tmp_path / "run.tklog")
    log.open("native", dtype="bfloat16", sites=[{"name": "up", "class": "Linear", "order": 0}])
    log.sequence(0, {"prompt/token_ids": np.array([4, -1, 6, 7, 8, 9, 10])})
    log.call(0, 0, 2, {"up": Tensor("bfloat16", (2, 4), bits[:2].tobytes())})
    log.call(0, 5, 1, {"up": Tensor("bfloat16", (1, 4), bits[2:].tobytes())})
    log.close()
    with tracekit.open(tmp_path / "run.tklog") as trace:
        up = trace[0].site("up")
    assert up.dtype == "bfloat16" and up.values.dtype == np.float32
    assert np.array_equal(up.values, to_float(bits, "bfloat16"))
    assert up.positions.tolist() == [0, 1, 5] and up.tokens.tolist() == [4, -1, 9]


def test_an_unknown_name_proposes_near_ones() -> None:
    with tracekit.open(PYTHON) as trace:
        with pytest.raises(KeyError) as wrong:
            trace[0].site("model.layer.1.mlp")
        assert isinstance(wrong.value, tracekit.TraceError)
        assert "python.h5: sequence 0 has no values of site 'model.layer.1.mlp'" in str(wrong.value)
        assert "did you mean model.layers.1.mlp" in str(wrong.value)


def test_sites_under_other_names_and_in_another_order() -> None:
    with tracekit.open(PYTHON) as trace:
        site = "model.layers.0.self_attn.q_proj"
        turned = reordered(trace, {site: 4})
        assert len(turned) == 1 and "python.h5" in repr(turned)
        assert np.array_equal(turned[0].site(site).values, halves(trace[0].site(site).values.T, 4).T)
        book = NameMap((Alias("self_attn.q_proj", ("attention.query",)),))
        renamed = named(turned, book, Elsewhere([trace]))
        query = renamed[0].site("model.layers.0.attention.query")
        assert np.array_equal(query.values, turned[0].site(site).values)
        assert query.tokens.tolist() == trace[0].site(site).tokens.tolist()
        with pytest.raises(KeyError, match=r"did you mean model\.layers\.0\.attention\.query"):
            renamed[0].site("model.layers.0.atention.query")
        assert "attention.query" in renamed[0]._repr_html_()


def test_what_a_file_says_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[2J"
    log = LogWriter(tmp_path / "run.tklog")
    log.open(evil, dtype=evil, sites=[{"name": evil, "class": evil, "order": 0}])
    log.sequence(0, {"prompt/token_ids": np.array([4])}, prompt_text=evil)
    log.call(0, 0, 1, {evil: np.zeros((1, 2), np.float32)})
    log.close()
    with tracekit.open(tmp_path / "run.tklog") as trace:
        shown = [trace._repr_html_(), trace[0]._repr_html_(), repr(trace), repr(trace[0]), repr(trace[0].site(evil))]
        shown.append(tracekit.diff(trace, trace)._repr_html_())
    assert not any("\x1b" in text for text in shown)
    assert not any("<script>" in text for text in (shown[0], shown[1], shown[5]))
    assert html.escape("<script>") in shown[0] and html.escape("<script>") in shown[1]


def test_reprs_are_short() -> None:
    with tracekit.open(PYTHON) as trace:
        assert repr(trace).splitlines()[1] == "  [0] 10 prompt tokens, 12 steps, 21 positions, end: length>"
        assert len(repr(trace[0]).splitlines()) <= 4
        assert repr(trace[0].site("model.norm")) == "<SiteValues 'model.norm'  float32 [21, 64]  positions 0 to 20>"


def test_exports() -> None:
    pandas, xarray = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    with tracekit.open(PYTHON) as trace:
        norm = trace[0].site("model.norm")
        frame, array = norm.to_pandas(), norm.to_xarray()
        assert isinstance(frame, pandas.DataFrame) and isinstance(array, xarray.DataArray)
        assert np.array_equal(frame.to_numpy(), norm.values) and np.array_equal(array.values, norm.values)
        assert frame.index.get_level_values("token").tolist() == norm.tokens.tolist() == array.token.values.tolist()
        assert array.sel(position=20).shape == (64,)
        steps = trace[0].to_pandas()
        assert steps.token.tolist() == trace[0].tokens.tolist() and steps.survivors[0] == 19
        assert trace.to_pandas().loc["model.norm", "width"] == 64


@pytest.mark.parametrize("library", ["pandas", "xarray"])
def test_an_export_without_its_library_is_one_line(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with tracekit.open(PYTHON) as trace:
        norm = trace[0].site("model.norm")
        with pytest.raises(tracekit.TraceError, match=rf"needs {library}: pip install 'tracekit\[export\]'"):
            getattr(norm, f"to_{library}")()


def test_positions_that_a_file_only_claims_are_not_made(tmp_path: Path) -> None:
    with tracekit.open(write_run(tmp_path / "run.tklog")) as log:
        write_archive(log, tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        sequence = file["sequences/0"]
        index = json.loads(sequence["site_index"][()])
        index[0][3] = [[0, 1 << 60]]
        del sequence["site_index"]
        sequence["site_index"] = np.bytes_(json.dumps(index))
    done = CliRunner().invoke(group, ["show", str(tmp_path / "run.h5"), "--site", index[0][0]])
    assert isinstance(done.exception, tracekit.TraceError) and "its rows are not those it claims" in str(done.exception)


def test_the_command_starts_without_arrays() -> None:
    words = "import sys, tracekit, tracekit_cli.main; print(sorted({'numpy', 'h5py', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_are_there() -> None:
    assert all(hasattr(tracekit, name) and name in dir(tracekit) for name in tracekit.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'differ'"):
        tracekit.differ  # noqa: B018
