"""Every cause: the planted fault is named at its step and site, and its harmless twin is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit
from tests.forked import Forks
from tests.small_run import PROMPT, write_run
from tests.spoken import evidence, notes
from tracekit.align.sites import SequencePair, SitePair
from tracekit.compare.yardstick import _Coarsest
from tracekit.dtypes import UNIT_ROUNDOFF, round_to, to_float
from tracekit.formats.archive import write_archive
from tracekit.formats.log import LogWriter, Tensor
from tracekit.inspection.losses import NothingCompared, SequencesAlone, StepsNotRecorded
from tracekit.inspection.sanity import EndedInError
from tracekit.report.text import verdict_text
from tracekit.verdict.decide import Verdict
from tracekit.verdict.evidence import InputAgrees, WhatIsThereAgrees
from tracekit.verdict.ruling import Scale
from tracekit.verdict.verdict import Unmatched

TRACEKIT = str(Path(sys.executable).parent / "tracekit")


@pytest.fixture
def runs(tmp_path: Path):
    """Write a run under a name and open it."""

    def make(name: str, **changes: Any) -> tracekit.Trace:
        return tracekit.open(write_run(tmp_path / f"{name}.tklog", **changes))

    return make


def gain(site: str, factor: float, first: int = 0):
    def change(name: str, position: int, row: np.ndarray) -> np.ndarray:
        return (row * factor).astype(row.dtype) if name == site and position >= first else row

    return change


def found(verdict: Verdict) -> tuple[str | None, int | None, str | None]:
    return verdict.cause, verdict.step, verdict.site


@pytest.mark.parametrize("with_oracle", [False, True])
def test_rounding_is_parity(runs, with_oracle: bool) -> None:
    oracle = runs("oracle", dtype="float64") if with_oracle else None
    reference = runs("reference", noise=0)
    for noise in range(1, 20):
        verdict = tracekit.diff(reference, runs("candidate", noise=noise), oracle)
        assert (verdict.verdict, verdict.exit_code) == ("parity", 0), verdict


@pytest.mark.parametrize("with_oracle", [False, True])
@pytest.mark.parametrize("site", ["up", "down"])
def test_a_gain_is_named_at_its_site(runs, site: str, with_oracle: bool) -> None:
    oracle = runs("oracle", dtype="float64") if with_oracle else None
    verdict = tracekit.diff(runs("reference"), runs("candidate", noise=1, change=gain(site, 1.01)), oracle)
    assert found(verdict) == ("layer", 0, site)
    assert (verdict.position, verdict.exit_code) == (0, 1)


def test_a_small_gain_needs_the_oracle(runs) -> None:
    reference, candidate = runs("reference"), runs("candidate", noise=1, change=gain("down", 1.00001))
    verdict = tracekit.diff(reference, candidate, runs("oracle", dtype="float64"))
    assert found(verdict) == ("layer", 0, "down")
    assert verdict.calibration == "oracle"
    assert tracekit.diff(reference, candidate).calibration == "uncalibrated"


@pytest.mark.parametrize("with_oracle", [False, True])
def test_a_fault_that_starts_late_is_named_at_its_step(runs, with_oracle: bool) -> None:
    oracle = runs("oracle", dtype="float64") if with_oracle else None
    late = gain("up", 1.3, first=PROMPT - 1 + 3)
    verdict = tracekit.diff(runs("reference"), runs("candidate", noise=1, change=late), oracle)
    assert found(verdict) == ("layer", 3, "up")
    assert verdict.position == PROMPT - 1 + 3


def test_a_fault_in_the_head_is_named_at_the_logits(runs) -> None:
    verdict = tracekit.diff(runs("reference"), runs("candidate", change=gain("logits", 1.01)))
    assert found(verdict) == ("layer", 0, "logits")


def test_a_value_that_is_not_finite_is_a_divergence(runs) -> None:
    def poison(name: str, position: int, row: np.ndarray) -> np.ndarray:
        return (
            np.where(np.arange(row.size) == 3, np.nan, row).astype(row.dtype) if (name, position) == ("up", 2) else row
        )

    verdict = tracekit.diff(runs("reference"), runs("candidate", change=poison))
    assert (*found(verdict), verdict.position) == ("layer", 0, "up", 2)


def test_a_stated_hyper_parameter_is_the_cause_only_where_it_is_felt(runs) -> None:
    reference = runs("reference")
    other = {"rope_theta": 500000.0}
    felt = tracekit.diff(reference, runs("felt", model=other, change=gain("down", 1.01)))
    assert found(felt) == ("config", 0, "down")
    assert "model.rope_theta: 10000.0 in the reference, 500000.0" in evidence(felt)[0]
    assert tracekit.diff(reference, runs("unfelt", noise=1, model=other)).verdict == "parity"


def test_other_weights_are_named(runs) -> None:
    verdict = tracekit.diff(runs("reference"), runs("candidate", digest=2, change=gain("up", 1.01)))
    assert found(verdict) == ("weights", 0, "up")
    assert "up.weight" in evidence(verdict)[0]


def test_another_prompt_is_named(runs) -> None:
    verdict = tracekit.diff(runs("reference"), runs("candidate", prompt=(5, 6, 9, 8)))
    assert found(verdict) == ("input", 0, "prompt/token_ids")
    assert verdict.position == 2
    shorter = tracekit.diff(runs("reference"), runs("shorter", prompt=(5, 6, 7)))
    assert (shorter.cause, shorter.position) == ("input", 3)


def test_another_cut_is_a_filter_and_says_so_if_it_is_stated(runs) -> None:
    reference = runs("reference")
    silent = tracekit.diff(reference, runs("silent", noise=1, used={"top_p": 0.6}))
    assert found(silent) == ("filter", 0, "survivors")
    stated = tracekit.diff(reference, runs("stated", noise=1, stated={"top_p": 0.6}))
    assert found(stated) == ("config", 0, "survivors")
    # A neutral setting, spelled out or left out, is the same setting.
    assert tracekit.diff(reference, runs("spelled", noise=1, stated={"min_p": None})).verdict == "parity"


def test_another_draw_is_rng_and_says_so_if_the_seed_is_stated(runs) -> None:
    reference = runs("reference")
    silent = tracekit.diff(reference, runs("silent", generator_seed=4))
    assert found(silent) == ("rng", 0, "draws")
    stated = tracekit.diff(reference, runs("stated", seed=4))
    assert found(stated) == ("config", 0, "draws")
    extra = tracekit.diff(reference, runs("extra", words_between_draws=2))
    assert found(extra) == ("rng", 1, "draws")
    assert "offset 100 in the reference, 102 in the candidate" in evidence(extra)[0]


def test_another_way_to_draw_is_the_sampler(runs) -> None:
    reference = runs("reference")
    verdict = tracekit.diff(reference, runs("candidate", op="uniform"))
    assert found(verdict) == ("sampler", 0, "draws")
    # Same survivors, same draw, but the last survivor is taken at step 2.
    wrong = runs("wrong", noise=1, pick=lambda step, token, ids: int(ids[-1]) if step == 2 else token)
    verdict = tracekit.diff(reference, wrong)
    assert found(verdict) == ("sampler", 2, "token")
    assert verdict.token is not None
    assert verdict.token.step == 2
    margin = verdict.margins.token
    assert margin is not None and margin.margin > 2 * margin.error
    assert verdict.compared is not None and verdict.compared.steps_after_divergence == 3


def test_a_near_tie_is_proved_from_the_race(tmp_path: Path) -> None:
    from tracekit.torch_rng.generator import TorchGenerator

    draws = TorchGenerator(3).exponential(3)
    probs = np.array([0.5, 0.5, 0.0])
    probs[1] = probs[0] * draws[1] / draws[0] * (1 - 5e-6)  # token 0 wins by 5e-6 nats
    traces = []
    for name, token, error in (("reference", 0, 0.0), ("candidate", 1, 1e-5)):
        log = LogWriter(tmp_path / f"{name}.tklog")
        log.open("python", dtype="float32", seed=3)
        log.sequence(0, {"prompt/token_ids": np.array([1])})
        drawn = {"op": "multinomial", "generator": "mt19937", "seed": 3, "offset": 0, "words": 6}
        tensors = {
            "logits": np.array([0.0, 1.0 + error, -50.0], dtype=np.float32),
            "survivors/id": np.array([0, 1]),
            "survivors/prob": (probs[:2] * np.array([1.0, 1 + error])).astype(np.float32),
        }
        log.step(0, 0, 0, token, tensors, draws=[drawn])
        log.end_sequence(0, 1, "length")
        log.close()
        traces.append(tracekit.open(log.path))
    verdict = tracekit.diff(traces[0], traces[1])
    assert found(verdict) == ("near-tie", 0, "token")
    assert verdict.margins.token is not None and verdict.margins.token.kind is Scale.RACE
    assert verdict.margins.token.margin == pytest.approx(5e-6, abs=2e-7)  # probabilities are float32


@pytest.mark.parametrize("offset, expected", [(6, ("near-tie", 0, "token")), (7, ("rng", 0, "draws"))])
def test_what_rounding_decided_hides_no_later_sequence(
    tmp_path: Path, offset: int, expected: tuple[str, int, str]
) -> None:
    from tracekit.torch_rng.generator import TorchGenerator

    draws = TorchGenerator(3).exponential(3)
    even = 0.5 * draws[1] / draws[0] * (1 - 5e-6)  # token 0 wins by 5e-6 nats
    traces = []
    for name, token, error, later in (("reference", 0, 0.0, 6), ("candidate", 1, 1e-5, offset)):
        log = LogWriter(tmp_path / f"{name}.tklog")
        log.open("python", dtype="float32", seed=3)
        for sequence, (sampled, begins) in enumerate(((token, 0), (0, later))):
            log.sequence(sequence, {"prompt/token_ids": np.array([1 + sequence])})
            drawn = {"op": "multinomial", "generator": "mt19937", "seed": 3, "offset": begins, "words": 6}
            tensors = {
                "logits": np.array([0.0, 1.0 + error, -50.0], dtype=np.float32),
                "survivors/id": np.array([0, 1]),
                "survivors/prob": np.array([0.5, even * (1 + error)], dtype=np.float32),
            }
            log.step(sequence, 0, 0, sampled, tensors, draws=[drawn])
            log.end_sequence(sequence, 1, "length")
        log.close()
        traces.append(tracekit.open(log.path))
    verdict = tracekit.diff(*traces)
    assert found(verdict) == expected
    assert verdict.compared is not None and verdict.compared.steps == 2
    assert (verdict.token is not None) is (offset == 6)


@pytest.mark.parametrize("theirs, verdict", [((1, 2), "parity"), ((2,), "withheld"), ((1, 2, 3), "parity")])
def test_a_sequence_that_only_the_reference_has_withholds_parity(
    tmp_path: Path, theirs: tuple[int, ...], verdict: str
) -> None:
    traces = []
    for name, prompts in (("reference", (1, 2)), ("candidate", theirs)):
        log = LogWriter(tmp_path / f"{name}.tklog")
        log.open("python", dtype="float32")
        for sequence, prompt in enumerate(prompts):
            log.sequence(sequence, {"prompt/token_ids": np.array([prompt])})
            log.step(sequence, 0, 0, 1, {"logits": np.array([0.0, 1.0, -5.0], dtype=np.float32)})
            log.end_sequence(sequence, 1, "length")
        log.close()
        traces.append(tracekit.open(log.path))
    found = tracekit.diff(*traces)
    assert found.verdict == verdict
    alone = [each for each in found.evidence if isinstance(each, SequencesAlone)]
    assert [each.sequences for each in alone] == ([(0,)] if verdict == "withheld" else [])
    assert found.unmatched.candidate_sequences == ((2,) if len(theirs) == 3 else ())


@pytest.mark.parametrize("end", ["length", "done"])
@pytest.mark.parametrize("steps_of", ["reference", "candidate", "neither"])
def test_a_generation_without_recorded_steps_has_not_stopped(tmp_path: Path, steps_of: str, end: str) -> None:
    """A port whose sampler is not recorded: what its modules gave is compared, and its tokens are not known."""
    traces = []
    for name in ("reference", "candidate"):
        log = LogWriter(tmp_path / f"{name}.tklog")
        log.open("native", dtype="float32")
        log.sites([{"name": "up", "class": "Linear", "order": 0}])
        log.sequence(0, {"prompt/token_ids": np.array([1])})
        for position in range(3):
            log.call(0, position, 1, {"up": np.full((1, 4), position, np.float32)})
            if name == steps_of:
                log.step(0, position, position, 1, {"logits": np.array([0.0, 1.0, -5.0], dtype=np.float32)})
        log.end_sequence(0, 3 if name == steps_of else 0, end)
        log.close()
        traces.append(tracekit.open(log.path))
    found = tracekit.diff(*traces)
    other = traces[0 if steps_of == "candidate" else 1].path
    told = [each for each in found.evidence if isinstance(each, StepsNotRecorded)]
    assert (found.verdict, told) == (
        ("parity", []) if steps_of == "neither" else ("withheld", [StepsNotRecorded(other, 0, 2, 3)])
    )
    assert found.compared is not None and found.compared.sites == 1


def test_runs_that_share_nothing_are_no_parity(tmp_path: Path) -> None:
    """Both programs raise before the first call of the model returns."""
    traces = []
    for name in ("reference", "candidate"):
        log = LogWriter(tmp_path / f"{name}.tklog")
        log.open("native", dtype="float32")
        log.sites([{"name": "up", "class": "Linear", "order": 0}])
        log.sequence(0, {"prompt/token_ids": np.array([1, 2])})
        log.end_sequence(0, 0, "error", "RuntimeError: no memory")
        log.close()
        traces.append(tracekit.open(log.path))
    found = tracekit.diff(*traces)
    assert found.verdict == "withheld"
    assert NothingCompared(traces[0].path) in found.evidence
    assert [each for each in found.notes if isinstance(each, EndedInError)] == [
        EndedInError(trace.path, 0, "RuntimeError: no memory") for trace in traces
    ]


def test_an_early_stop_is_named_and_a_cut_file_is_not(runs) -> None:
    reference = runs("reference")
    verdict = tracekit.diff(reference, runs("stopped", noise=1, steps=4, reason="stop"))
    assert found(verdict) == ("stop", 4, "stop")
    stated = tracekit.diff(reference, runs("stated", steps=4, stated={"max_new_tokens": 4}))
    assert found(stated) == ("config", 4, "stop")
    cut = tracekit.diff(reference, runs("cut", noise=1, steps=4, close=False))
    assert (cut.verdict, cut.cause) == ("withheld", "capture") and cut.compared is not None and cut.compared.steps == 4
    assert any("recovered 4 complete steps of sequence 0" in line for line in evidence(cut))
    assert isinstance(cut.evidence[-1], WhatIsThereAgrees) and cut.exit_code == 2


def test_noise_traces_are_a_yardstick(runs) -> None:
    noise = [runs(f"noise{index}", noise=index) for index in (2, 3, 4)]
    reference = runs("reference")
    verdict = tracekit.diff(reference, runs("candidate", noise=1), noise=noise)
    assert (verdict.verdict, verdict.calibration) == ("parity", "noise")
    verdict = tracekit.diff(reference, runs("faulty", noise=1, change=gain("down", 1.0001)), noise=noise)
    assert found(verdict) == ("layer", 0, "down")


def test_another_model_is_trouble(runs) -> None:
    with pytest.raises(tracekit.TraceError, match=r"is of another model than .*: hidden_size 31, not 32"):
        tracekit.diff(runs("reference"), runs("candidate", model={"hidden_size": 31}))


@pytest.mark.parametrize("yardstick", ["oracle", "noise"])
@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model": {"hidden_size": 31}}, "is of another model"),
        ({"prompt": (5, 6, 7, 9)}, "holds no sequence with a prompt of"),
        (
            {"pick": lambda step, token, ids: token if step < 2 else int(ids[-1])},
            r"other tokens .* \(sequence 0, step 2 first\)",
        ),
    ],
)
def test_a_yardstick_of_another_run_is_trouble(runs, yardstick: str, changes: dict[str, Any], said: str) -> None:
    reference, candidate, other = runs("reference"), runs("candidate", noise=1), runs("other", **changes)
    with pytest.raises(tracekit.TraceError, match=said):
        tracekit.diff(reference, candidate, **{yardstick: other if yardstick == "oracle" else [other]})


def test_names_are_aligned_by_prefix_and_wiring(tmp_path: Path) -> None:
    """The reference calls a block's output by the block's name, the candidate by the next norm's input."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    tables = {
        "reference": [
            {"name": "model.block", "class": "Block", "order": 0},
            {"name": "model.norm", "class": "RMSNorm", "order": 1, "input": "model.block"},
        ],
        "candidate": [
            {"name": "norm:in", "class": "input", "order": 0},
            {"name": "norm", "class": "RMSNorm", "order": 1, "input": "norm:in"},
        ],
    }
    traces = []
    for name, sites in tables.items():
        log = LogWriter(tmp_path / f"{name}.tklog")
        log.open("python", sites=sites)
        log.sequence(0)
        log.call(0, 0, 3, {row["name"]: values * (1 + (row["order"] == 1 and name == "candidate")) for row in sites})
        log.end_sequence(0, 0, "done")
        log.close()
        traces.append(tracekit.open(log.path))
    verdict = tracekit.diff(traces[0], traces[1])
    assert verdict.site == "model.norm"
    assert verdict.unmatched == Unmatched()
    assert any(isinstance(each, InputAgrees) and each.site == "model.block" for each in verdict.evidence)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(reading: Forks, tmp_path: Path) -> Run:
    def tracekit(*words: object) -> subprocess.CompletedProcess[str]:
        done = reading.tracekit(*map(str, words), cwd=tmp_path)
        return subprocess.CompletedProcess(words, done.code, done.out, done.err)

    return tracekit


def _residual_run(path: Path, noise: int, mixed: str, factor: float = 1.0) -> tracekit.Trace:
    """A sum in float32 of an input and of what was computed in the format `mixed`."""
    truth, rounding = np.random.default_rng(1).normal(size=(2, 9, 32)), np.random.default_rng(noise)
    off = 1.0 + UNIT_ROUNDOFF[mixed] * rounding.uniform(-1, 1, size=truth[1].shape)
    bits = round_to(truth[1] * off, mixed)
    layer = ((truth[0] + to_float(bits, mixed)) * factor).astype(np.float32)
    log = LogWriter(path)
    sites = [{"name": name, "class": "Module", "order": order} for order, name in enumerate(("mixer", "layer"))]
    log.open("python", dtype=mixed, seed=0, model={"hidden_size": 32}, weights=[], sites=sites)
    log.sequence(0, {"prompt/token_ids": np.arange(9)})
    log.call(0, 0, 9, {"mixer": Tensor(mixed, bits.shape, bits.tobytes()), "layer": layer})
    log.end_sequence(0, 0, "done")
    log.close()
    return tracekit.open(path)


@pytest.mark.parametrize("yardstick", ["none", "oracle", "noise"])
@pytest.mark.parametrize(
    ("mixed", "factor", "verdict"),
    [
        ("bfloat16", 1.0, "parity"),
        ("bfloat16", 1.5, "divergence"),
        ("float32", 1.0, "parity"),
        ("float32", 1.01, "divergence"),
    ],
)
def test_a_sum_in_float32_of_what_was_rounded_to_16_bits(
    tmp_path: Path, yardstick: str, mixed: str, factor: float, verdict: str
) -> None:
    """Mamba keeps its residual stream in float32."""
    finer = "float32" if yardstick == "oracle" else mixed
    reference = _residual_run(tmp_path / "reference.tklog", 1, finer)
    candidate = _residual_run(tmp_path / "candidate.tklog", 2, mixed, factor)
    more = [_residual_run(tmp_path / "more.tklog", 3, finer)] if yardstick != "none" else []
    options: dict[str, Any] = {"noise": more} if yardstick == "noise" else {"oracle": more[0] if more else None}
    found = tracekit.diff(reference, candidate, **options)
    assert (found.verdict, found.site) == (verdict, None if verdict == "parity" else "layer"), found.text


def test_the_coarsest_format_on_the_way_is_the_same_in_whichever_order_sites_are_judged(tmp_path: Path) -> None:
    run = _residual_run(tmp_path / "run.tklog", 1, "bfloat16").sequences[0]
    pair = SequencePair(0, run, run)
    for names in (("mixer", "layer"), ("layer", "mixer")):
        coarsest = _Coarsest()
        found = {name: coarsest.up_to(pair, SitePair(name, name, run.site_table[name].order)) for name in names}
        assert found == dict.fromkeys(names, (UNIT_ROUNDOFF["bfloat16"],) * 2)
    assert run.sites["layer"].dtype == "float32"


def test_command_line(run: Run, tmp_path: Path) -> None:
    reference = write_run(tmp_path / "reference.tklog")
    same, faulty = write_run(tmp_path / "same.tklog", noise=1), tmp_path / "faulty.h5"
    log = write_run(tmp_path / "faulty.tklog", change=gain("down", 1.01))
    write_archive(tracekit.open(log), faulty)
    words = [TRACEKIT, "diff", str(reference), str(same)]
    parity = subprocess.run(words, check=False, capture_output=True, text=True)
    assert (parity.returncode, parity.stderr) == (0, "")
    assert "PARITY" in parity.stdout
    assert "not exercised:" in parity.stdout
    divergence = run("diff", reference, faulty)
    assert divergence.returncode == 1
    assert "DIVERGENCE  layer  at step 0, position 0, down" in divergence.stdout
    told = json.loads(run("diff", "--json", reference, faulty).stdout)
    stable = (
        "verdict cause sequence step position site explanation culprits token margins compared unexercised unmatched"
    )
    assert {*stable.split(), "calibration", "format"} <= set(told)
    assert (told["verdict"], told["site"], told["culprits"][0]["site"]) == ("divergence", "down", "down")


@pytest.mark.parametrize("second", ["missing.tklog", "empty.h5", "text.h5", "folder"])
def test_trouble_is_one_line_and_exit_2(run: Run, tmp_path: Path, second: str) -> None:
    reference = write_run(tmp_path / "reference.tklog")
    (tmp_path / "empty.h5").touch()
    (tmp_path / "text.h5").write_text("not a trace")
    (tmp_path / "folder").mkdir()
    done = run("diff", reference, tmp_path / second)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert second in done.stderr


def test_import_recovers_and_show_reads(run: Run, tmp_path: Path) -> None:
    log = write_run(tmp_path / "run.tklog", steps=3, close=False)
    kept = shutil.copy(log, tmp_path / "copy.tklog")
    done = run("import", log)
    assert done.returncode == 0
    assert "recovered 3 complete steps of sequence 0" in done.stdout
    assert not log.exists()
    told = json.loads(run("show", tmp_path / "run.h5", "--json").stdout)
    assert (told["status"], len(told["steps"]), told["sites"]) == ("recovered", 3, 2)
    assert json.loads(run("show", kept, "--json").stdout)["steps"] == told["steps"]
    assert "<" in run("show", tmp_path / "run.h5").stdout
    for words, said in (
        (("show", tmp_path / "run.h5", "--step", 3), "run.h5: sequence 0 has no step 3"),
        (("show", tmp_path / "run.h5", "--site", "dwon"), "did you mean down"),
        (("import", tmp_path / "run.h5"), "run.h5: is an archive already"),
        (("import", tmp_path / "none.h5"), "none.h5: cannot be read"),
    ):
        done = run(*words)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and said in done.stderr
    step = json.loads(run("show", tmp_path / "run.h5", "--step", 1, "--site", "down:in", "--json").stdout)
    assert step["step"]["draws"][0]["generator"] == "mt19937"
    assert step["site"]["stored_as"] == "up"
    unknown = run("show", tmp_path / "run.h5", "--site", "dwn")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "did you mean down" in unknown.stderr
    assert run("show", tmp_path / "run.h5", "--step", 9).returncode == 2


def test_noise_traces_judge_the_logits(runs) -> None:
    """Logits that are off by less than any floor without calibration allows, and by more than the noise."""
    noise = [runs(f"noise{index}", noise=index) for index in (2, 3, 4)]
    faulty = runs("faulty", noise=1, change=gain("logits", 1.0001))
    verdict = tracekit.diff(runs("reference"), faulty, noise=noise)
    assert (found(verdict), verdict.calibration) == (("layer", 0, "logits"), "noise")
    assert tracekit.diff(runs("reference"), faulty).verdict == "parity"


def test_what_the_oracle_does_not_hold_is_said_to_be_uncalibrated(runs, tmp_path: Path) -> None:
    from tracekit.compare.yardstick import Oracle, used_calibration

    reference, candidate = runs("reference"), runs("candidate", noise=1)
    oracle = runs("oracle", dtype="float64")
    whole = tracekit.diff(reference, candidate, oracle)
    assert (whole.calibration, whole.uncalibrated) == ("oracle", ())
    for sequence in oracle.sequences:
        sequence.sites.pop("down")
    partly = tracekit.diff(reference, candidate, oracle)
    assert (partly.calibration, partly.uncalibrated) == ("oracle", ("down",))
    assert any("down: not in the oracle trace, judged without calibration" in note for note in notes(partly))
    assert partly.to_json()["uncalibrated"] == ["down"]
    assert used_calibration(Oracle(oracle)) == ("oracle", ())


def test_weights_that_are_held_quantised_are_in_the_coverage(tmp_path: Path) -> None:
    held = {"up.weight.qdata": "int8", "up.weight.scale": "float32", "norm.weight": "bfloat16", "mask": "uint8"}
    for quantised in (True, False):
        log = LogWriter(tmp_path / f"{quantised}.tklog")
        names = held if quantised else {"norm.weight": "bfloat16", "mask": "uint8"}
        log.open(
            "python", dtype="float32", weights=[{"name": name, "dtype": held[name], "shape": [2]} for name in names]
        )
        log.sequence(0, {"prompt/token_ids": np.array([1])})
        log.step(0, 0, 0, 1, {"logits": np.array([0.0, 1.0], dtype=np.float32)})
        log.end_sequence(0, 1, "length")
        log.close()
        trace = tracekit.open(log.path)
        verdict = tracekit.diff(trace, trace)
        assert verdict.verdict == "parity" and verdict.coverage is not None
        assert verdict.coverage.quantised == (("up.weight.qdata",) if quantised else ())
        assert ("quantised: up.weight.qdata: " in verdict_text(verdict, trace, trace)) is quantised
