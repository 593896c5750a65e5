"""The cause `vocabulary`: a padded output layer, told from other ways to draw another number of words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tracekit
from tests.small_run import VOCABULARY, write_run
from tests.spoken import evidence
from tracekit.torch_rng.generator import TorchGenerator
from tracekit.verdict.causes.vocabulary import VOCABULARY as CAUSE
from tracekit.verdict.causes.vocabulary import VocabularySizes

PADDED = 64


def over_padding(generator: TorchGenerator, probs: np.ndarray, step: int) -> int:
    """torch's race over an output layer whose last rows are padding that no token has."""
    return int(generator.multinomial(np.pad(probs, (0, PADDED - VOCABULARY)))[0])


def test_a_padded_vocabulary_is_named(tmp_path: Path) -> None:
    reference = write_run(tmp_path / "reference.tklog")
    padded = write_run(tmp_path / "padded.tklog", draw=over_padding, words=2 * PADDED)
    verdict = tracekit.diff(reference, padded)
    assert (verdict.cause, verdict.step, verdict.site) == (CAUSE, 0, "draws")
    assert verdict.evidence[-1] == VocabularySizes(VOCABULARY, PADDED)
    assert f"the candidate over {PADDED}" in evidence(verdict)[-1]
    assert verdict.to_json()["findings"][-1]["type"] == "vocabulary_sizes" and verdict.exit_code == 1


def padded_logits(site: str, position: int, row: np.ndarray) -> np.ndarray:
    """Logits of an output layer with rows of padding."""
    return np.pad(row, (0, PADDED - VOCABULARY), constant_values=-50.0) if site == "logits" else row


@pytest.mark.parametrize("calibration", ["uncalibrated", "oracle", "noise"])
@pytest.mark.parametrize("swap", [False, True])
def test_logits_of_different_widths_are_named(tmp_path: Path, calibration: str, swap: bool) -> None:
    """Both sides recorded logits: the common tokens are compared, and the number of tokens is the divergence."""
    padded = {"change": padded_logits, "draw": over_padding, "words": 2 * PADDED}
    ours, theirs = (padded, {}) if swap else ({}, padded)
    traces = write_run(tmp_path / "reference.tklog", **ours), write_run(tmp_path / "other.tklog", noise=1, **theirs)
    others = {
        "uncalibrated": {},
        "oracle": {"oracle": write_run(tmp_path / "oracle.tklog", dtype="float64", **ours)},
        "noise": {"noise": write_run(tmp_path / "noise.tklog", noise=2, **ours)},
    }
    verdict = tracekit.diff(*traces, **others[calibration])
    sizes = (PADDED, VOCABULARY) if swap else (VOCABULARY, PADDED)
    assert (verdict.cause, verdict.step, verdict.site, verdict.exit_code) == (CAUSE, 0, "logits", 1)
    assert verdict.evidence == (VocabularySizes(*sizes),) and verdict.finding.tokens == sizes
    assert verdict.to_json()["finding"]["type"] == "vocabularies_differ"


def test_a_wrong_layer_goes_before_another_width(tmp_path: Path) -> None:
    def wrong(site: str, position: int, row: np.ndarray) -> np.ndarray:
        return row * 1.5 if site == "down" else padded_logits(site, position, row)

    reference = write_run(tmp_path / "reference.tklog")
    candidate = write_run(tmp_path / "candidate.tklog", change=wrong)
    assert tracekit.diff(reference, candidate).site == "down"

    def wrong_logits(site: str, position: int, row: np.ndarray) -> np.ndarray:
        return padded_logits(site, position, row * 1.5 if site == "logits" else row)

    verdict = tracekit.diff(reference, write_run(tmp_path / "logits.tklog", change=wrong_logits))
    assert (verdict.cause, verdict.site) == ("layer", "logits")


@pytest.mark.parametrize("words", [2 * 7, 2 * VOCABULARY + 1])
def test_another_number_of_words_is_not(tmp_path: Path, words: int) -> None:
    """Too few for the tokens that survive, or no two words for each."""
    reference = write_run(tmp_path / "reference.tklog")
    other = write_run(tmp_path / "other.tklog", words=words)
    assert tracekit.diff(reference, other).cause != CAUSE
