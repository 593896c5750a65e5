"""Modules that a program calls by themselves, outside of the plain module that is recorded."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

import tracekit

torch = pytest.importorskip("torch")

from tracekit_torch import watch  # noqa: E402
from tracekit_torch.adapters import any_module  # noqa: E402
from tracekit_torch.options import Options  # noqa: E402
from tracekit_torch.recorder import Recorder  # noqa: E402
from tracekit_torch.watch import Watch  # noqa: E402

IDS = torch.tensor([[1, 2, 3]])


@pytest.fixture(autouse=True)
def no_other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the classes and models that other tests have made, none is waited for."""
    monkeypatch.setattr(watch, "kinds", lambda say: [any_module.KIND])


class Model(torch.nn.Module):
    """With dropout and a head that no call of it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(9, 4)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
        self.dropout = torch.nn.Dropout()
        self.auxiliary = torch.nn.Linear(4, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.by_parts(ids)

    def by_parts(self, ids: torch.Tensor) -> torch.Tensor:
        values = self.embed(ids)
        for layer in self.layers:
            values = self.dropout(layer(values))
        return values


def watched(path: Path, run: Callable[[], object], module: str | None = None) -> tracekit.Trace:
    """A program's run, recorded as `tracekit record` does."""
    recorder = Recorder(path, Options(), {"argv": ["program.py"], "cwd": "."})
    with recorder.watching(), Watch(recorder, module).installed():
        run()
    recorder.close()
    return tracekit.open(path)


def lost(trace: tracekit.Trace) -> list[str]:
    return trace.config.get("lost") or []


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_parts_that_are_called_without_their_model_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model().eval()
    plain = model.by_parts(IDS)
    made: list[torch.Tensor] = []
    trace = watched(tmp_path / "parts.h5", lambda: made.extend(model.by_parts(IDS) for _ in range(2)))
    said = (
        "calls of modules outside of Embedding (Linear first), which the program calls by themselves; choose what to "
        "record with --module"
    )
    assert lost(trace) == [said] and capsys.readouterr().err.count(said) == 1
    verdict = tracekit.diff(trace, trace)
    assert verdict.verdict == "withheld" and f"parts.h5: not recorded: {said}" in str(verdict)
    assert all(torch.equal(each, plain) for each in made) and hooks_of(model) == 0


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_is_called_as_a_whole_lacks_nothing(tmp_path: Path, training: bool) -> None:
    model, other = Model().train(training), Model()
    assert lost(watched(tmp_path / "whole.h5", lambda: model(IDS))) == []
    assert hooks_of(model) + hooks_of(other) == 0


def test_what_was_chosen_is_recorded_without_a_word(tmp_path: Path) -> None:
    model = Model().eval()
    assert lost(watched(tmp_path / "chosen.h5", lambda: model.by_parts(IDS), "Embedding")) == []


def test_a_part_that_runs_after_the_model_and_never_in_it_is_said(tmp_path: Path) -> None:
    model, head = Model().eval(), torch.nn.Linear(4, 2)
    (said,) = lost(watched(tmp_path / "head.h5", lambda: head(model(IDS))))
    assert "outside of Model (Linear first)" in said


def test_a_part_that_is_made_later_is_said_at_the_next_call(tmp_path: Path) -> None:
    model = Model().eval()
    half_made = Model.__new__(Model)

    def run() -> None:
        model(IDS)
        head = torch.nn.Linear(4, 2)
        for _ in range(2):
            head(model(IDS))

    (said,) = lost(watched(tmp_path / "later.h5", run))
    assert "(Linear first)" in said and half_made is not None


def test_a_model_that_holds_the_recorded_one_is_said_by_what_else_it_calls(tmp_path: Path) -> None:
    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.head = Model().eval(), torch.nn.Linear(4, 9)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.model(ids))

    whole = Whole()
    assert lost(watched(tmp_path / "whole.h5", lambda: whole(IDS))) == []
    (said,) = lost(watched(tmp_path / "part.h5", lambda: (whole.model(IDS), whole(IDS))))
    assert "outside of Model (Linear first)" in said


def test_what_is_copied_compiled_or_scripted_meanwhile_is_as_before(tmp_path: Path, recwarn) -> None:
    model, other = Model().eval(), torch.nn.Linear(4, 4)
    plain = other(torch.ones(2, 4))
    made: list[torch.Tensor] = []

    def run() -> None:
        model(IDS)
        again = copy.deepcopy(other)
        pickle.loads(pickle.dumps(other))
        torch.jit.script(other)
        made.append(again(torch.ones(2, 4)))
        made.append(torch.compile(other, backend="eager")(torch.ones(2, 4)))

    trace = watched(tmp_path / "run.h5", run)
    assert all(torch.equal(each, plain) for each in made) and len(made) == 2
    assert not [each for each in recwarn if "hook" in str(each.message)]
    assert trace.sequences and hooks_of(other) == 0


def test_attention_of_torchs_own_takes_the_way_that_it_takes(tmp_path: Path) -> None:
    """Its fused way is not taken where a hook is on it or in it, and rounds otherwise."""
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    first = Model().eval()
    seen: list[int] = []
    watched(tmp_path / "run.h5", lambda: (first(IDS), seen.append(hooks_of(layer))))
    assert seen == [0]
