"""An engine that computes as the textbook says, sums one term after the other and exponentials of a rounded product, is
right: the errors that it makes are what both audits allow for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tracekit.auditing.operations.gate import gated
from tracekit.dtypes import UNIT_ROUNDOFF

torch = pytest.importorskip("torch")

from tracekit_torch.reference_program.drawn_rounding import DrawnRounding  # noqa: E402

UNIT = UNIT_ROUNDOFF["float32"]
ROWS, TERMS, COLUMNS = 24, 512, 16


def in_turn(terms: np.ndarray) -> np.ndarray:
    """The sum over the last axis in float32, one term after the other."""
    return np.add.accumulate(terms.astype(np.float32), axis=-1, dtype=np.float32)[..., -1].astype(np.float64)


def size(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(error))))


def drawn(program: Callable[..., torch.Tensor], *given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a program gives exactly, and its drawn errors, [runs, ...]."""
    tensors = [torch.from_numpy(each) for each in given]
    with DrawnRounding(UNIT, UNIT, seed=0) as mode:
        made = program(*tensors)
        errors = mode.off(made)
    assert errors is not None
    return made.numpy(), errors.numpy()


@pytest.mark.parametrize("of_one_sign", [False, True])
def test_products_added_in_turn(of_one_sign: bool) -> None:
    """Terms that all have one sign make partial sums that grow with their number, not with its root."""
    random = np.random.default_rng(0)
    left, right = random.standard_normal((ROWS, TERMS)), random.standard_normal((TERMS, COLUMNS))
    if of_one_sign:
        left, right = np.abs(left), np.abs(right)
    left, right = (each.astype(np.float32).astype(np.float64) for each in (left, right))
    exact, errors = drawn(torch.matmul, left, right)
    apart = size(in_turn(left[:, None, :] * right.T[None]) - exact)
    assert apart / 1.5 < size(errors) < 3.0 * apart


def test_means_of_squares_added_in_turn() -> None:
    given = np.random.default_rng(1).standard_normal((400, TERMS)).astype(np.float32).astype(np.float64)
    exact, errors = drawn(lambda x: x.square().mean(-1), given)
    apart = size(in_turn(np.square(given)) / TERMS - exact)
    assert apart / 1.5 < size(errors) < 4.0 * apart


@pytest.mark.parametrize("by", ["recipe", "program"])
def test_exponentials_of_a_rounded_product(by: str) -> None:
    """exp(x) as exp2(x * log2(e)) with the product in float32."""
    gate = np.linspace(-30.0, -10.0, 4001).astype(np.float32).astype(np.float64)[None]
    exponent = (-gate.astype(np.float32) * np.float32(np.log2(np.e))).astype(np.float64)
    plain = gate / (1.0 + np.exp2(exponent))
    if by == "recipe":
        result = gated(gate, np.ones_like(gate), "silu", "float32")
        exact, allowed = result.values, np.sqrt(result.variance)
    else:
        exact, errors = drawn(torch.nn.functional.silu, gate)
        allowed = np.sqrt(np.square(errors).mean(0))
    assert 0.5 < size((plain - exact) / exact) / size(allowed / exact) < 1.5
