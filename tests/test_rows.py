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


class TimeFirst(torch.nn.Module):
    """Its layers have the time first, as fairseq's do."""

    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(9, WIDTH), torch.nn.Linear(WIDTH, 9)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(WIDTH, WIDTH), torch.nn.LayerNorm(WIDTH)])

    def forward(self, ids):
        hidden = self.table(ids).transpose(0, 1)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return self.head(hidden.transpose(0, 1))


@pytest.mark.parametrize(("batch", "time"), [(1, 5), (2, 5), (5, 5)])
def test_layers_that_have_the_time_first_are_recorded_where_their_shape_says_so(tmp_path, batch, time):
    torch.manual_seed(0)
    model = TimeFirst().eval()
    with torch.no_grad(), tracekit_torch.record(model, tmp_path / "run.h5"):
        model(torch.arange(batch * time).reshape(batch, time) % 9)
    trace = tracekit.open(tmp_path / "run.h5")
    stored = {"layers.0", "layers.1:in", "layers.1"} & set(trace[0].sites)
    assert len(stored) == (0 if batch == time else 3)
    found = tracekit.audit(trace, by=tracekit_torch.by_reference(lambda dtype: model.to(getattr(torch, dtype)), "it"))
    assert found.exit_code == 0, found.text
