"""A language model in plain PyTorch that is no model of transformers, in a loop of its own."""

from __future__ import annotations

import numpy as np
import pytest

import tracekit

torch = pytest.importorskip("torch")

import tracekit_torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

PROMPT = [3, 4, 5, 6, 7, 9]
IDS, WIDTH = 61, 16


class Port(nn.Module):
    """One layer of attention with a cache inside, as ports have it: `forward(ids, start)` gives logits."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(IDS, WIDTH)
        self.places = nn.Embedding(64, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, IDS, bias=False)
        self.kept = None
        self.forgets = False
        self.crops = False
        """Is given all ids, and computes those that its cache does not have."""

    def forward(self, ids, start: int = 0, last_only: bool = False):
        if self.crops and self.kept is not None:
            start = self.kept[0].shape[1]
            ids = ids[:, start:]
        x = self.table(ids) + self.places(torch.arange(start, start + ids.shape[1]))
        q, k, v = self.qkv(x).chunk(3, -1)
        if start:
            k, v = torch.cat([self.kept[0], k], 1), torch.cat([self.kept[1], v], 1)
        self.kept = (k, v)
        if self.forgets and not start:
            self.kept = (k, torch.cat([0 * v[:, :3], v[:, 3:]], 1))  # seen while decoding alone
        mask = torch.ones(ids.shape[1], k.shape[1]).tril(start).bool()
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return self.head(x[:, -1:] if last_only else x)


@pytest.fixture
def port():
    torch.manual_seed(1)
    model = Port().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


def largest(logits):
    return logits.argmax(-1, keepdim=True)


def drawn(logits):
    return torch.multinomial(logits.softmax(-1), 1)


def drawn_elsewhere(logits):
    return torch.tensor([[int(np.argsort(logits[0].numpy())[-3])]])


@torch.no_grad()
def generate(model, choose, *, cached=True, steps=5, prompt=PROMPT, batch=1, **arguments):
    torch.manual_seed(4)
    ids = torch.tensor([prompt] * batch)
    fed, start = ids, 0
    for _ in range(steps):
        logits = model(fed, start, **arguments)[:, -1]
        token = choose(logits)
        ids = torch.cat([ids, token], 1)
        start, fed = (ids.shape[1] - 1, token) if cached else (0, ids)
    return ids[:, len(prompt) :].tolist()


def recorded(path, model, run, **options):
    with tracekit_torch.record(model, path, **options):
        result = run()
    return result, tracekit.open(path)


@pytest.mark.parametrize("choose", [largest, drawn])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_port_in_its_own_loop_has_steps(port, tmp_path, choose, cached, batch):
    plain = generate(port, choose, cached=cached, batch=batch)
    tokens, trace = recorded(tmp_path / "a.h5", port, lambda: generate(port, choose, cached=cached, batch=batch))
    assert tokens == plain
    assert [sequence.tokens.tolist() for sequence in trace.sequences] == tokens
    for sequence in trace.sequences:
        assert sequence.prompt_ids.tolist() == PROMPT
        assert sequence.sites["out"].rows == len(PROMPT) + 4
        assert sequence.step(2).logits.shape == (IDS,)
        assert bool(sequence.step(2).draws) == (choose is drawn)


@pytest.mark.parametrize("choose", [largest, drawn])
def test_with_and_without_a_cache_is_parity_and_a_lost_key_is_not(port, tmp_path, choose):
    recorded(tmp_path / "ref.h5", port, lambda: generate(port, choose, cached=False))
    recorded(tmp_path / "cached.h5", port, lambda: generate(port, choose))
    port.forgets = True
    recorded(tmp_path / "forgets.h5", port, lambda: generate(port, choose))
    verdict = tracekit.diff(tmp_path / "ref.h5", tmp_path / "cached.h5")
    assert verdict.exit_code == 0 and verdict.coverage.steps.done == 5
    verdict = tracekit.diff(tmp_path / "ref.h5", tmp_path / "forgets.h5")
    assert verdict.exit_code == 1 and verdict.step == 1


def test_a_token_that_was_drawn_elsewhere_is_said(port, tmp_path, capfd):
    plain = generate(port, drawn_elsewhere)
    tokens, trace = recorded(tmp_path / "a.h5", port, lambda: generate(port, drawn_elsewhere))
    assert tokens == plain
    (sequence,) = trace.sequences
    # The last one is not fed to any call: nobody knows that it was chosen.
    assert sequence.tokens.tolist() == tokens[0][:-1] and sequence.end_reason == "done"
    assert "was not seen" in capfd.readouterr().err


def test_without_a_position_a_single_token_goes_on_only_if_it_was_chosen(tmp_path):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, IDS)).eval()

    def run():
        with torch.no_grad():
            first = largest(model(torch.tensor([PROMPT]))[:, -1])
            second = largest(model(first)[:, -1])
            other = (second + 1) % IDS
            model(other)

    _, trace = recorded(tmp_path / "a.h5", model, run)
    assert [sequence.step_count for sequence in trace.sequences] == [2, 0]


def test_calls_that_are_no_generation_stay_calls(tmp_path):
    torch.manual_seed(2)
    encoder = nn.Sequential(nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, WIDTH)).eval()

    def run():
        with torch.no_grad():
            for length in (3, 4, 5, 1, 1):
                encoder(torch.tensor([PROMPT[:length]]))

    _, trace = recorded(tmp_path / "a.h5", encoder, run)
    assert [sequence.step_count for sequence in trace.sequences] == [0] * 5
    assert [sequence.sites["1"].rows for sequence in trace.sequences] == [3, 4, 5, 1, 1]
    assert {sequence.end_reason for sequence in trace.sequences} == {"done"}


def test_a_port_follows_another_trace(port, tmp_path):
    _, reference = recorded(tmp_path / "ref.h5", port, lambda: generate(port, largest))
    port.head.weight.data.neg_()
    tokens, trace = recorded(tmp_path / "a.h5", port, lambda: generate(port, largest), follow=tmp_path / "ref.h5")
    assert trace.sequences[0].tokens.tolist() == reference.sequences[0].tokens.tolist() == tokens[0]


def test_a_generation_in_single_calls_is_no_parity(port, tmp_path):
    """The prompt's call alone has a partner: what the other calls compute is compared with nothing."""
    recorded(tmp_path / "ref.h5", port, lambda: generate(port, largest))

    class Calls(nn.Module):
        """Takes embeddings, so that nothing tells a generation."""

        def __init__(self):
            super().__init__()
            self.port = port

        def forward(self, rows, ids, start):
            return self.port(ids, start)

    calls = Calls()

    def run():
        port_call = calls.port
        with torch.no_grad():
            fed, start = torch.tensor([PROMPT]), 0
            for _ in range(5):
                logits = calls(port_call.table.weight[fed], fed, start)
                start += fed.shape[1]
                fed = logits[:, -1].argmax(-1, keepdim=True)

    _, trace = recorded(tmp_path / "calls.h5", calls, run)
    assert [sequence.step_count for sequence in trace.sequences] == [0] * 5
    for one, other in (("ref", "calls"), ("calls", "ref")):
        verdict = tracekit.diff(tmp_path / f"{one}.h5", tmp_path / f"{other}.h5")
        assert verdict.exit_code != 0, str(verdict)


def test_a_model_whose_parts_alone_are_called_is_said(port, tmp_path, capfd):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.port = port

    with tracekit_torch.record(Wrapper(), tmp_path / "a.h5"):
        generate(port, largest)
    assert "Wrapper was not called inside the block" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batch", [1, 2])
def test_a_port_that_is_given_all_ids_and_computes_the_last_is_recorded_at_each(port, tmp_path, batch):
    """No position of the decoded tokens is lost."""
    recorded(tmp_path / "ref.h5", port, lambda: generate(port, largest, cached=False, batch=batch))
    port.crops, port.kept = True, None
    _, trace = recorded(tmp_path / "a.h5", port, lambda: generate(port, largest, cached=False, batch=batch))
    assert [sequence.sites["out"].rows for sequence in trace.sequences] == [len(PROMPT) + 4] * batch
    verdict = tracekit.diff(tmp_path / "ref.h5", tmp_path / "a.h5")
    assert verdict.exit_code == 0 and verdict.coverage.skipped.keys() <= {"places"}  # [time, width], without the batch
    port.kept = None
    port.qkv.register_forward_hook(lambda _, args, out: out * 1.001 if args[0].shape[1] == 1 else None)
    recorded(tmp_path / "b.h5", port, lambda: generate(port, largest, cached=False, batch=batch))
    verdict = tracekit.diff(tmp_path / "ref.h5", tmp_path / "b.h5")
    assert verdict.exit_code == 1 and verdict.step == 1


class Codes(torch.Tensor):
    """A weight made of codes and a scale, as torchao's are: it has no memory of its own, and knows no other use."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes, scale) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Codes(inner["codes"], inner["scale"])

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is functional.linear:
            return functional.linear(args[0], args[1].codes * args[1].scale, *args[2:])
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return Codes(args[0].codes, args[0].scale)
        raise NotImplementedError(f"{func} of {cls.__name__}")


def coded(seed: int, changed: bool = False):
    """A port whose projections hold codes."""
    torch.manual_seed(seed)
    model = Port().eval()
    for part in (model.qkv, model.out):
        codes = (part.weight.data * 200).round().to(torch.int8)
        codes[0, 0] += 1 if changed and part is model.out else 0
        part.weight = nn.Parameter(Codes(codes, torch.tensor(1 / 200.0)), requires_grad=False)
    return model


def test_weights_that_are_made_of_other_tensors_are_recorded_by_those(tmp_path) -> None:
    def answer(model):
        with torch.no_grad():
            return model(torch.tensor([PROMPT]))

    bare = answer(coded(0))
    for name, changed in (("one", False), ("two", False), ("off", True)):
        model = coded(0, changed)
        with tracekit_torch.record(model, tmp_path / f"{name}.h5"):
            recorded = answer(model)
        assert changed or torch.equal(recorded, bare)
    with tracekit.open(tmp_path / "one.h5") as trace:
        assert "out.weight" not in trace.weights
        held = {
            name: trace.weights[f"{module}.weight.{name}"] for module in ("qkv", "out") for name in ("codes", "scale")
        }
        assert (held["codes"].dtype, held["codes"].shape) == ("int8", (WIDTH, WIDTH))
        assert all(weight.digest is not None for weight in held.values())
        codes = {trace.weights[f"{module}.weight.codes"].digest for module in ("qkv", "out")}
        assert len(codes) == 2
    assert tracekit.diff(tmp_path / "one.h5", tmp_path / "two.h5").verdict == "parity"
    off = tracekit.diff(tmp_path / "one.h5", tmp_path / "off.h5")
    assert (off.verdict, off.site) == ("divergence", "out")
