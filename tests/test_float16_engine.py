"""A float16 engine against a float32 program: its rounding is no fault, faults beside it are explained as ever, and the
two formats are named first."""

from __future__ import annotations

import pytest

import tracekit
from tests.spoken import evidence
from tests.test_cosyvoice3_native import Speak, reference, speak  # noqa: F401
from tracekit.mistakes.sites import low_rank, mask
from tracekit.verdict.cause import Cause

QUERIES = "llm.model.model.layers.1.self_attn.q_proj"
DTYPES = "dtype: float32 in the reference, float16 in the candidate"


def test_its_rounding_is_no_fault(reference: tracekit.Trace, speak: Speak) -> None:  # noqa: F811
    """A token that rounding moves over the cut of the nucleus moves all later draws: that is a near-tie as well."""
    verdict = tracekit.diff(reference, speak("--dtype", "f16"))
    assert verdict.cause in (None, Cause.NEAR_TIE, Cause.PRECISION), evidence(verdict)
    assert not verdict.culprits and "bfloat16" not in verdict.text
    assert verdict.cause is not Cause.NEAR_TIE or evidence(verdict)[0] == DTYPES


@pytest.mark.parametrize(
    ("fault", "mistake", "values"),
    [
        ("mask-decode", mask.DECODING, {"found": 1}),
        ("mask-decode:5", mask.DECODING, {"found": 5}),
        (f"weight-low-rank:{QUERIES}:3:0.1", low_rank.LOW_RANK, {"rank": 3}),
    ],
)
def test_a_fault_is_explained(
    reference: tracekit.Trace,  # noqa: F811
    speak: Speak,  # noqa: F811
    fault: str,
    mistake: object,
    values: dict[str, object],
) -> None:
    verdict = tracekit.diff(reference, speak("--dtype", "f16", "--fault", fault))
    assert verdict.cause == Cause.LAYER and verdict.explanation is not None, evidence(verdict)
    assert verdict.explanation.mistake is mistake and dict(verdict.explanation.values) == values
    assert evidence(verdict)[0] == DTYPES and "bfloat16" not in verdict.text
