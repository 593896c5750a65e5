"""What rows have in common is rounded alike in all of them: one sample, on whatever processor it is added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from tracekit.auditing.alike import common_of_product, common_of_values
from tracekit.auditing.evidence import Statistic
from tracekit.auditing.matrix import Matrix, linear
from tracekit.auditing.own_error import COLUMN_KINDS, Statistics, Tally
from tracekit.auditing.rounding import Floats, as_stored

F32 = NDArray[np.float32]
UNIT = 2.0**-24
ROWS, INPUTS, OUTPUTS = 181, 192, 96
LEVEL = 1e-10


def rows_of(kind: str, seed: int) -> tuple[Floats, Floats]:
    """x [ROWS, INPUTS] of float32 and weights [OUTPUTS, INPUTS] of bfloat16. `head`: the last third of the inputs is
    the same in every row, as that of a head that attends to one token; `jitter`: nearly the same; `rows`: all rows are
    equal; `free`: nothing is."""
    random = np.random.default_rng(seed)
    x, same = random.standard_normal((ROWS, INPUTS)), random.standard_normal(INPUTS)
    last = slice(2 * INPUTS // 3, None)
    if kind in ("head", "jitter"):
        x[:, last] = same[last] * (1.0 + (1e-8 * random.standard_normal((ROWS, 1)) if kind == "jitter" else 0.0))
    if kind == "rows":
        x[:] = same
    weight = random.standard_normal((OUTPUTS, INPUTS))
    if kind in ("head", "jitter"):
        # Columns whose sums are large before the common terms come: all of these are rounded coarsely, and alike.
        weight[:, : INPUTS // 3] += 0.5
        x[:, : INPUTS // 3] += 1.0
    return as_stored(x, "float32"), as_stored(weight, "bfloat16")


def fused(total: F32, x: F32, w: F32) -> F32:
    return (total.astype(np.float64) + np.multiply.outer(x.astype(np.float64), w.astype(np.float64))).astype(np.float32)


def unfused(total: F32, x: F32, w: F32) -> F32:
    return total + np.multiply.outer(x, w)


def summed(x: Floats, weight: Floats, add: Callable[[F32, F32, F32], F32], lanes: int, block: int) -> Floats:
    """x W' in float32: in blocks of terms that begin at zero, in `lanes` partial sums side by side."""
    narrow, right = x.astype(np.float32), weight.astype(np.float32)
    out = np.zeros((len(x), len(weight)), np.float32)
    for first in range(0, x.shape[1], block):
        parts = [np.zeros_like(out) for _ in range(lanes)]
        for place, term in enumerate(range(first, min(first + block, x.shape[1]))):
            parts[place % lanes] = add(parts[place % lanes], narrow[:, term], right[:, term])
        while len(parts) > 1:
            parts = [one + two for one, two in zip(parts[::2], parts[1::2], strict=True)]
        out = out + parts[0]
    return out.astype(np.float64)


def orders(x: Floats, weight: Floats) -> Iterator[tuple[str, Floats]]:
    """The product as engines on other processors add it up."""
    for add in (fused, unfused):
        for lanes, block in ((1, 1 << 20), (4, 1 << 20), (16, 1 << 20), (1, 64), (1, 128), (2, 96)):
            yield f"{add.__name__} {lanes} {block}", summed(x, weight, add, lanes, block)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(x.shape[1])
        yield f"drawn {seed}", summed(x[:, order], weight[:, order], fused, 1, 1 << 20)


def statistics_of(engine: Floats, x: Floats, weight: Floats, common: bool = True) -> Statistics:
    result = linear(Matrix(weight, None), x, "float32", closely=True)
    assert result.common is not None
    tally = Tally()
    tally.add(engine, result)
    return tally.statistics(result.common() if common else 0.0)


def worst(found: Statistics) -> float:
    """The largest column statistic and the gain over what independent errors exceed with probability `LEVEL`."""
    peaks, limits = found.peaks(), found.limits(LEVEL, {})
    kinds = [kind for kind in (*COLUMN_KINDS, Statistic.GAIN) if kind is not Statistic.COLUMN]
    return max(peaks[kind] / limits[kind] for kind in kinds)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["head", "jitter", "rows", "free"])
def test_no_order_of_sums_is_a_column_that_is_off(kind: str, seed: int) -> None:
    x, weight = rows_of(kind, seed)
    found = {name: worst(statistics_of(engine, x, weight)) for name, engine in orders(x, weight)}
    assert max(found.values()) < 1.0, found


def test_terms_in_common_push_every_row_to_one_side() -> None:
    """Taken for independent rows, a correct sum is 20 standard deviations off."""
    x, weight = rows_of("head", 0)
    engine = summed(x, weight, fused, 1, 1 << 20)
    assert worst(statistics_of(engine, x, weight, common=False)) > 2.0
    # To either side: another grid, another sign.
    off = np.mean(engine - x @ weight.T, axis=0)
    assert (off > 0.0).any() and (off < 0.0).any()


@pytest.mark.parametrize("kind", ["head", "free"])
def test_a_column_that_is_off_by_more_is_still_seen(kind: str) -> None:
    x, weight = rows_of(kind, 3)
    engine = summed(x, weight, fused, 1, 1 << 20)
    sigma = float(np.sqrt(linear(Matrix(weight, None), x, "float32", closely=True).variance[:, 5].mean()))
    engine[:, 5] += sigma * (6.0 if kind == "head" else 1.0)
    found = statistics_of(engine, x, weight)
    assert abs(found.column_offsets[5]) > found.limits(LEVEL, {})[Statistic.COLUMN_OFFSET]


def test_rows_that_have_nothing_in_common_are_independent() -> None:
    x, weight = rows_of("free", 4)
    variance = linear(Matrix(weight, None), x, "float32", closely=True).variance
    assert common_of_product(x, weight, variance, UNIT).max() * ROWS < 0.05
    assert common_of_values(np.random.default_rng(0).standard_normal((ROWS, 8)), UNIT).max() == 0.0


def test_a_column_of_one_value_is_one_sample() -> None:
    values = np.random.default_rng(0).standard_normal((ROWS, 4))
    values[:, 1] = 0.3
    values[ROWS // 2 :, 2] = -1.7
    shares = common_of_values(values, UNIT)
    assert shares[[0, 3]].max() == 0.0 and shares[1] == 1.0
    assert shares[2] == pytest.approx(0.25, abs=0.01)
