"""Weights rounded to a few bits: GGML's formats by its own library, and scales a row or a tensor."""

from __future__ import annotations

import numpy as np
import pytest

from tracekit.mistakes.quantised import BLOCK, ROUNDINGS

gguf = pytest.importorskip("gguf")
WEIGHT = np.random.default_rng(0).normal(size=(12, 96)).astype(np.float32)
WEIGHT[3] = 0.0
NAMED = {rounding.words: rounding for rounding in ROUNDINGS}


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_ggmls_formats_are_its_librarys(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    wanted = gguf.dequantize(gguf.quantize(WEIGHT, kind), kind)
    ours = NAMED[name].rounded(WEIGHT.astype(np.float64))
    assert np.array_equal(ours, wanted.astype(np.float64))


def test_blocks_need_rows_of_whole_blocks() -> None:
    assert [name for name, rounding in NAMED.items() if rounding.blocks] == ["Q8_0", "Q4_0"]
    assert WEIGHT.shape[1] % BLOCK == 0


@pytest.mark.parametrize(("text", "axis"), [("a scale a row", 1), ("one scale", None)])
def test_eight_bits_are_256_steps_of_a_scale(text: str, axis: int | None) -> None:
    ours = NAMED[f"8 bits, {text}"].rounded(WEIGHT.astype(np.float64))
    scale = np.abs(WEIGHT).max(axis=axis, keepdims=True) / 127
    steps = ours / np.where(scale == 0, 1, scale)
    assert np.allclose(steps, np.rint(steps), atol=1e-4) and np.abs(steps).max() <= 127.01
    assert np.all(np.abs(ours - WEIGHT) <= scale * 0.501)
