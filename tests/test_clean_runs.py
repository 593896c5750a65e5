"""Runs without a fault stay without an alarm, and what is beyond rounding is not called rounding."""

from __future__ import annotations

import gc
import os
import weakref
from argparse import Namespace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import tracekit_torch
from numpy.typing import NDArray

import tracekit
from benchmarks import clean_runs
from benchmarks.fault_bench import models
from benchmarks.fault_bench.setups import GREEDY
from tracekit.auditing import operations, outliers, sums
from tracekit.auditing.arithmetic import Exact, Rounding
from tracekit.auditing.audit import audit
from tracekit.auditing.estimated import estimated_matrix
from tracekit.auditing.evidence import OutlierBySize, Statistic
from tracekit.auditing.matrix import Matrix, linear
from tracekit.auditing.operations.linear_layer import Linear
from tracekit.auditing.operations.operation import Effort, Given, Weights
from tracekit.auditing.operations.soft_cap import capped
from tracekit.auditing.own_error import Own, Tally, common_width, deviations, root_mean_square, spread_width
from tracekit.auditing.recipe import Recipe
from tracekit.auditing.recompute import Recomputation, Window
from tracekit.auditing.rotary import Rotary
from tracekit.auditing.rounding import LIBRARY, Floats, Result, as_stored, independent_errors, times
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.mistakes.culprits import explained_audit
from tracekit.verdict.cause import Cause
from tracekit.verdict.counterfactual.evidence import CutCrossed
from tracekit.verdict.decision import Decision
from tracekit.verdict.ruling import Margins, Scale, TokenMargin
from tracekit.verdict.verdict import Verdict

ROOT = Path(__file__).parent.parent
ENGINE = Path(os.environ.get("TRACEKIT_NATIVE", ROOT / "hooks/rust/target/release/tracekit-native"))
MODEL = Path(os.environ.get("TRACEKIT_MODEL", ROOT / ".cache/smollm2-135m"))


def test_tiny_runs_raise_no_alarm(tmp_path: Path) -> None:
    """The short form of `make bench-clean`: every family once, with whatever was drawn for it."""
    bench = clean_runs.Bench(tmp_path, MODEL, ENGINE)
    chosen = [index for index in range(24) if clean_runs.kind_of(index)[0] != clean_runs.REAL]
    outcomes = [bench.outcome(clean_runs.drawn(0, index, bench)) for index in chosen]
    assert [outcome.alarms for outcome in outcomes] == [{}] * len(chosen)
    assert {outcome.run.model for outcome in outcomes} == set(clean_runs.TINY)


def test_a_bench_repeats_what_it_drew(tmp_path: Path) -> None:
    bench = clean_runs.Bench(tmp_path, MODEL, ENGINE)
    assert clean_runs.drawn(3, 8, bench) == clean_runs.drawn(3, 8, bench) != clean_runs.drawn(4, 8, bench)
    options = Namespace(only="smollm2 bfloat16")
    assert [index for index in range(12) if clean_runs.wanted(options, index)] == [1, 5]


@pytest.mark.real
def test_a_norm_whose_squares_are_summed_in_turn_is_clean(tmp_path: Path) -> None:
    """Embeddings lie on the grid of bfloat16: their squares, added up in turn, are off to one side in every row."""
    if not (MODEL / "model.safetensors").exists():
        pytest.fail(f"{MODEL} is missing; make it with `make model`")
    from benchmarks.fault_bench.native import record

    log = tmp_path / "ships.tklog"
    words = ["--prompt", "Three ships left the harbour before dawn and", "--max-new-tokens", "12", "--seed", "5"]
    record([str(ENGINE), "--model", str(MODEL), *words, "--temperature", "0.8"], log)
    with tracekit.open(log) as trace:
        found = explained_audit(trace, Checkpoint(MODEL), audit(trace, Checkpoint(MODEL)))
    assert [(culprit.site, culprit.evidence) for culprit in found.culprits] == []
    assert found.tests > 100_000


@pytest.mark.real
def test_a_token_that_repeats_is_clean(tmp_path: Path) -> None:
    """All rows of a core are alike, so that all are rounded alike: a column is off to one side in every row."""
    from benchmarks.fault_bench.native import record

    log, checkpoint = tmp_path / "repeated.tklog", Checkpoint(MODEL)
    record([str(ENGINE), "--model", str(MODEL), "--prompt", "count " * 180, "--max-new-tokens", "1"], log)
    with tracekit.open(log) as trace:
        only = [f"model.layers.{layer}.self_attn.o_proj{end}" for layer in (11, 15, 18) for end in ("", ":in")]
        found = audit(trace, checkpoint, only=only)
    assert [(culprit.site, culprit.evidence) for culprit in found.culprits] == []
    assert found.clean == set(only)


def test_attention_that_amplifies_rounding_is_parity_without_a_checkpoint(tmp_path: Path) -> None:
    """One row of a float16 core is 57 roundoff units off after queries and keys that are 14 off."""
    bench = clean_runs.Bench(tmp_path, MODEL, ENGINE)
    run, paths = clean_runs.drawn(11, 70, bench), [tmp_path / "reference.tklog", tmp_path / "candidate.tklog"]
    bench._torch(run, paths[0], "sdpa")
    bench._torch(run, paths[1], run.how)
    verdict = tracekit.diff(paths[0], paths[1], audited=False)
    assert (verdict.verdict, verdict.culprits) == ("parity", ())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["llama", "gemma"])
def test_an_oracle_is_at_parity_with_its_reference(tmp_path: Path, model: str, dtype: str) -> None:
    """A float64 run has float32's rotary frequencies; a float32 run of a bfloat16 model has bfloat16's weights."""
    bench = clean_runs.Bench(tmp_path, MODEL, ENGINE)
    run = clean_runs.Clean(0, model, dtype, tuple(range(3, 40)), 6, dict(GREEDY), "", seed=1)
    reference, oracle = tmp_path / "reference.tklog", tmp_path / "oracle.tklog"
    bench._torch(run, reference, "sdpa")
    bench._torch(run, oracle, "oracle", reference)
    folder = bench.folder(model)
    for pair in ((reference, oracle), (oracle, reference)):
        verdict = tracekit.diff(*pair, weights=folder)
        assert (verdict.verdict, verdict.culprits) == ("parity", ()), verdict
    found = tracekit.audit(oracle, folder)
    assert (found.exit_code, found.weights) == (0, ())
    assert len(found.clean) > 25


def test_frequencies_that_are_off_show_in_float64(tmp_path: Path) -> None:
    bench = clean_runs.Bench(tmp_path, MODEL, ENGINE)
    model = models.load(bench.folder("llama"), "float32")
    model.model.rotary_emb.inv_freq *= 1.00001
    with tracekit_torch.record(model, tmp_path / "off.tklog", dtype="float64"):
        model.generate(torch.arange(3, 40)[None], max_new_tokens=2, do_sample=False)
    found = tracekit.audit(tmp_path / "off.tklog", bench.folder("llama"))
    assert {culprit.site for culprit in found.culprits} == {
        f"model.layers.{layer}.self_attn.o_proj:in" for layer in range(model.config.num_hidden_layers)
    }


def test_a_float64_run_is_compared_in_the_precision_of_its_reference(tmp_path: Path) -> None:
    """Models take a norm's mean square in float32 whatever their dtype: of a float32 run that is no fault."""
    bench, paths = clean_runs.Bench(tmp_path, MODEL, ENGINE), []
    for dtype in ("float32", "float64"):
        model = models.load(bench.folder("qwen3"), dtype)
        paths.append(tmp_path / f"{dtype}.tklog")
        with tracekit_torch.record(model, paths[-1]):
            model.generate(torch.arange(3, 40)[None], max_new_tokens=2, do_sample=False)
    verdict = tracekit.diff(*paths, weights=bench.folder("qwen3"))
    assert (verdict.verdict, verdict.culprits) == ("parity", ()), verdict
    model.model.layers[1].mlp.down_proj.weight.data *= 1.0001
    with tracekit_torch.record(model, tmp_path / "gained.tklog"):
        model.generate(torch.arange(3, 40)[None], max_new_tokens=2, do_sample=False)
    verdict = tracekit.diff(paths[0], tmp_path / "gained.tklog", weights=bench.folder("qwen3"))
    assert (verdict.verdict, verdict.site) == ("divergence", "model.layers.1.mlp.down_proj")


def test_weights_that_were_rounded_are_no_oracles(tmp_path: Path) -> None:
    """What a recorder was not asked for is a departure: float32 weights that went through bfloat16."""
    bench = clean_runs.Bench(tmp_path, MODEL, ENGINE)
    model = models.load(bench.folder("llama"), "bfloat16").float()
    with tracekit_torch.record(model, tmp_path / "rounded.tklog"):
        model.generate(torch.arange(3, 40)[None], max_new_tokens=2, do_sample=False)
    found = tracekit.audit(tmp_path / "rounded.tklog", bench.folder("llama"))
    assert found.exit_code == 1 and len(found.weights) > 20


def test_a_near_tie_counts_as_one_where_the_margin_proves_it() -> None:
    assert clean_runs.margin_proves(Margins(token=TokenMargin(Scale.LOGITS, 1e-6, 1e-5)))
    assert not clean_runs.margin_proves(Margins(token=TokenMargin(Scale.LOGITS, 0.1, 1e-5)))
    assert clean_runs.margin_proves(Margins(cut_distance=1e-6, logit_error=1e-5))
    assert not clean_runs.margin_proves(Margins())


@pytest.mark.parametrize("follows", [True, False])
def test_a_token_that_crossed_the_cut_counts_as_a_tie_where_both_sides_follow(follows: bool) -> None:
    crossed = CutCrossed(2, follows, 0.04, None)
    verdict = Verdict(Decision.DIVERGENCE, Cause.NEAR_TIE, None, (crossed,), "uncalibrated")
    assert clean_runs.cut_proves(verdict) is follows


# ---------------------------------------------------------------- without a checkpoint


def test_a_weight_is_estimated_where_rows_show_it() -> None:
    random = np.random.default_rng(3)
    weight, bias = random.standard_normal((24, 32)), random.standard_normal(24)
    x = random.standard_normal((12, 32)) * np.geomspace(1.0, 1e3, 12)[:, None]
    seen = estimated_matrix(x, x @ weight.T + bias, 2.0**-24, shifted=True)
    moved = x + (x[::-1] - x.mean(axis=0)) * 1e-3
    assert np.allclose(moved @ seen.matrix.weight.T + seen.matrix.bias, moved @ weight.T + bias, rtol=1e-6, atol=1e-6)
    assert len(seen.directions) == 11
    # Elsewhere the gain is a guess: sqrt(24) on average.
    assert 12.0 < seen.power < 48.0


def test_a_gain_that_drawn_errors_share_widens_its_limit() -> None:
    """Drawn errors have no bias: a common gain below the one that library functions may have is still seen."""
    random = np.random.default_rng(4)
    values = random.standard_normal((32, 64))
    gains = [2.0**-24 * random.standard_normal((32, 1)) for _ in range(3)]
    result = Result(
        values,
        np.square(2.0**-24 * values),
        draws=tuple(values * gain for gain in gains),
        drawn_rows=np.arange(32),
        bias=LIBRARY,
    )
    assert spread_width(result)[Statistic.ROW_GAIN] > 4.0


def attended(seed: int) -> tuple[operations.Attention, list[Floats]]:
    """Attention of 2 heads over 12 positions, with keys of which a few are attended to, and its inputs."""
    random = np.random.default_rng(seed)
    heads, width, positions = 2, 32, 12
    q, k, v = (random.standard_normal((positions, heads * width)) for _ in range(3))
    core = operations.Core(heads, heads, width, Rotary(10000.0, width), width**-0.5)
    return operations.Attention(core), [as_stored(each, "float32") for each in (6.0 * q, k, v)]


def test_one_score_that_is_off_moves_all_of_its_head() -> None:
    """A row's size is of as few errors as its heads have scores that matter: it is beyond its limit no more often than
    is stated, where as many independent errors as it has values would be beyond theirs."""
    level, beyond, as_many, tried = 1e-2, 0, 0, 0
    for seed in range(20):
        attention, inputs = attended(seed)
        rows = np.arange(12)
        result = attention.result(Given(inputs, rows, "float32", cast(Weights, None), rows, Effort.FULL))
        for run in range(100, 140):
            q, k, v = inputs
            engine = operations.attend(attention.core, q, k, v, rows, Rounding("float32", run))
            tally = Tally()
            tally.add(engine, result)
            statistics = tally.statistics()
            limits = [root_mean_square(each, level) for each in statistics.freedoms]
            beyond += int(np.sum(statistics.rows > limits))
            as_many += int(np.sum(statistics.rows > root_mean_square(engine.shape[1], level)))
            tried += len(rows)
    assert beyond <= 2 * level * tried < as_many, (beyond, as_many, tried)


def test_independent_errors_are_counted() -> None:
    """Errors [rows, 48] of three directions of equal size, and of 48."""
    random = np.random.default_rng(5)
    across = np.linalg.qr(random.standard_normal((48, 3)))[0].T
    few = [random.standard_normal((40, 3)) @ across for _ in range(8)]
    many = [random.standard_normal((40, 48)) for _ in range(8)]
    assert abs(float(np.mean(independent_errors(few))) - 3.0) < 0.3
    assert abs(float(np.mean(independent_errors(many))) - 48.0) < 6.0
    # Whatever their size, and beside a row that is not finite.
    few[0][7, 3] = np.inf
    for size in (1e-120, 1e120):
        assert abs(float(np.mean(independent_errors([each * size for each in few]))) - 3.0) < 0.3


# ---------------------------------------------------------------- scalar constants


def deviations_from(engine: NDArray[np.floating], result: Result) -> float:
    """Standard deviations that the gain of an engine's values, [rows, width], is from 1."""
    tally = Tally()
    tally.add(engine.astype(np.float64), result.closest(engine.astype(np.float64)))
    return abs(tally.statistics().gain_deviations)


@pytest.mark.parametrize("cap", [30.0, 50.0, 7.3])
def test_a_rounded_reciprocal_of_a_soft_cap_is_no_gain(cap: float) -> None:
    """candle multiplies by 1 / cap, rounded to float32, where the reference divides."""
    random = np.random.default_rng(5)
    x = random.standard_normal((64, 512)).astype(np.float32)
    engine = np.tanh(x * np.float32(1.0 / cap)) * np.float32(cap)
    assert deviations_from(engine, capped(x.astype(np.float64), 1.0, cap, "float32")) < 6.0
    gained = engine * np.float32(1.0 + 1e-6)
    assert deviations_from(gained, capped(x.astype(np.float64), 1.0, cap, "float32")) > 20.0


@pytest.mark.parametrize("factor", [0.1, 1.0 / 3.0, 12.0**0.5])
def test_a_rounded_factor_is_no_gain(factor: float) -> None:
    random = np.random.default_rng(6)
    x = random.standard_normal((64, 512)).astype(np.float32)
    for engine in (x * np.float32(factor), x / np.float32(1.0 / factor)):
        assert deviations_from(engine, times(x.astype(np.float64), factor, "float32")) < 6.0


def test_a_rounded_scale_of_attention_is_drawn() -> None:
    """One error of 1 / sqrt(80), in all heads and rows alike; powers of two have none."""
    drawn = [Rounding("float32", seed).constant(80**-0.5) for seed in range(8)]
    assert 0.0 < np.abs(np.array(drawn) * 80**0.5 - 1.0).max() <= 2.0**-24
    assert Rounding("float32", 0).constant(0.125) == Exact().constant(0.125) == 0.125


def core_of_one_head(cap: float | None) -> operations.Attention:
    rotary = operations.Rotary(1e4, 0)
    core = operations.Core(1, 1, 16, rotary, 0.25, None, cap, rotate_queries=False, rotate_keys=False)
    return operations.Attention(core)


def test_a_soft_cap_rounds_scores_that_it_does_not_change() -> None:
    """Quotient, tanh and product are rounded, as the scores' product and their scale are."""
    random = np.random.default_rng(8)
    q, k, v = (random.standard_normal((48, 16)).astype(np.float32) for _ in range(3))
    q *= 12.0
    inputs = [each.astype(np.float64) for each in (q, k, v)]
    given = Given(inputs, np.arange(48), "float32", cast(Weights, None), np.arange(0), Effort.MOST_DRAWS)
    plain, wide = (core_of_one_head(cap).result(given) for cap in (None, 1e6))
    np.testing.assert_allclose(wide.values, plain.values, rtol=1e-6, atol=1e-7)
    assert 1.2 < float(np.mean(wide.variance) / np.mean(plain.variance)) < 4.0


@pytest.mark.parametrize(("factor", "alarm"), [(1.0, False), (1.0 + 2e-5, True)])
def test_a_soft_cap_of_scores_in_float32_is_no_alarm(factor: float, alarm: bool) -> None:
    """Keys times 1.00002 are one."""
    random = np.random.default_rng(8)
    q, k, v = (random.standard_normal((48, 16)).astype(np.float32) for _ in range(3))
    q *= 12.0
    inputs = [each.astype(np.float64) for each in (q, k, v)]
    given = Given(inputs, np.arange(48), "float32", cast(Weights, None), np.arange(0), Effort.FULL)
    result, cap = core_of_one_head(50.0).result(given), np.float32(50.0)
    scores = np.tanh(q @ (k * np.float32(factor)).T * np.float32(0.25) / cap) * cap
    scores[np.triu_indices(48, 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    engine = weights / weights.sum(axis=1, keepdims=True) @ v
    tally = Tally()
    tally.add(engine.astype(np.float64), result)
    assert (tally.statistics().size > root_mean_square(engine.size, 1e-6)) is alarm


# ---------------------------------------------------------------- sums


def test_a_sum_of_squares_is_recognised_in_every_order() -> None:
    """A row's scale is compared with the order in which the engine summed: what is left is a fraction of the error."""
    random = np.random.default_rng(0)
    x = random.standard_normal((32, 576)).astype(np.float32).astype(np.float64)
    mean = np.square(x).mean(axis=1, keepdims=True)
    for error in sums.squares(x).errors:
        engine = (x / np.sqrt(mean * (1.0 + error[:, None]))).astype(np.float32).astype(np.float64)
        result = operations.rms_norm(x, None, 0.0, "float32").closest(engine)
        left = ((engine - result.values) * result.values).sum(axis=1) / np.square(result.values).sum(axis=1)
        assert np.abs(left).max() < 0.5 * 2.0**-24


def test_partial_sums_that_grow_without_changing_sign_are_off_by_more() -> None:
    """A column whose products all have one sign: the bound follows, and float32 sums in turn are within it."""
    random = np.random.default_rng(1)
    x = np.abs(random.standard_normal((8, 1024))).astype(np.float32)
    weight = np.abs(random.standard_normal((48, 1024))).astype(np.float32)
    result = operations.linear(
        operations.Matrix(weight.astype(np.float64), None), x.astype(np.float64), "float32", True
    )
    products = x[:, None, :] * weight[None]
    engine = np.add.accumulate(products, axis=2, dtype=np.float32)[..., -1].astype(np.float64)
    size = np.sqrt(np.mean(np.square(engine - result.values) / result.variance))
    assert 0.3 < size < 1.5


def test_a_sum_that_begins_with_its_bias_is_clean() -> None:
    drawn = np.random.default_rng(0)
    rows, weight = (drawn.standard_normal(shape).astype(np.float32) for shape in ((64, 32), (16, 32)))
    total = np.full((64, 16), 40.0, np.float32)
    bias = total[0].astype(np.float64)
    for term in range(32):
        total = total + rows[:, term : term + 1] * weight[None, :, term]
    result = linear(Matrix(weight.astype(np.float64), bias), rows.astype(np.float64), "float32", closely=True)
    tally = Tally()
    tally.add(total.astype(np.float64), result)
    assert tally.statistics().size < 1.0  # 4.1 where the bias is in none of the partial sums


def over_limits(engine: NDArray[np.floating], result: Result, level: float = 1e-10) -> dict[Statistic, float]:
    """Each statistic of an engine's values, [rows, width], over its limit."""
    result, tally = result.closest(engine.astype(np.float64)), Tally()
    tally.add(engine.astype(np.float64), result)
    width = spread_width(result)
    for kind, factor in common_width(result, level).items():
        width[kind] = max(width.get(kind, 1.0), factor)
    statistics = tally.statistics()
    limits = statistics.limits(level, width)
    return {kind: peak / limits[kind] for kind, peak in statistics.peaks().items()}


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_are_alike_are_drawn_alike(seed: int) -> None:
    """A drawn run adds up all rows in one order: what it does to a row, it does to one that is equal."""
    random = np.random.default_rng(7)
    x, y = np.repeat(random.standard_normal((1, 300)), 64, axis=0), random.standard_normal((300, 16))
    drawn = Rounding("float32", seed).product(x, y)
    assert (drawn == drawn[0]).all() and 0.0 < np.abs(drawn - x @ y).max() < 1e-4
    assert (Rounding("float32", seed).total(x) == Rounding("float32", seed).total(x)[0]).all()
    assert np.ptp(Rounding("float64", seed).product(x, y)[:, 0]) < 1e-12


def test_a_column_may_be_off_as_far_as_one_is_in_another_order() -> None:
    """Where rows are alike, a few columns whose sums happen to fall badly are off in all of them, most are not at all:
    the second moment of all columns says nothing of it."""
    random, rows, width = np.random.default_rng(9), 160, 576
    values = random.standard_normal((rows, width))
    sigma = 2.0**-24 * np.abs(values)

    def made(column: int) -> NDArray[np.float64]:
        error = sigma * random.standard_normal((rows, width))
        error[:, column] += 9.0 * rows**-0.5 * sigma[:, column] * np.sign(values[:, column])
        return error

    drawn = tuple(made(random.integers(width)) for _ in range(8))
    result = Result(values, np.square(sigma), reordered=lambda: drawn)
    found = over_limits(values + made(55), result)
    assert max(found.values()) < 1.0, found
    assert over_limits(values + 3.0 * made(55), result)[Statistic.COLUMN_GAIN] > 1.0


def test_a_norm_may_sum_each_row_in_another_order() -> None:
    """One row at a time is summed otherwise than many, and what is left over of a block otherwise than the block."""
    random = np.random.default_rng(8)
    x = as_stored(random.standard_normal((32, 576)), "bfloat16")
    x[:24] = x[0]  # rows that are alike say little of which order it is
    mean = np.square(x).mean(axis=1, keepdims=True)
    orders = sums.squares(x).errors
    for first in orders:
        for second in orders:
            error = np.where(np.arange(32) < 24, first, second)
            engine = (x / np.sqrt(mean * (1.0 + error[:, None]))).astype(np.float32)
            found = over_limits(engine, operations.rms_norm(x, None, 0.0, "float32"))
            assert max(found.values()) < 1.0, found
    gained = engine * np.where(np.arange(32) == 30, np.float32(1.00001), np.float32(1.0))[:, None]
    assert over_limits(gained, operations.rms_norm(x, None, 0.0, "float32"))[Statistic.ROW_GAIN] > 1.0


def test_a_product_is_also_summed_without_fused_multiplications() -> None:
    """An unfused sum rounds each product first, those of the largest input all to one side: a row of a head was off by
    a gain of 7 standard deviations that no order of fused sums shows."""
    random = np.random.default_rng(11)
    x = random.standard_normal((12, 64)).astype(np.float32)
    weight = as_stored(random.standard_normal((200, 64)), "bfloat16")
    result = linear(Matrix(weight, None), x.astype(np.float64), "float32", closely=True)
    total = np.zeros((12, 200), np.float32)
    for term in range(64):
        total = total + x[:, term : term + 1] * weight.T.astype(np.float32)[term]
    made = result.reordered()
    assert any(np.array_equal(error, total - result.values) for error in made)
    assert len({error.tobytes() for error in made}) == len(made) == 9


class Recorded:
    """A run that holds one site and its input: float16 rows of a token that comes again and again."""

    def __init__(self, x: NDArray[np.float64], result: Result, recorded: NDArray[np.float64]) -> None:
        self._x, self._result, self._recorded = x, result, recorded

    def recorded(self, site: str, window: Window) -> NDArray[np.float64]:
        return self._recorded

    def inputs(self, recipe: Recipe, window: Window) -> list[NDArray[np.float64]]:
        return [self._x]

    def result(self, recipe: Recipe, window: Window, inputs: object) -> Result:
        return self._result


@pytest.mark.parametrize("tokens", [6, 60])
def test_a_tie_that_comes_again_with_its_token_is_one(tokens: int) -> None:
    """One distinct row in six is no more odd than chance has it; ten of sixty are."""
    random = np.random.default_rng(10)
    x = as_stored(random.standard_normal((tokens, 64)), "float16")[np.arange(180) % tokens]
    values = x @ random.standard_normal((64, 576))
    stored = as_stored(values, "float16")
    result = Result(values, np.square(2.0**-11 * values) / 3.0, rounded=(stored,))
    recorded = stored.copy()
    recorded[np.arange(180) % 6 == 0, 5] *= 1.0 + 2.0**-10

    def own(values: NDArray[np.float64]) -> Own:
        tally = Tally()
        tally.add(values, result)
        recipe = Recipe("v_proj", "v_proj", Linear(), ("x",))
        return Own(recipe, (Window(0, 180),), tally.statistics(), {}, {}, level=1e-12)

    peer = cast(Recomputation, Recorded(x, result, recorded)), own(recorded)
    found = outliers._outlier(peer, 0.0, [own(stored) for _ in range(5)])
    assert (found is None) is (tokens == 6)


@pytest.mark.parametrize(
    ("rows", "tokens", "off", "stands_out"),
    [(3, 3, 1, False), (60, 60, 60, True), (60, 60, 1, False), (60, 1, 60, False)],
)
def test_a_row_whose_scale_lies_next_to_a_tie_is_one_tie(rows: int, tokens: int, off: int, stands_out: bool) -> None:
    """What a row's values have in common moves all of them: a norm of three rows was off by a fifth of its bound."""
    random = np.random.default_rng(12)
    x = as_stored(random.standard_normal((tokens, 64)), "float16")[np.arange(rows) % tokens]
    values = x @ random.standard_normal((64, 576))
    stored = as_stored(values, "float16")
    result = Result(values, np.square(2.0**-11 * values) / 3.0, rounded=(stored,))
    recorded = stored.copy()
    recorded[:off] *= 1.0 + 2.0**-10

    def own(values: NDArray[np.float64]) -> Own:
        tally = Tally()
        tally.add(values, result)
        recipe = Recipe("norm", "norm", Linear(), ("x",))
        return Own(recipe, (Window(0, rows),), tally.statistics(), {}, {}, level=1e-12)

    peer = cast(Recomputation, Recorded(x, result, recorded)), own(recorded)
    found = outliers._outlier(peer, 0.0, [own(stored) for _ in range(5)])
    assert isinstance(found, OutlierBySize) is stands_out, found


@pytest.mark.parametrize("freedom", [1, 4, 30, 576])
def test_limits_are_those_of_the_distribution(freedom: int) -> None:
    random = np.random.default_rng(freedom)
    sizes = np.sqrt(np.mean(np.square(random.standard_normal((200_000, freedom))), axis=1))
    assert np.mean(sizes > root_mean_square(freedom, 1e-3)) < 2.5e-3
    assert np.mean(sizes > root_mean_square(freedom, 1e-3) * 0.9) > 1e-3
    assert deviations(2.7e-3) == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("bias, beyond", [(0.0, True), (2e-7, False)])
def test_a_bias_of_library_functions_is_no_gain(bias: float, beyond: bool) -> None:
    random = np.random.default_rng(2)
    values = random.standard_normal((64, 256))
    right = operations.Result(values, np.square(2.0**-24 * values) / 3.0, bias=bias)
    tally = Tally()
    tally.add(values * (1.0 + 1.5e-7), right)
    assert (abs(tally.statistics().gain_deviations) > 10.0) is beyond


def normed(x: NDArray[np.float64], eps: float, in_turn: bool) -> NDArray[np.float64]:
    """An RMS norm in float32, whose squares are added up one after the other or in pairs."""
    terms = np.square(x.astype(np.float32))
    total = np.add.accumulate(terms, axis=1, dtype=np.float32)[:, -1] if in_turn else terms.sum(axis=1)
    mean = total[:, None] / np.float32(x.shape[1])
    return (x.astype(np.float32) / np.sqrt(mean + np.float32(eps))).astype(np.float64)


@pytest.mark.parametrize(("eps", "in_turn"), [(1e-5, True), (1e-5, False), (1e-6, True)])
@pytest.mark.parametrize("seed", range(4))
def test_an_eps_moves_all_rows_by_as_much_as_they_are_small(seed: int, eps: float, in_turn: bool) -> None:
    """By six roundoffs the smallest third: one that is too small has the same sign in all of them."""
    random = np.random.default_rng(seed)
    sizes = np.sqrt(np.where(np.arange(36) % 3, 60.0, 12.0))[:, None]
    x = (random.standard_normal((36, 576)) * sizes).astype(np.float32).astype(np.float64)
    recorded = normed(x, eps, in_turn)
    tally = Tally()
    tally.add(recorded, operations.rms_norm(x, None, 1e-5, "float32").closest(recorded))
    statistics = tally.statistics()
    limits = statistics.limits(1e-10, {})
    assert (abs(statistics.gain_deviations) > limits[Statistic.GAIN]) is (eps != 1e-5)
    own = Own(Recipe("norm", "norm", Linear(), ("x",)), (Window(0, 36),), statistics, limits, {}, level=1e-10)
    assert own.wrong is (eps != 1e-5)


def test_rows_before_a_mistake_are_held_to_what_each_of_them_may_be_off() -> None:
    """Of few independent errors each, a healthy row is often beyond what all rows together may be."""
    random, beyond = np.random.default_rng(5), 0
    for _ in range(200):
        errors = np.repeat(random.standard_normal((20, 12)), 8, axis=1)
        errors[10:] *= 1e4
        tally = Tally()
        tally.add(errors, Result(np.zeros((20, 96)), np.ones((20, 96)), independent=np.full(20, 12.0)))
        statistics = tally.statistics()
        limits = statistics.limits(1e-10, {})
        own = Own(Recipe("core", "core", Linear(), ("x",)), (Window(0, 20),), statistics, limits, {}, level=1e-10)
        assert np.flatnonzero(own.wrong_rows()).tolist() == [*range(10, 20)]
        beyond += bool((statistics.rows[:10] > limits[Statistic.SIZE]).any())
    assert beyond > 20


@pytest.mark.parametrize("since", [0, 8])
def test_rows_that_follow_the_gain_of_the_wrong_ones_are_wrong(since: int) -> None:
    """A gain of five roundoffs that a few rows show by themselves."""
    random = np.random.default_rng(since)
    values = random.standard_normal((24, 64))
    gains = 2.0**-24 * random.standard_normal((24, 1)) * 0.5
    gains[since:] += 5.0 * 2.0**-24
    gains[20:] += 2.0 * 2.0**-24
    result = Result(values, np.square(2.0**-24 * values) / 3.0, shared=2.0**-24)
    tally = Tally()
    tally.add(values * (1.0 + gains), result)
    statistics = tally.statistics()
    assert int(statistics.since(np.arange(24) >= 20).argmax()) == since


def test_a_recorder_is_let_go_of(tmp_path: Path) -> None:
    """A program that records often does not keep what each recording held."""
    model = models.load(clean_runs.Bench(tmp_path, MODEL, ENGINE).folder("llama"), "float32")
    with tracekit_torch.record(model, tmp_path / "run.tklog") as recorder:
        model.generate(torch.arange(3, 9)[None], max_new_tokens=2, do_sample=False)
    gone = weakref.ref(recorder)
    del recorder
    gc.collect()
    assert gone() is None
