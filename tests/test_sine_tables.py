"""Tables of sines that a port computes itself: their rounding is no error, another base and a learned table are."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from tracekit_torch.reference_program.drawn_rounding import DrawnRounding  # noqa: E402
from tracekit_torch.reference_program.sine_tables import SineTable  # noqa: E402

import tracekit  # noqa: E402
from tracekit.formats.log import LogWriter  # noqa: E402

POSITIONS, WIDTH, TOKENS = 200, 16, 24
FLOAT32 = 2.0**-24


def exact(positions: int = POSITIONS, base: float = 10000.0) -> Any:
    angle = np.arange(positions)[:, None] * base ** (-np.arange(0, WIDTH, 2) / WIDTH)
    return torch.tensor(np.concatenate([np.sin(angle), np.cos(angle)], axis=1))


def in_float32(positions: int = POSITIONS, base: float = 10000.0) -> Any:
    """As candle and others compute it: everything in float32."""
    frequency = torch.exp(torch.arange(0, WIDTH, 2, dtype=torch.float32) * (-math.log(base) / WIDTH))
    angle = torch.arange(positions, dtype=torch.float32)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def padded() -> Any:
    table = exact().float()
    table[1] = 0.0
    return table


TABLES: dict[str, tuple[Callable[[], Any], bool]] = {
    "in float64": (lambda: exact(), True),
    "rounded": (lambda: exact().float(), True),
    "computed in float32": (lambda: in_float32(), True),
    "with a row of padding": (padded, True),
    "with a batch": (lambda: exact()[None], True),
    "learned": (lambda: torch.randn(POSITIONS, WIDTH) * 0.02, False),
    "all ones": (lambda: torch.ones(POSITIONS, WIDTH), False),
    "slopes": (lambda: torch.arange(POSITIONS)[:, None] * torch.linspace(0.1, 1.0, WIDTH), False),
    "few positions": (lambda: exact(4), False),
    "a vector": (lambda: exact()[:, 0], False),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_sines_is_told_from_others(kind: str) -> None:
    make, found = TABLES[kind]
    assert (SineTable.of(make()) is not None) is found


@pytest.mark.parametrize("base", [10000.0, 500.0])
def test_what_a_table_in_float32_is_off_is_drawn(base: float) -> None:
    held = exact(base=base)
    table = SineTable.of(held)
    assert table is not None
    drawn = DrawnRounding(FLOAT32, FLOAT32, 0, 64)
    drawn.tables([table])
    spread = drawn.off(held).square().mean(dim=0).sqrt()  # type: ignore[union-attr]
    error = (in_float32(base=base).double() - held).abs()
    assert float((error / spread.clamp_min(1e-30)).max()) < 6.0
    # Nor is far more drawn than such a table is off.
    assert float(spread.square().mean().sqrt()) < 10.0 * float(error.square().mean().sqrt())


class Positions(torch.nn.Module):
    """Token embeddings to which a table is added, and a layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, WIDTH)
        self.register_buffer("table", exact().float())
        self.out = torch.nn.Linear(WIDTH, 50)

    def forward(self, ids: Any) -> Any:
        return self.out(self.embed(ids) + self.table[: ids.shape[1]])


def made() -> Any:
    torch.manual_seed(0)
    return Positions().eval()


@pytest.mark.parametrize(
    ("table", "holds", "wrong"),
    [
        (in_float32(), False, False),
        (in_float32(base=10010.0), False, True),
        (in_float32(POSITIONS + 1)[1:], False, True),
        (in_float32(), True, True),
    ],
    ids=["computed", "another base", "positions from 1", "said to be held"],
)
def test_a_port_that_computes_its_table(tmp_path: Path, table: Any, holds: bool, wrong: bool) -> None:
    """What a port says it holds is judged as it is held."""
    model, ids = made(), torch.arange(TOKENS) * 7 % 50
    with torch.no_grad():
        rows = model.embed(ids)
        entered = rows + table[:TOKENS]
        logits = model.out(entered)
    log = LogWriter(tmp_path / "port.tklog")
    held = [(name, value.shape) for name, value in (*model.named_parameters(), *model.named_buffers())]
    weights = [{"name": name, "dtype": "float32", "shape": list(shape)} for name, shape in held]
    log.open("native", dtype="float32", model={}, weights=[row for row in weights if holds or row["name"] != "table"])
    kinds = (("embed", "Embedding"), ("out:in", "input"), ("out", "Linear"))
    log.sites([{"name": name, "class": kind, "order": order} for order, (name, kind) in enumerate(kinds)])
    log.sequence(0, {"prompt/token_ids": ids.numpy()})
    log.call(0, 0, TOKENS, {"embed": rows.numpy(), "out:in": entered.numpy(), "out": logits.numpy()})
    log.end_sequence(0, 0, "done")
    log.close()
    found = tracekit.audit(tmp_path / "port.tklog", by=tracekit_torch.by_reference(made()))
    assert [culprit.site for culprit in found.culprits] == (["out:in"] if wrong else [])
