"""Which dimensions of a tensor are its rows, where there are as many heads as positions and the shape does not say."""

from __future__ import annotations

import pytest

import tracekit

torch = pytest.importorskip("torch")

import tracekit_torch  # noqa: E402
from tracekit_torch.rows import Axis, arranged  # noqa: E402

HEADS, WIDTH = 4, 8


def projected():
    """[1, positions, heads * width]"""
    return torch.arange(HEADS * HEADS * WIDTH, dtype=torch.float32).reshape(1, HEADS, HEADS * WIDTH)


def convolved():
    """The same numbers, as a convolution over the positions leaves them in memory."""
    return projected().mT.contiguous().mT


@pytest.mark.parametrize("made", [projected, convolved])
@pytest.mark.parametrize("moved", [False, True])
def test_rows_are_positions(made, moved):
    value = made().view(1, HEADS, HEADS, WIDTH)
    value = value.transpose(1, 2) if moved else value
    rows = arranged(Axis(1, HEADS, HEADS), value, None)
    assert rows is not None
    assert torch.equal(rows.reshape(HEADS, -1), projected()[0])


def test_rows_without_numbers_do_not_end_the_recording(tmp_path):
    """What is chosen among compressed positions, while there are none."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 0), torch.nn.Linear(0, 4))
    with torch.no_grad(), tracekit_torch.record(model, tmp_path / "run.h5"):
        model(torch.ones(1, 3, 4))
    with tracekit.open(tmp_path / "run.h5") as trace:
        assert trace.status == "complete"
        assert "1" not in trace.sequences[0].sites and {"0", "2"} <= trace.sequences[0].sites.keys()
