"""Mistakes of real ports on the small CosyVoice3 model: each is explained alone and in pairs, by its id and values.

Their harmless twin is the engine without a fault, which `tests/test_cosyvoice3_native.py` finds at parity.
"""

from __future__ import annotations

from typing import Any

import pytest

import tracekit
from tests.spoken import evidence
from tests.test_cosyvoice3_native import Speak, reference, speak  # noqa: F401
from tracekit.mistakes.explanation import Explanation
from tracekit.mistakes.together import TOGETHER
from tracekit.verdict.counterfactual.algorithm import FILTER_AND_DRAW

LAYER = "llm.model.model.layers.1"
FREQUENCIES, ANGLES, TABLE = "rope-frequencies-f16", "rope-angles-f16", "rope-f16"
F16 = {"dtype": "float16"}
Said = tuple[str, dict[str, Any]]
ALL_PARTS: Said = ("rotary_rounded", {"what": "frequencies, angles and table", **F16})
FIRST_POSITION: Said = ("decoding_mask_length", {"found": 1})
INVERSE: Said = ("inverse_cdf", {"dtype": "float64", "order": "the nucleus"})
CASES: list[tuple[tuple[str, ...], list[Said]]] = [
    (("stop-zeroed",), [("stop_tokens_zeroed", {})]),
    (("stop-masked",), [("stop_tokens_masked", {})]),
    (("inverse-cdf",), [INVERSE]),
    (("stop-zeroed", "inverse-cdf"), [("stop_tokens_zeroed", {}), INVERSE]),
    (("stop-masked", "inverse-cdf"), [("stop_tokens_masked", {}), INVERSE]),
    ((FREQUENCIES,), [("rotary_frequencies_rounded", F16)]),
    ((ANGLES,), [("rotary_angles_rounded", F16)]),
    ((TABLE,), [("rotary_table_rounded", F16)]),
    ((FREQUENCIES, ANGLES), [("rotary_rounded", {"what": "frequencies and angles", **F16})]),
    ((FREQUENCIES, TABLE), [("rotary_rounded", {"what": "frequencies and table", **F16})]),
    ((ANGLES, TABLE), [("rotary_rounded", {"what": "angles and table", **F16})]),
    ((FREQUENCIES, ANGLES, TABLE), [ALL_PARTS]),
    (("mask-decode",), [FIRST_POSITION]),
    (("mask-decode:7",), [("decoding_mask_length", {"found": 7})]),
    ((TABLE, "mask-decode"), [("rotary_table_rounded", F16), FIRST_POSITION]),
    ((FREQUENCIES, ANGLES, TABLE, "mask-decode"), [ALL_PARTS, FIRST_POSITION]),
    ((FREQUENCIES, ANGLES, TABLE, "mask-future"), [("mask_one_ahead", {}), ALL_PARTS]),
    ((TABLE, "mask-past"), [("mask_one_behind", {}), ("rotary_table_rounded", F16)]),
    ((TABLE, "window:20"), [("rotary_table_rounded", F16), ("window", {"found": 20})]),
    (("softmax-f16", "rope-offset"), [("position_offset", {"by": 1}), ("softmax_narrow", F16)]),
    ((f"weight-low-rank:{LAYER}.self_attn.q_proj:4:0.1",), [("weight_low_rank", {"rank": 4})]),
    ((f"weight-low-rank:{LAYER}.mlp.down_proj:8:0.001",), [("weight_low_rank", {"rank": 8})]),
    ((f"transpose-weight:{LAYER}.self_attn.o_proj",), [("weight_transposed", {})]),
    ((f"permuted-rows:{LAYER}.self_attn.q_proj",), [("rows_interleaved", {})]),
    ((f"weights-f16:{LAYER}.self_attn.q_proj",), [("weight_rounded", F16)]),
    ((f"weights-bf16:{LAYER}.self_attn.q_proj",), [("weight_rounded", {"dtype": "bfloat16"})]),
]


@pytest.mark.parametrize(("faults", "expected"), CASES, ids=["+".join(faults) for faults, _ in CASES])
def test_it_is_explained(
    reference: tracekit.Trace,  # noqa: F811
    speak: Speak,  # noqa: F811
    faults: tuple[str, ...],
    expected: list[Said],
) -> None:
    verdict = tracekit.diff(reference, speak(*(word for fault in faults for word in ("--fault", fault))))
    said = verdict.explanation
    assert verdict.verdict == "divergence" and said is not None, evidence(verdict)
    parts = said.parts if said.mistake in (TOGETHER, FILTER_AND_DRAW) else (said,)
    assert [part.mistake.id for part in parts] == [identity for identity, _ in expected], evidence(verdict)
    for part, (_, values) in zip(parts, expected, strict=True):
        assert values.items() <= part.values.items()
    assert not said.also, [other.mistake.id for other in said.also]
    assert _is_whole(said)


def _is_whole(said: Explanation) -> bool:
    """Whether it leaves no more than rounding, at all positions."""
    return said.residual <= 1.0
