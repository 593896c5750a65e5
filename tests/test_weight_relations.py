"""How one tensor came from another: every relation is named with its numbers, and what has none gets none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.speech_traces import tracekit
from tracekit.checkpoints import compare
from tracekit.checkpoints.adapter import Adapter
from tracekit.checkpoints.compare import diff_weights
from tracekit.checkpoints.parameters import Parameters, open_parameters
from tracekit.checkpoints.relations import (
    AdapterTimes,
    Arrangement,
    Axis,
    LowRank,
    Relation,
    Reordered,
    RoundedTo,
    Side,
    Times,
    Transposed,
)
from tracekit.checkpoints.rotary_pairs import halves, interleaved
from tracekit.dtypes import round_to, to_float

NAME = "model.layers.0.self_attn.q_proj.weight"
ROWS, COLUMNS = 96, 80
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weight(rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((rows, columns)).astype(np.float32)


def update(rank: int, rows: int = ROWS, columns: int = COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(4)
    return drawn.standard_normal((rows, rank)), drawn.standard_normal((rank, columns))


def saved(tensor: np.ndarray, path: str) -> Parameters:
    save_file({NAME: np.ascontiguousarray(tensor)}, path)
    return open_parameters(path)


def relation(one: np.ndarray, other: np.ndarray, adapter: Adapter | None = None) -> Relation | None:
    found = diff_weights(saved(one, "one.safetensors"), saved(other, "two.safetensors"), adapter)
    assert len(found.values) == 1
    return found.values[0].relation


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    return to_float(round_to(values.astype(np.float32), "bfloat16"), "bfloat16")


def cut(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def in_blocks(order: list[int], width: int) -> np.ndarray:
    return np.add.outer(np.array(order) * width, np.arange(width)).reshape(-1)


@pytest.mark.parametrize("block", [compare.BLOCK, 16 * 37])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.astype(np.float16).astype(np.float32), RoundedTo(Side.SECOND, "float16")),
        (to_bfloat16, RoundedTo(Side.SECOND, "bfloat16")),
        (cut, RoundedTo(Side.SECOND, "bfloat16", cut=True)),
        (lambda w: w * np.float32(1.5), Times(1.5)),
        (lambda w: w[np.random.default_rng(0).permutation(ROWS)], Reordered),
        (lambda w: w[::-1], Reordered(Axis.ROWS, ROWS, ROWS)),
        (lambda w: w[:, ::-1], Reordered(Axis.COLUMNS, COLUMNS, COLUMNS)),
        (lambda w: w[in_blocks([1, 0, 2, 3, 4, 5], 16)], Reordered(Axis.ROWS, 32, ROWS, Arrangement.BLOCKS, 16)),
        (lambda w: w[:, in_blocks([0, 1, 4, 3, 2], 16)], Reordered(Axis.COLUMNS, 32, COLUMNS, Arrangement.BLOCKS, 16)),
        (lambda w: interleaved(w, 6), Reordered(Axis.ROWS, 84, ROWS, Arrangement.PAIRED, 16)),
        (lambda w: halves(w, 6), Reordered(Axis.ROWS, 84, ROWS, Arrangement.HALVED, 16)),
    ],
)
def test_a_relation_is_named(change: Change, expected: object, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "BLOCK", block)
    found = relation(weight(), change(weight()))
    if isinstance(expected, type):
        assert isinstance(found, expected) and found.order is Arrangement.ANY
    elif isinstance(expected, Times):
        assert isinstance(found, Times) and found.gain == pytest.approx(expected.gain)
    else:
        assert found == expected


def test_a_transposed_matrix_is_named_of_any_shape() -> None:
    assert relation(weight(48, 48), weight(48, 48).T) == Transposed()
    turned = diff_weights(saved(weight(), "one.safetensors"), saved(weight().T, "two.safetensors"))
    assert turned.transposed == {NAME} and not turned.same
    assert (
        f"shapes differ: {NAME} [96, 80] | [80, 96], transposed"
        in tracekit("weights", "one.safetensors", "two.safetensors")[1]
    )
    other = diff_weights(saved(weight(), "one.safetensors"), saved(weight(COLUMNS, ROWS), "two.safetensors"))
    assert not other.transposed


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("factor", [1.0, 1e-3])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("block", [compare.BLOCK, 16 * 37])
def test_an_update_of_low_rank_is_named_by_its_rank(
    rank: int, factor: float, narrow: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "BLOCK", block)
    up, down = update(rank)
    base = to_bfloat16(weight()) if narrow else weight()
    merged = base + (factor * up @ down).astype(np.float32)
    found = relation(base, merged)
    assert isinstance(found, LowRank) and found.rank == rank
    assert found.size == pytest.approx(np.linalg.norm(merged - base) / np.linalg.norm(base), rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w + np.float32(0.01) * np.random.default_rng(9).standard_normal(w.shape).astype(np.float32),
        lambda w: w + (update(40)[0] @ update(40)[1]).astype(np.float32),  # not low in a matrix of 80 columns
        lambda w: np.where(np.arange(ROWS)[:, None] == 7, w + 1, w),  # a row of its own
        lambda w: np.where(np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) == 77, w + 1, w),
        lambda w: np.where(np.arange(ROWS)[:, None] == 7, w[::-1], w),  # no order: a row is there twice
        lambda w: -w[::-1],
    ],
)
def test_what_has_no_relation_gets_none(change: Change) -> None:
    assert relation(weight(), change(weight()).astype(np.float32)) is None


def test_what_is_not_finite_gets_none() -> None:
    broken = weight()[::-1].copy()
    broken[0, 0] = np.nan
    assert relation(weight(), broken) is None


def adapter(rank: int, alpha: float = 16.0) -> Adapter:
    up, down = update(rank)
    Path("adapter").mkdir()
    module = f"base_model.model.{NAME.removesuffix('.weight')}"
    tensors = {f"{module}.lora_A.weight": down.astype(np.float32), f"{module}.lora_B.weight": up.astype(np.float32)}
    save_file(tensors, "adapter/adapter_model.safetensors")
    Path("adapter/adapter_config.json").write_text(json.dumps({"lora_alpha": alpha, "r": rank}))
    return Adapter("adapter")


@pytest.mark.parametrize(("ours", "theirs", "factor"), [(0.0, 2.0, 2.0), (4.0, 2.0, -2.0), (4.0, 4.5, 0.5)])
def test_an_adapter_merged_with_another_scale_is_named_by_its_factor(ours: float, theirs: float, factor: float) -> None:
    known = adapter(4)
    up, down = (each.astype(np.float32).astype(np.float64) for each in update(4))
    one, other = ((weight() + scale * up @ down).astype(np.float32) for scale in (ours, theirs))
    found = relation(one, other, known)
    assert isinstance(found, AdapterTimes) and (found.rank, found.declared) == (4, 4.0)
    assert found.factor == pytest.approx(factor, rel=1e-6)
    said = tracekit("weights", "one.safetensors", "two.safetensors", "--adapter", "adapter")[1]
    assert (
        f"{'plus' if factor > 0 else 'minus'} {abs(factor):g} times the adapter's B A (rank 4; its scale is 4)" in said
    )
    rows = json.loads(tracekit("weights", "one.safetensors", "two.safetensors", "--adapter", "adapter", "--json")[1])
    assert rows["values"][0]["relation"]["type"] == "adapter_times"


def test_another_update_is_not_the_adapters() -> None:
    other = weight() + (update(4)[0][::-1] @ update(4)[1]).astype(np.float32)
    found = relation(weight(), other, adapter(4))
    assert isinstance(found, LowRank) and found.rank == 4


def test_what_is_no_adapter_gets_one_line() -> None:
    saved(weight(), "one.safetensors")
    code, said = tracekit("weights", "one.safetensors", "one.safetensors", "--adapter", "one.safetensors")
    assert (code, said) == (2, "one.safetensors: holds no lora_A and lora_B; give the folder of a LoRA adapter")
