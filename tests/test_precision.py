"""The cause `precision`: candle's own models in 16 bits, and wrong formulas planted beside their arithmetic in turn."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tracekit_torch

import tracekit
from scripts import candle_models
from scripts.candle_models import Case, run_tracekit
from tracekit.auditing import stepwise
from tracekit.auditing.rounding import as_stored
from tracekit.mistakes.culprits import is_precise
from tracekit.mistakes.explain import TWO_MISTAKES
from tracekit.mistakes.sites import residuals, rotary
from tracekit.mistakes.sites.rounded_steps import STEPS_ROUNDED
from tracekit.verdict.cause import Cause

pytestmark = pytest.mark.xdist_group("cargo")  # one worker runs cargo: another would wait for its lock

MODELS = ("llama", "qwen2", "gemma", "mistral", "phi3")
DTYPES = ("bfloat16", "float16")
PLANTED = "PLANTED"
FAULTS = (
    (
        "let x = (self.attn.forward(&x, index_pos, block_idx, cache)? + residual)?;",
        "let branch = self.attn.forward(&x, index_pos, block_idx, cache)?;\n"
        '        let x = if planted("residual") && block_idx == 1 { branch } else { (branch + residual)? };',
    ),
    (
        "let x = (self.mlp.forward(&self.rms_2.forward(&x)?)? + residual)?;",
        "let branch = self.mlp.forward(&self.rms_2.forward(&x)?)?;\n"
        '        let branch = if planted("gain") && block_idx == 1 { (branch * 1.02)? } else { branch };\n'
        "        let x = (branch + residual)?;",
    ),
)
"""Lines of candle's Llama, and what stands in their place."""
ASKED = f'\nfn planted(what: &str) -> bool {{ std::env::var("{PLANTED}").is_ok_and(|said| said == what) }}\n'

Runs = Callable[..., tuple[Path, Path, Path]]


@contextmanager
def plant(fault: str) -> Iterator[None]:
    os.environ[PLANTED] = fault
    try:
        yield
    finally:
        del os.environ[PLANTED]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of candle with faults that the environment switches on, under another name than those without."""
    folder = tmp_path_factory.mktemp("planted")
    candle_models.prepare(folder, list(MODELS))
    manifest = folder / "Cargo.toml"
    manifest.write_text(manifest.read_text().replace('"candle-models"', '"candle-models-planted"'))
    source = folder / "src/models/llama.rs"
    text = source.read_text()
    for line, planted in FAULTS:
        assert line in text
        text = text.replace(line, planted)
    source.write_text(text + ASKED)
    candle_models.build(folder)
    return candle_models.RUST / "target/release/candle-models-planted"


@pytest.fixture(scope="module")
def runs(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """(model, dtype, fault) -> traces of both sides, and the checkpoint."""
    folder = tmp_path_factory.mktemp("runs")

    def both(model: str, dtype: str, fault: str = "") -> tuple[Path, Path, Path]:
        case = Case(23, 24, None, dtype=dtype)
        checkpoint, theirs = folder / model, folder / f"{model}{fault}"
        reference, native = folder / f"{model}-{dtype}.h5", folder / f"{model}-{dtype}-{fault}-native.h5"
        if not checkpoint.exists():
            candle_models.make_checkpoint(model, checkpoint)
        if not reference.exists():
            candle_models.record_reference(checkpoint, reference, case)
        if fault == "theta" and not theirs.exists():
            candle_models.make_checkpoint(model, theirs, rope_theta=1e5)
        if not native.exists():
            with plant(fault):
                candle_models.record_native(program, model, theirs if fault == "theta" else checkpoint, native, case)
        return reference, native, checkpoint

    return both


@pytest.mark.parametrize("dtype", DTYPES)
def test_candle_s_own_rounding_is_no_divergence(runs: Runs, dtype: str) -> None:
    reference, native, checkpoint = runs("llama", dtype)
    verdict = tracekit.diff(reference, native, weights=checkpoint)
    assert (verdict.verdict, verdict.cause, verdict.exit_code) == ("parity", Cause.PRECISION, 0)
    assert verdict.explanation is not None and verdict.explanation.mistake is STEPS_ROUNDED
    assert len(verdict.culprits) == 7 and all(one.culprit and is_precise(one.culprit) for one in verdict.culprits)
    assert all(one.explanation and one.explanation.residual < 1e-3 for one in verdict.culprits)
    assert all(row["explanation"]["precision"] is True for row in verdict.to_json()["culprits"])
    assert (
        "PARITY  precision" in verdict.text
        and "float" not in verdict.text.replace(dtype, "").split("compared")[0][200:]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", ["theta", "gain", "residual"])
def test_a_wrong_formula_beside_it_leads(runs: Runs, fault: str, dtype: str) -> None:
    reference, native, checkpoint = runs("llama", dtype, fault)
    verdict = tracekit.diff(reference, native, weights=checkpoint)
    assert (verdict.verdict, verdict.cause, verdict.exit_code) == ("divergence", Cause.LAYER, 1)
    said = verdict.explanation
    assert said is not None and not said.precision
    if fault == "theta":
        assert (said.mistake, said.value) == (rotary.THETA, 1e5)
    elif fault == "residual":
        assert (said.mistake, verdict.site) == (residuals.DROPPED, "model.layers.1.post_attention_layernorm:in")
    else:
        assert said.mistake is residuals.TIMES and said.value == pytest.approx(1.02, abs=5e-3)
        assert verdict.site == "model.layers.2.input_layernorm:in"
    assert sum(one.culprit is not None and is_precise(one.culprit) for one in verdict.culprits) == 7
    audited = tracekit.audit(native, checkpoint)
    assert audited.exit_code == 1 and not is_precise(audited.culprits[0]) and is_precise(audited.culprits[-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_program_allows_candle_s_own_rounding(runs: Runs, dtype: str) -> None:
    _, native, checkpoint = runs("llama", dtype)
    found = tracekit.audit(native, checkpoint, by=tracekit_torch.by_reference(checkpoint))
    assert found.exit_code == 0 and found.consequences is None, found.text


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", ["theta", "gain", "residual"])
def test_a_wrong_formula_leads_with_its_share_of_the_logits_error(runs: Runs, fault: str, dtype: str) -> None:
    """Its own program mends it: with the right values in its place, the reference's tokens come out, but for ties."""
    _, native, checkpoint = runs("llama", dtype, fault)
    found = tracekit.audit(native, checkpoint, by=tracekit_torch.by_reference(checkpoint))
    first, told = found.culprits[0], found.consequences
    mistakes = {"theta": rotary.THETA, "gain": residuals.TIMES, "residual": residuals.DROPPED}
    assert first.explanation is not None and first.explanation.mistake is mistakes[fault]
    assert told is not None and told.repaired is not None and told.at == "logits"
    # A gain of 1.02 in one layer of three is as much as bfloat16's own rounding.
    least = 0.3 if (fault, dtype) == ("gain", "bfloat16") else 0.95
    assert told.share(first.site) > least and told.others.share < 1.05 - least and abs(told.gap) < 0.05
    assert f"{told.share(first.site) * 100:.0f} % of the logits' error" in found.text
    assert told.repaired.after >= told.repaired.steps - 1
    if fault != "gain":
        assert told.repaired.before < told.repaired.steps - 5
        *_, last = told.repaired.shown
        assert last.mended == last.reference != last.candidate


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["qwen2", "gemma", "phi3"])
def test_every_site_of_other_models_is_explained_to_the_bit(runs: Runs, model: str, dtype: str) -> None:
    """Rotary angles and the softmax in 16 bits, in float16 the sum of one row's values, GELU step by step; no norm by a
    gain within the roundoff, no softmax in a format that the program does not have."""
    _, native, checkpoint = runs(model, dtype)
    found = tracekit.audit(native, checkpoint)
    assert found.culprits and found.precise and found.exit_code == 0, found.text
    assert found.to_json()["verdict"] == "precision"
    formats = {row["explanation"]["values"]["dtype"] for row in found.to_json()["culprits"]}
    assert formats == {dtype}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_s_rounding_is_no_gain_beside_candle_s_own_windows(runs: Runs, dtype: str) -> None:
    """Mistral's window of candle is one too long in the prompt and left out in decoding; its norms are as declared."""
    _, native, checkpoint = runs("mistral", dtype)
    found = tracekit.audit(native, checkpoint)
    kinds = {culprit.site.rpartition(".")[2]: culprit.explanation for culprit in found.culprits}
    assert kinds["o_proj:in"] is not None and kinds["o_proj:in"].mistake is TWO_MISTAKES
    norms = [culprit for culprit in found.culprits if not culprit.site.endswith(":in")]
    assert len(norms) == 7 and all(map(is_precise, norms))
    by = tracekit.audit(native, checkpoint, by=tracekit_torch.by_reference(checkpoint))
    assert {culprit.site.rpartition(".")[2] for culprit in by.culprits} == {"o_proj:in"}
    assert by.consequences is not None and by.consequences.share(by.culprits[0].site) > 0.95


def test_strict_counts_a_choice_of_precision(runs: Runs) -> None:
    reference, native, checkpoint = map(str, runs("llama", "float16"))
    diff = ["diff", reference, native, "--weights", checkpoint]
    audit = ["audit", native, "--weights", checkpoint]
    for words, code in ((diff, 0), (audit, 0), ([*audit, "--strict"], 1)):
        assert run_tracekit(*words).returncode == code
    # `lm_head` is on one side only, which --strict refuses first.
    assert run_tracekit(*diff, "--strict").returncode == 2
    assert json.loads(run_tracekit(*audit, "--json").stdout)["verdict"] == "precision"


def test_a_root_next_to_a_tie_may_be_rounded_either_way() -> None:
    drawn = np.random.default_rng(3)
    x = as_stored(drawn.standard_normal((4, 64)), "bfloat16")
    tie = 1.00390625  # between two numbers of bfloat16
    x[0] *= tie / np.sqrt(np.mean(x[0] ** 2))
    for root in (1.0, 1.0078125):
        recorded = as_stored(x / root, "bfloat16")
        made = stepwise.rms_norm(x[:1], None, 0.0, "bfloat16", stepwise.divided_by_rounded, recorded[:1])
        assert np.array_equal(made, recorded[:1])
