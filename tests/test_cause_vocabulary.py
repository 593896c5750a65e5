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


@pytest.mark.parametrize("words", [2 * 7, 2 * VOCABULARY + 1])
def test_another_number_of_words_is_not(tmp_path: Path, words: int) -> None:
    """Too few for the tokens that survive, or no two words for each."""
    reference = write_run(tmp_path / "reference.tklog")
    other = write_run(tmp_path / "other.tklog", words=words)
    assert tracekit.diff(reference, other).cause != CAUSE
