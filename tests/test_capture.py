"""A trace that went wrong while it was recorded gets no verdict; a model that went wrong does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tracekit_cli.main import group

import tracekit
from tests import small_run
from tests.spoken import evidence
from tracekit.formats.archive import write_archive
from tracekit.formats.log import LogWriter, map_file, read_frames
from tracekit.report.words import sentence
from tracekit.verdict.coverage import Share

SITES = ("embed", "q", "k", "v", "out", "middle", "up", "gate", "act", "down", "norm", "head")
WIDTH, ROWS = 16, 5


def write(path: Path, values: dict[str, np.ndarray], close: bool = True, steps: int = 0) -> Path:
    log = LogWriter(path)
    rows = [{"name": name, "class": "Linear", "order": order} for order, name in enumerate(SITES)]
    log.open("python", dtype="float32", seed=0, model={"hidden_size": WIDTH}, sites=rows)
    log.sequence(0, {})
    log.call(0, 0, ROWS, values)
    for step in range(steps):
        log.step(0, step, ROWS - 1 + step, 7, {})
    if close:
        log.end_sequence(0, steps, "done")
        log.close()
    else:
        log.abandon()
    return path


def sound(noise: float = 0.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    values = {name: random.standard_normal((ROWS, WIDTH)).astype(np.float32) for name in SITES}
    other = np.random.default_rng(1)
    return {name: rows + noise * other.standard_normal(rows.shape).astype(np.float32) for name, rows in values.items()}


def late_views() -> dict[str, np.ndarray]:
    """What hooks give that keep a view of a buffer which every layer writes into."""
    return dict.fromkeys(SITES, sound()["head"])


def half_overwritten() -> dict[str, np.ndarray]:
    values = sound()
    return values | {"up": values["down"], "gate": values["norm"], "q": values["out"]}


def never_computed() -> dict[str, np.ndarray]:
    return sound() | dict.fromkeys(SITES[1:9], np.zeros((ROWS, WIDTH), np.float32))


@pytest.mark.parametrize("inputs", ["one", "several"])
def test_a_module_that_runs_again_on_its_input_is_no_overwritten_buffer(tmp_path, inputs):
    """As a norm that a block calls for queries, for keys and for values; on other inputs it gives other values."""
    random = np.random.default_rng(0)
    names = [f"{layer}.{name}" for layer in range(3) for name in ("in", "mid", "norm", "norm#2", "norm#3", "attn:in")]
    values = {name: random.standard_normal((ROWS, WIDTH)).astype(np.float32) for name in names}
    rows = []
    for order, name in enumerate(names):
        layer, _, part = name.partition(".")
        given = "in" if inputs == "one" or part != "norm#3" else "mid"
        rows.append({"name": name, "class": "Norm", "order": order, "input": f"{layer}.{given}"})
        if part.startswith("norm") or part == "attn:in":
            values[name] = values[f"{layer}.norm"]
    log = LogWriter(tmp_path / "run.tklog")
    log.open("python", dtype="float32", seed=0, sites=rows)
    log.sequence(0, {})
    log.call(0, 0, ROWS, values)
    log.end_sequence(0, 0, "done")
    log.close()
    verdict = tracekit.diff(tmp_path / "run.tklog", tmp_path / "run.tklog")
    assert (verdict.cause == "capture") == (inputs == "several")


@pytest.mark.parametrize("values", [late_views, half_overwritten, never_computed])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_recording_that_went_wrong_gets_no_verdict(tmp_path, values, side):
    good, bad = write(tmp_path / "good.tklog", sound()), write(tmp_path / "bad.tklog", values())
    pair = (bad, good) if side == "reference" else (good, bad)
    verdict = tracekit.diff(*map(tracekit.open, pair))
    assert (verdict.verdict, verdict.cause) == ("withheld", "capture")
    assert str(bad) in evidence(verdict)[0]
    done = CliRunner().invoke(group, ["diff", *map(str, pair)])
    assert done.exit_code == 2 and "WITHHELD  capture" in done.output


def test_a_layer_that_gives_zeros_is_a_layer_at_fault(tmp_path):
    dead = sound() | {"gate": np.zeros((ROWS, WIDTH), np.float32)}
    pair = write(tmp_path / "good.tklog", sound()), write(tmp_path / "dead.tklog", dead)
    verdict = tracekit.diff(*map(tracekit.open, pair))
    assert (verdict.cause, verdict.site) == ("layer", "gate")


def test_a_layer_that_passes_its_input_on_is_a_layer_at_fault(tmp_path):
    values = sound()
    pair = write(tmp_path / "good.tklog", values), write(tmp_path / "same.tklog", values | {"gate": values["up"]})
    verdict = tracekit.diff(*map(tracekit.open, pair))
    assert (verdict.cause, verdict.site) == ("layer", "gate")


def test_sound_recordings_get_one(tmp_path):
    pair = write(tmp_path / "one.tklog", sound()), write(tmp_path / "two.tklog", sound(noise=1e-8))
    assert tracekit.diff(*map(tracekit.open, pair)).verdict == "parity"


def test_a_trace_that_ends_early_is_compared_as_far_as_it_is_whole_and_is_no_parity(tmp_path):
    pair = write(tmp_path / "one.tklog", sound()), write(tmp_path / "cut.tklog", sound(), close=False)
    verdict = tracekit.diff(*map(tracekit.open, pair))
    assert (verdict.verdict, verdict.cause, verdict.exit_code) == ("withheld", "capture", 2)
    assert (
        any("cut.tklog" in sentence(loss) for loss in verdict.coverage.lost)
        and verdict.evidence[:1] == verdict.coverage.lost
    )


@pytest.mark.parametrize("steps, told", [(1, False), (3, True)])
def test_sites_that_end_before_the_last_step_are_said(tmp_path, steps, told):
    """A recorder that does not see the calls behind the prompt: parity of the prompt is no parity of the steps."""
    pair = write(tmp_path / "one.tklog", sound(), steps=steps), write(tmp_path / "two.tklog", sound(), steps=steps)
    verdict = tracekit.diff(*map(tracekit.open, pair))
    assert verdict.verdict == ("withheld" if told else "parity")
    assert any("sites hold 5 of 7 positions" in sentence(loss) for loss in verdict.coverage.lost) == told


@pytest.mark.parametrize("change", ["width", "dtype", "rows"])
def test_a_site_that_changes_its_form_ends_alone(tmp_path, change):
    """In a log of any program: the sequence goes on, its steps and its other sites are whole, PARITY is withheld."""
    one = small_run.write_run(tmp_path / "one.tklog", close=False)
    frames = [frame for frame in read_frames(map_file(one)) if frame.kind != "end"]
    log = LogWriter(tmp_path / "two.tklog")
    data = map_file(one)
    for index, frame in enumerate(frames):
        tensors = {name: frame.array(data, name) for name in frame.tensors}
        if frame.kind == "call" and index > 3:
            up = tensors["up"]
            tensors["up"] = {"width": up[:, :5], "dtype": up.astype(np.float64), "rows": np.repeat(up, 2, 0)}[change]
        log.write_frame(frame.kind, frame.metadata, tensors)
    log.end_sequence(0, small_run.STEPS, "length")
    log.close()
    write_archive(tracekit.open(tmp_path / "two.tklog"), tmp_path / "two.h5")
    whole = tracekit.open(small_run.write_run(tmp_path / "whole.tklog"))
    for path in ("two.tklog", "two.h5"):
        trace = tracekit.open(tmp_path / path)
        (sequence,) = trace.sequences
        assert (trace.status, sequence.step_count, sequence.positions) == ("complete", small_run.STEPS, 9)
        assert sequence.sites["up"].ranges == ((0, 4),) and sequence.sites["down"].ranges == ((0, 9),)
        assert trace.sites["up"].ended.startswith("sequence 0, position 4: ")
        for pair in ((whole, trace), (trace, whole)):
            verdict = tracekit.diff(*pair)
            assert (verdict.verdict, verdict.cause) == ("withheld", "capture")
            assert "up ended before the sequence" in sentence(verdict.coverage.lost[0])
            assert verdict.coverage.steps == Share(small_run.STEPS, small_run.STEPS)


def dumped(folder: Path, values: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, rows in values.items():
        np.save(folder / f"{name}.npy", rows)
    return folder


@pytest.mark.parametrize("overwritten", [False, True])
def test_modules_that_hand_their_input_on_are_no_overwritten_buffers(tmp_path, overwritten):
    """GPT-2's own dropouts in evaluation, whose output is their input, in a dump that knows values alone."""
    values = {}
    for layer in range(3):
        fresh = dict(zip(SITES, sound().values(), strict=True))
        random = np.random.default_rng(layer)
        fresh = {name: random.standard_normal(rows.shape).astype(np.float32) for name, rows in fresh.items()}
        within = {"ln_1": "embed", "attn.c_attn": "q", "attn.c_proj": "out", "attn.resid_dropout": "out", "attn": "out"}
        within |= {"ln_2": "norm", "mlp.c_fc": "up", "mlp.c_proj": "down", "mlp.dropout": "down", "mlp": "down"}
        values |= {f"h.{layer}.{name}": fresh[of] for name, of in within.items()}
    if overwritten:
        values |= {name: values[f"h.2.{name.partition('.')[2].partition('.')[2]}"] for name in values}
    made = tmp_path / "dump.h5"
    assert CliRunner().invoke(group, ["import", str(dumped(tmp_path / "dump", values)), "-o", str(made)]).exit_code == 0
    verdict = tracekit.diff(made, made)
    assert (verdict.verdict, verdict.cause) == (("withheld", "capture") if overwritten else ("parity", None))
