"""`tracekit.torch_rng.generator` and the crate's `TorchRng` against the installed torch."""

from __future__ import annotations

import numpy as np
import pytest

from tracekit.torch_rng.generator import TorchGenerator, offset_of, words_between

torch = pytest.importorskip("torch")

SEEDS = [0, 1, 7, 2**31, 2**32 - 1, 2**32 + 5, 2**63, -1]
SIZES = [1, 2, 10, 15, 16, 25, 200, 625, 6761]


def seeded(seed: int):
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator


def state(generator) -> bytes:
    return generator.get_state().numpy().tobytes()


def test_words_follow_the_state() -> None:
    ours, theirs = TorchGenerator(3), seeded(3)
    for count in (1, 5, 623, 624, 2000):
        before = state(theirs)
        torch.empty(count).uniform_(generator=theirs)
        ours.words(count)
        assert words_between(before, state(theirs)) == count
        assert offset_of(state(theirs)) == (3, ours.offset)
        assert (
            TorchGenerator.from_state(state(theirs)).words(3).tolist()
            == TorchGenerator.from_state(state(theirs)).words(3).tolist()
        )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_op_bit_for_bit(seed: int, size: int) -> None:
    ours, theirs = TorchGenerator(seed), seeded(seed)
    for dtype in ("float32", "float64"):
        want = torch.rand(size, dtype=getattr(torch, dtype), generator=theirs).numpy()
        assert np.array_equal(ours.rand(size, dtype), want), dtype
    want = torch.empty(size).exponential_(1.5, generator=theirs).numpy()
    assert np.array_equal(ours.exponential(size, 1.5).astype(np.float32), want)
    want = torch.empty(size).bernoulli_(0.3, generator=theirs).numpy()
    assert np.array_equal(ours.bernoulli(size, 0.3), want.astype(bool))
    probs = np.linspace(0.1, 0.9, size, dtype=np.float32)
    want = torch.bernoulli(torch.from_numpy(probs), generator=theirs).numpy()
    assert np.array_equal(ours.bernoulli_each(probs), want.astype(bool))
    for high in (7, 2**28 - 1, 2**28, 2**31, 2**40):
        assert np.array_equal(ours.randint(size, high), torch.randint(high, (size,), generator=theirs).numpy()), high
    assert np.array_equal(ours.randperm(size), torch.randperm(size, generator=theirs).numpy())
    want = torch.multinomial(torch.from_numpy(probs), 1, generator=theirs).numpy()
    assert np.array_equal(ours.multinomial(probs), want)
    if size > 4:
        want = torch.multinomial(torch.from_numpy(probs), 4, generator=theirs).numpy()
        assert np.array_equal(ours.multinomial(probs, 4), want)
        want = torch.multinomial(torch.from_numpy(probs), 4, replacement=True, generator=theirs).numpy()
        assert np.array_equal(ours.multinomial(probs, 4, replacement=True), want)
    assert offset_of(state(theirs))[1] == ours.offset


@pytest.mark.parametrize("size", [1, 3, 15])
def test_few_normals(size: int) -> None:
    ours, theirs = TorchGenerator(11), seeded(11)
    for _ in range(3):
        want = torch.randn(size, generator=theirs).numpy()
        assert np.array_equal(ours.normal_few(size).astype(np.float32), want)


@pytest.mark.parametrize("size", [16, 17, 31, 200, 6761])
@pytest.mark.parametrize("seed", SEEDS)
def test_many_normals_and_uniforms_in_float(seed: int, size: int) -> None:
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.fail("torch draws these in another way without AVX2, which tracekit does not reproduce")
    ours, theirs = TorchGenerator(seed), seeded(seed)
    assert np.array_equal(ours.normal(size), torch.randn(size, generator=theirs).numpy())
    want = torch.empty(size).uniform_(-1.5, 2.7, generator=theirs).numpy()
    assert np.array_equal(ours.uniform(size, -1.5, 2.7), want)
    assert offset_of(state(theirs))[1] == ours.offset


def test_a_zero_among_normals_is_positive() -> None:
    seed = 434830039891875433  # its first 6761 numbers hold a uniform 0, whose normal is 0
    want = torch.randn(6761, generator=seeded(seed)).numpy()
    assert (want == 0).any()
    assert TorchGenerator(seed).normal(6761).tobytes() == want.tobytes()


@pytest.mark.parametrize("size", [16, 17, 200])
def test_many_normals_in_double(size: int) -> None:
    ours, theirs = TorchGenerator(11), seeded(11)
    want = torch.randn(size, dtype=torch.float64, generator=theirs).numpy()
    # The last bit of log, sin and cos is the platform's.
    np.testing.assert_allclose(ours.normal_double(size), want, rtol=4e-16, atol=4e-16)
    assert offset_of(state(theirs))[1] == ours.offset


def test_a_state_of_another_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="5056 bytes, not 16"):
        TorchGenerator.from_state(bytes(16))


def test_a_uniform_that_rounds_up_to_its_bound_is_the_lower_one() -> None:
    want = torch.empty(200_000).uniform_(1000, 1001, generator=seeded(3)).numpy()
    assert want.max() < 1001
    assert np.array_equal(TorchGenerator(3).uniform(200_000, 1000, 1001), want)
