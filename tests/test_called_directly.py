"""Programs that call `model.forward(ids)`, with a cache that is an object and tables of their own."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tracekit

torch = pytest.importorskip("torch")

import tracekit_torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from tracekit_torch import watch  # noqa: E402
from tracekit_torch.adapters import generate_watch, kinds, speech_watch  # noqa: E402
from tracekit_torch.options import Options  # noqa: E402
from tracekit_torch.recorder import Recorder  # noqa: E402
from tracekit_torch.reference_program.loading import prepared  # noqa: E402
from tracekit_torch.watch import Watch  # noqa: E402

PROMPT = [3, 4, 5, 6, 7, 9]
IDS, WIDTH = 59, 16


@pytest.fixture(autouse=True)
def no_other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the classes and models that other tests have made, none is waited for."""
    monkeypatch.setattr(generate_watch, "_living", list)
    monkeypatch.setattr(watch, "kinds", lambda say: [kind for kind in kinds(say) if kind is not speech_watch.KIND])


class OwnEmbedding(torch.nn.Module):
    """A table that is no nn.Embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64, WIDTH))  # more rows than ids

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids]


class Cache:
    """Keys and values, and how many there are."""

    def __init__(self, rows: int = 1) -> None:
        self.kept = torch.zeros(2, rows, 32, WIDTH)
        self.lengths = torch.zeros(rows, dtype=torch.int32)

    def copied(self, rows: int) -> Cache:
        other = Cache(rows)
        other.kept.copy_(self.kept)
        other.lengths += self.lengths[0]
        return other


class Port(torch.nn.Module):
    """One layer of attention; its head is called `output`, and its logits are those of the ids alone."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = OwnEmbedding()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.wo = torch.nn.Linear(WIDTH, WIDTH)
        self.output = torch.nn.Linear(WIDTH, 64, bias=False)
        self.gain = gain
        self.fails = False

    @torch.inference_mode()
    def forward(self, ids: torch.Tensor, cache: Cache | None = None, masked: bool = True) -> torch.Tensor:
        start = 0 if cache is None else int(cache.lengths[0])
        x = self.table(ids)
        if self.fails:
            raise ArithmeticError("no more")
        query, key, value = self.qkv(x).chunk(3, -1)
        if cache is not None:
            stop = start + ids.shape[1]
            cache.kept[0, :, start:stop], cache.kept[1, :, start:stop] = key, value
            key, value = cache.kept[0, :, :stop], cache.kept[1, :, :stop]
            cache.lengths += ids.shape[1]
        time = ids.shape[1]
        mask = torch.hstack([torch.zeros(time, start), torch.full((time, time), -torch.inf).triu(1)])
        x = x + self.wo((self.gain * query @ key.mT + mask).softmax(-1) @ value)
        return self.output(x)[..., :IDS].float()


def chosen(logits: torch.Tensor) -> torch.Tensor:
    """Drawn among the largest alone, as `topk` and `gather` do it."""
    values, ids = logits.topk(8)
    return ids.gather(1, torch.multinomial(values.softmax(-1), 1))


def generate(model: Port, rows: int = 1, steps: int = 5, *, bound: bool = False) -> list[list[int]]:
    torch.manual_seed(4)
    cache, out = Cache(), []
    taken = model.forward

    def forward(ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        return (taken if bound else model.forward)(ids, cache=cache)

    logits = forward(torch.tensor([PROMPT]), cache=cache)[:, -1].expand(rows, -1)
    cache = cache.copied(rows)
    for _ in range(steps):
        token = chosen(logits)
        out.append(token)
        logits = forward(token, cache=cache)[:, -1]
    return torch.cat(out, 1).tolist()


def watched(path: Path, run: Callable[[], object], module: str | None = None) -> tracekit.Trace:
    """A program's run, recorded as `tracekit record` does."""
    recorder = Recorder(path, Options(), {"argv": ["program.py"], "cwd": "."})
    with recorder.watching(), Watch(recorder, module).installed():
        run()
    recorder.close()
    return tracekit.open(path)


def audit(path: Path) -> tracekit.Audit:
    return tracekit.audit(
        path, by=tracekit_torch.by_reference(lambda dtype: prepared(Port().eval(), dtype), "the port")
    )


@pytest.mark.parametrize("bound", [False, True])
def test_a_model_whose_forward_is_called_is_recorded_from_its_first_call(tmp_path: Path, *, bound: bool) -> None:
    model, forward = Port().eval(), Port.forward
    plain = generate(model)
    made: list[list[list[int]]] = []
    trace = watched(tmp_path / "a.h5", lambda: made.append(generate(model, bound=bound)))
    assert made == [plain] and Port.forward is forward and sys.gettrace() is None
    (sequence,) = trace.sequences
    assert sequence.prompt_ids.tolist() == PROMPT and sequence.tokens.tolist() == plain[0]
    assert sequence.sites["wo"].rows == sequence.sites["output"].rows == len(PROMPT) + 5
    assert not trace.config.get("lost")


def test_what_such_a_program_computes_is_audited_and_a_fault_in_it_named(tmp_path: Path) -> None:
    watched(tmp_path / "clean.h5", lambda: generate(Port().eval()))
    watched(tmp_path / "again.h5", lambda: generate(Port().eval()))
    watched(tmp_path / "fault.h5", lambda: generate(Port(gain=1.01).eval()))
    assert audit(tmp_path / "clean.h5").exit_code == 0
    assert tracekit.diff(tmp_path / "clean.h5", tmp_path / "again.h5").exit_code == 0
    assert audit(tmp_path / "fault.h5").culprits[0].site == "wo:in"
    found = tracekit.diff(tmp_path / "clean.h5", tmp_path / "fault.h5")
    assert found.exit_code == 1 and found.step == 0


def test_a_reference_in_inference_mode_shows_the_products_that_round() -> None:
    seen: set[str] = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Seen():
        prepared(Port().eval(), "float32")(torch.tensor([PROMPT]))
    assert {"mm", "bmm"} <= seen and not {"linear", "matmul"} & seen
    with torch.inference_mode():
        assert torch.is_inference_mode_enabled()


def test_a_prompt_that_is_read_once_for_several_rows_is_in_the_prompt_of_each(tmp_path: Path) -> None:
    made: list[list[list[int]]] = []
    trace = watched(tmp_path / "a.h5", lambda: made.append(generate(Port().eval(), rows=3)))
    prompt, *rows = trace.sequences
    assert prompt.prompt_ids.tolist() == PROMPT and len(rows) == 3
    for row, tokens in zip(rows, made[0], strict=True):
        assert row.prompt_ids.tolist() == [*PROMPT, tokens[0]] and row.tokens.tolist() == tokens[1:]
        assert row.sites["wo"].ranges == ((len(PROMPT), len(PROMPT) + 5),)
    assert audit(tmp_path / "a.h5").exit_code == 0


def test_a_module_inside_a_program_of_another_kind_is_found_as_before(tmp_path: Path) -> None:
    model = Port().eval()

    class Program(torch.nn.Module):
        """Holds no model, and runs one in what is called forward."""

        def forward(self) -> torch.Tensor:
            return model(torch.tensor([PROMPT]))

    trace = watched(tmp_path / "a.h5", lambda: Program().forward())
    assert trace.sequences[0].sites["wo"].rows == len(PROMPT)


def test_a_call_that_fails_and_one_with_its_hooks_are_as_before(tmp_path: Path) -> None:
    model = Port().eval()
    ran: list[str] = []
    model.register_forward_hook(lambda *_: ran.append("hook"))

    def run() -> None:
        model.fails = True
        for _ in range(2):
            with pytest.raises(ArithmeticError):
                model.forward(torch.tensor([PROMPT]))
        model.fails = False
        model.forward(torch.tensor([PROMPT]))
        assert not ran and sys.gettrace() is None
        model(torch.tensor([PROMPT]))
        assert copy.deepcopy(model)(torch.tensor([PROMPT])).shape == (1, len(PROMPT), IDS)
        pickle.loads(pickle.dumps(Port()))

    trace = watched(tmp_path / "a.h5", run)
    assert len(ran) == 2
    whole = [sequence for sequence in trace.sequences if "wo" in sequence.sites]
    assert [sequence.sites["wo"].rows for sequence in whole] == [len(PROMPT)] * 2


def test_a_model_that_is_recorded_already_may_be_called_so(tmp_path: Path) -> None:
    model = Port().eval()
    plain = generate(model)
    with tracekit_torch.record(model, tmp_path / "a.h5"):
        assert generate(model) == plain
    (sequence,) = tracekit.open(tmp_path / "a.h5").sequences
    assert sequence.tokens.tolist() == plain[0]


def test_a_program_under_a_debugger_loses_one_call_and_says_so(tmp_path: Path) -> None:
    model = Port().eval()

    def run() -> None:
        sys.settrace(lambda *_: None)
        try:
            for _ in range(2):
                model.forward(torch.tensor([PROMPT]))
        finally:
            sys.settrace(None)

    trace = watched(tmp_path / "a.h5", run)
    (said,) = trace.config["lost"]
    assert said.startswith("one call or more of Port.forward") and len(trace.sequences) == 1
