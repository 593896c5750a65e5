"""The vectors of `tests/vectors/`: what Python and Rust wrote, read from Python (`cargo test` reads them from Rust)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tracekit.formats.log import map_file, read_frames
from tracekit.sampling.chain import scores
from tracekit.sampling.scores import survivors
from tracekit.torch_rng.generator import TorchGenerator

VECTORS = Path(__file__).parent / "vectors"


@pytest.mark.parametrize("name", ["python", "rust"])
def test_both_logs_hold_the_same(name: str) -> None:
    content = json.loads((VECTORS / "log/content.json").read_text())
    data = map_file(VECTORS / f"log/{name}.tklog")
    frames = list(read_frames(data))
    assert [frame.kind for frame in frames] == content["kinds"]
    assert frames[1].metadata == content["metadata"]
    for tensor, bits in content["tensors"].items():
        values = frames[1].array(data, tensor)
        assert values is not None
        assert values.tobytes().hex() == bits, tensor


def floats(hexed: list[str]) -> np.ndarray:
    raw = b"".join(bytes.fromhex(text)[::-1] for text in hexed)
    return np.frombuffer(raw, dtype="<f4" if len(hexed[0]) == 8 else "<f8")


def test_draws_are_torchs() -> None:
    for case in json.loads((VECTORS / "rng.json").read_text())["cases"]:
        generator, size = TorchGenerator(case["seed"]), case["size"]
        assert np.array_equal(generator.rand(size), floats(case["rand_f32"]))
        assert np.array_equal(generator.rand(size, "float64"), floats(case["rand_f64"]))
        assert np.array_equal(generator.exponential(size, 1.5).astype(np.float32), floats(case["exponential_f32"]))
        assert generator.bernoulli(size, 0.3).astype(int).tolist() == case["bernoulli"]
        generator.skip(size)  # bernoulli_each: its probabilities are torch's linspace
        assert generator.randint(size, 7).tolist() == case["randint_7"]
        assert generator.randint(size, 2**28).tolist() == case["randint_2_28"]
        assert generator.randperm(size).tolist() == case["randperm"]
        generator.skip(2 * size)  # multinomial, of the same probabilities
        assert np.array_equal(generator.normal_few(6).astype(np.float32), floats(case["normal_f32"]))
        assert np.array_equal(generator.normal(2 * size + 3), floats(case["randn_f32"]))
        assert np.array_equal(generator.uniform(size, -1.5, 2.7), floats(case["uniform_f32"]))
        if case["state"]:
            following = TorchGenerator.from_state(bytes.fromhex(case["state"]))
            assert (following.seed, following.offset) == (case["seed"], generator.offset)
            assert np.array_equal(following.words(9), generator.words(9))


def test_survivors_are_transformers() -> None:
    for case in json.loads((VECTORS / "sampling.json").read_text())["cases"]:
        settings = {"do_sample": True, **case["settings"]}
        ids, probs = survivors(scores(np.array(case["logits"]), settings, case["history"]))
        assert ids.tolist() == case["survivors"], settings
        # Ours are float64, transformers' float32.
        np.testing.assert_allclose(probs, case["probs"], rtol=1e-6)
