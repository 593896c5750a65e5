"""What a mistake is called, in words and in JSON."""

from __future__ import annotations

import numpy as np
import pytest

from tracekit.mistakes.explanation import Explained, Explanation, Extent, FitsAsWell, Mistake, Where
from tracekit.mistakes.suspect import moves_nothing
from tracekit.report.words import sentence
from tracekit.report.words.explanations import explanation_json
from tracekit.report.words.numbers import number, times
from tracekit.verdict.outcome import Agreement, AllAgree, EndsTooSoon, OtherDraws, WrongProbabilities

THETA = Mistake("rotary_theta", "rotary theta {found:.9g} instead of {stated:.9g}", main="found")
STOPS = Mistake("stops", "stop tokens {tokens} are never removed", main="tokens")
BOTH = Mistake("two_mistakes", "in the prompt: {parts[0]}; in decoding: {parts[1]}")


def test_an_explanation_in_words() -> None:
    theta = Explanation(THETA, {"found": 1e4, "stated": 1e5}, residual=0.87)
    assert sentence(theta) == "rotary theta 10000 instead of 100000"
    assert sentence(Explained(theta)) == "explained: rotary theta 10000 instead of 100000 (residual 0.9×)"
    stops = Explanation(STOPS, {"tokens": (2, 7)}, steps=1)
    assert sentence(Explained(stops)) == "explained: stop tokens [2, 7] are never removed (at 1 step)"
    assert sentence(FitsAsWell(stops)) == "fits as well: stop tokens [2, 7] are never removed"
    many = Explanation(STOPS, {"tokens": (200, *range(6561, 6761))})
    assert sentence(many) == "stop tokens [200, 6561 to 6760] are never removed"
    late = Explanation(THETA, theta.values, where=Where(Extent.ONWARDS, 9))
    assert sentence(late) == "rotary theta 10000 instead of 100000, from position 9"
    assert sentence(Explanation(BOTH, parts=(theta, stops))) == (
        "in the prompt: rotary theta 10000 instead of 100000; in decoding: stop tokens [2, 7] are never removed"
    )


def test_an_explanation_in_json() -> None:
    stops = Explanation(STOPS, {"tokens": (2, 7)}, 1e-9, steps=3)
    both = Explanation(BOTH, parts=(stops, stops), also=(stops,))
    row = explanation_json(both)
    assert row is not None
    assert row["parts"][0] | {"text": ""} == {
        "kind": "stops",
        "value": [2, 7],
        "values": {"tokens": [2, 7]},
        "residual": 1e-9,
        "steps": 3,
        "also": [],
        "parts": [],
        "lines": [],
        "precision": False,
        "where": {"extent": "all", "first": None},
        "text": "",
    }
    assert (row["kind"], row["value"], row["also"]) == ("two_mistakes", None, ["stops"])
    assert explanation_json(None) is None


def test_the_same_mistake_again() -> None:
    theta = Explanation(THETA, {"found": 1e4, "stated": 1e5}, residual=0.87)
    assert theta.same(Explanation(THETA, {"stated": 1e5, "found": 1e4}, residual=0.2))
    assert not theta.same(Explanation(THETA, {"found": 1e4, "stated": 2e5}))
    assert not theta.same(Explanation(THETA, theta.values, where=Where(Extent.PROMPT)))
    assert Explanation(BOTH, parts=(theta, theta)).same(Explanation(BOTH, parts=(theta, theta)))
    assert not Explanation(BOTH, parts=(theta,)).same(Explanation(BOTH, parts=(theta, theta)))


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (661234.0, "6.6e5×"),
        (213.6, "214×"),
        (0.9, "0.9×"),
        (0.0, "0×"),
        (1e6, "1e6×"),
        (3.0, "3×"),
        (2.5e-7, "2.5e-7×"),
    ],
)
def test_ratios(ratio: float, said: str) -> None:
    assert times(ratio) == said
    assert number(float("inf")) == "inf"


def test_luck_in_words() -> None:
    values = WrongProbabilities(1.4e-4, 0.93, 640, 12, 2.1e-6, suspicious=False)
    assert sentence(values) == (
        "with probabilities off by 0.00014, a seed keeps all of its tokens with probability 93%, so equal tokens prove "
        "little; but the probabilities of the 12 passing seeds differ by 2.1e-6 at most: none of them has the fault"
    )
    draws = OtherDraws(12, -31.4)
    assert sentence(draws).endswith("with probability 1e-31 at most: none of the 12 passing seeds has it")
    assert sentence(EndsTooSoon(12, 7, 0)).startswith("all 12 passing seeds run past step 7")
    assert sentence(AllAgree(3, Agreement.PROMPTS)).startswith("the prompts of all 3 passing seeds agree")


@pytest.mark.parametrize(("dtype", "gain", "nothing"), [
    ("float32", 1.0000001, True), ("float32", 1.00001, False),
    ("bfloat16", 0.9994, True), ("bfloat16", 1.0078, False), ("float16", 1.0004, True), ("float16", 1.002, False),
])  # fmt: skip
def test_a_gain_within_the_roundoff_explains_nothing(dtype: str, gain: float, nothing: bool) -> None:
    base = np.random.default_rng(0).standard_normal((8, 16))
    assert moves_nothing(base * gain, base, dtype) is nothing
