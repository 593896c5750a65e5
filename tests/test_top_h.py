"""Top-H: as transformers filters, its cut, and a mistake with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import TopHLogitsWarper

import tracekit
from tests.small_run import write_run
from tracekit.report.words import sentence
from tracekit.sampling.chain import chain, cuts, scores
from tracekit.sampling.observed import Context

STATED = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "top_h": 0.6}


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("size", [7, 60, 400])
def test_the_scores_are_transformers_bit_for_bit(share: float, size: int) -> None:
    for seed in range(20):
        logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3
        expected = TopHLogitsWarper(share)(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())[0].numpy()
        ours = scores(logits.numpy(), {"top_h": share})
        cut = cuts(chain({"top_h": share}), logits.numpy(), Context())[0]
        apart = np.flatnonzero((ours > -np.inf) != (expected > -np.inf))
        # torch adds the entropy up in float32: only a token at the cut may fall on either side.
        assert apart.size <= 1 and (cut.distances[apart] < 1e-5).all()
        kept = np.setdiff1d(np.flatnonzero(ours > -np.inf), apart)
        assert np.array_equal(ours[kept], expected[kept])


def test_the_cut_lies_between_the_last_that_stays_and_the_next() -> None:
    logits = np.random.default_rng(1).normal(size=40).astype(np.float32) * 2
    kept = int((scores(logits, {"top_h": 0.6}) > -np.inf).sum())
    order = np.argsort(-logits)
    distances = cuts(chain({"top_h": 0.6}), logits, Context())[0].distances
    assert np.isinf(distances[order[0]])
    nearest = int(np.argmin(distances))
    assert nearest in (order[kept - 1], order[kept])


def keeps_crossing(logits: np.ndarray, history: list[int], step: int) -> np.ndarray:
    """Written from the definition of the mistake."""
    values = logits / 0.8
    probs = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
    terms, kept, spent = -probs * np.log(probs), np.full(values.size, -np.inf), 0.0
    for token in np.argsort(-values):
        kept[token] = values[token]
        spent += terms[token]
        if spent > 0.6 * terms.sum():
            break
    return kept


def test_a_token_too_many_is_named(tmp_path: Path) -> None:
    def run(name: str, **changes: object) -> tracekit.Trace:
        return tracekit.open(write_run(tmp_path / f"{name}.tklog", stated=STATED, steps=10, **changes))  # type: ignore[arg-type]

    reference = run("reference")
    assert tracekit.diff(reference, run("same", noise=1)).verdict == "parity"
    verdict = tracekit.diff(reference, run("wrong", filtered=keeps_crossing))
    assert verdict.cause == "filter" and verdict.explanation is not None
    assert verdict.explanation.mistake.id == "top_h_keeps_crossing_token"
    assert "top-H 0.6 keeps the token" in sentence(verdict.explanation)
