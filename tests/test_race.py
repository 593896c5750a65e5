"""The race of a recorded draw, run again: over the vocabulary, or over the survivors alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tracekit
from tracekit.formats.log import LogWriter
from tracekit.sampling.exponential_race import lead, race_scores
from tracekit.sampling.replay import Streams
from tracekit.torch_rng.generator import TorchGenerator
from tracekit.trace import Draw, Sequence
from tracekit.verdict.ruling import Scale

SEED = 7
VOCABULARY = 9


def drawn(words: int | None, result: int | None) -> Draw:
    return Draw(0, "multinomial", "mt19937", SEED, 0, words, result)


@pytest.fixture
def streams(tmp_path: Path) -> Streams:
    return Streams(recorded(tmp_path / "seeded.tklog", np.array([4, 7]), np.array([0.6, 0.4]), 4, 2 * VOCABULARY))


def recorded(path: Path, ids: np.ndarray, probs: np.ndarray, token: int, words: int, **sampling: object) -> Sequence:
    """A step whose survivors' logits are the logarithms of their probabilities."""
    logits = np.full(VOCABULARY, -50.0, dtype=np.float32)
    logits[ids] = np.log(probs)
    log = LogWriter(path)
    log.open("python", dtype="float32", seed=SEED)
    log.sequence(0, {"prompt/token_ids": np.array([1])}, sampling=sampling)
    tensors = {"logits": logits, "survivors/id": ids, "survivors/prob": probs.astype(np.float32)}
    draw = {"op": "multinomial", "generator": "mt19937", "seed": SEED, "offset": 0, "words": words, "result": token}
    log.step(0, 0, 0, token, tensors, draws=[draw])
    log.end_sequence(0, 1, "length")
    log.close()
    return tracekit.open(path).sequences[0]


def test_the_number_of_words_says_what_was_raced(streams: Streams) -> None:
    ids, probs = np.array([7, 4, 2]), np.array([0.5, 0.3, 0.2])
    q = TorchGenerator(SEED).exponential(VOCABULARY)
    over_all = np.log(probs) - np.log(q[ids])
    over_survivors = np.log(probs) - np.log(q[:3])
    for scores, words in ((over_all, 2 * VOCABULARY), (over_survivors, 6)):
        winner = int(ids[np.argmax(scores)])
        again = race_scores(ids, probs, [drawn(words, winner)], streams, None)
        assert again is not None
        np.testing.assert_allclose(again, scores, rtol=1e-12)
    unsaid = race_scores(ids, probs, [drawn(None, None)], streams, VOCABULARY)
    np.testing.assert_allclose(unsaid, over_all, rtol=1e-12)


def test_where_everything_survives_the_token_says_what_was_raced(streams: Streams) -> None:
    ids = np.arange(VOCABULARY)[::-1].copy()
    probs = np.full(VOCABULARY, 1 / VOCABULARY)
    q = TorchGenerator(SEED).exponential(VOCABULARY)
    first = int(np.argmin(q))
    for winner, noise in ((first, q[ids]), (int(ids[first]), q)):
        again = race_scores(ids, probs, [drawn(2 * VOCABULARY, winner)], streams, None)
        np.testing.assert_allclose(again, np.log(probs) - np.log(noise), rtol=1e-12)
    lost = next(token for token in range(VOCABULARY) if token not in (first, int(ids[first])))
    assert race_scores(ids, probs, [drawn(2 * VOCABULARY, lost)], streams, None) is None


def test_what_cannot_be_run_again_is_none(streams: Streams) -> None:
    ids, probs = np.array([7, 4]), np.array([0.6, 0.4])
    uniform = Draw(0, "uniform", "mt19937", SEED, 0, 2, None)
    foreign = Draw(0, "multinomial", "philox", SEED, 0, 4, 7)
    again = [drawn(4, 7), drawn(2 * VOCABULARY, 7)]  # a repeated token is drawn again, from everything
    for draws in ([], [uniform], [foreign], again, [drawn(None, 7)]):
        assert race_scores(ids, probs, draws, streams, None) is None


def test_the_lead_is_over_the_runner_up() -> None:
    assert lead(np.array([1.0, 4.0, 2.5])) == 1.5
    assert lead(np.array([-np.inf, 0.0])) == np.inf


def test_a_near_tie_in_the_nucleus_is_proved_from_its_own_race(tmp_path: Path) -> None:
    """CosyVoice draws among the nucleus' tokens alone: the noise of the first two is theirs, whatever their ids."""
    q = TorchGenerator(SEED).exponential(2)
    settings = {"sampler": "ras", "temperature": None, "top_p": 1.0, "top_k": 2, "win_size": 10, "tau_r": 0.1}
    sides = []
    for name, token, margin in (("reference", 4, 5e-6), ("candidate", 7, -5e-6)):
        first = 1 / (1 + q[1] / q[0] * np.exp(-margin))  # of log(first / q0) - log((1 - first) / q1) = margin
        assert first > 0.5  # survivors are in descending order
        recorded(tmp_path / f"{name}.tklog", np.array([4, 7]), np.array([first, 1 - first]), token, 4, **settings)
        sides.append(tracekit.open(tmp_path / f"{name}.tklog"))
    verdict = tracekit.diff(sides[0], sides[1])
    assert (verdict.cause, verdict.site) == ("near-tie", "token")
    assert verdict.margins.token is not None and verdict.margins.token.kind is Scale.RACE
    assert verdict.margins.token.margin == pytest.approx(5e-6, abs=2e-7)  # probabilities are float32
