"""Weights rounded to a few bits: GGML's formats by its own library, and scales a row or a tensor."""

from __future__ import annotations

import numpy as np
import pytest

from tracekit.mistakes.quantised import rounded

gguf = pytest.importorskip("gguf")
WEIGHT = np.random.default_rng(0).normal(size=(12, 96)).astype(np.float32)
WEIGHT[3] = 0.0


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_ggmls_formats_are_its_librarys(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    wanted = gguf.dequantize(gguf.quantize(WEIGHT, kind), kind)
    ours = rounded(f"weight rounded to {name}", WEIGHT.astype(np.float64))
    assert ours is not None and np.array_equal(ours, wanted.astype(np.float64))


def test_rows_that_blocks_do_not_fit_are_left_out() -> None:
    assert rounded("weight rounded to Q8_0", np.ones((2, 40))) is None


@pytest.mark.parametrize(("text", "axis"), [("a scale a row", 1), ("one scale", None)])
def test_eight_bits_are_256_steps_of_a_scale(text: str, axis: int | None) -> None:
    ours = rounded(f"weight rounded to 8 bits, {text}", WEIGHT.astype(np.float64))
    assert ours is not None
    scale = np.abs(WEIGHT).max(axis=axis, keepdims=True) / 127
    steps = ours / np.where(scale == 0, 1, scale)
    assert np.allclose(steps, np.rint(steps), atol=1e-4) and np.abs(steps).max() <= 127.01
    assert np.all(np.abs(ours - WEIGHT) <= scale * 0.501)
