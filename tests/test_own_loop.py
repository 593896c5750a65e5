"""A language model in plain PyTorch that is no model of transformers, in a loop of its own."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import tracekit
from tracekit.inspection.sanity import recomputed_from

torch = pytest.importorskip("torch")

import tracekit_torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from tracekit_torch.reference_program.loading import prepared  # noqa: E402

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


def fresh(gain=1.0):
    torch.manual_seed(1)
    model = Port().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.out.weight.data.mul_(gain)
    return model


def by_the_port(make=fresh):
    return tracekit_torch.by_reference(lambda dtype: prepared(make(), dtype), "a port")


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("choose", [largest, drawn])
def test_a_port_without_a_checkpoint_is_within_its_bounds_by_itself(port, tmp_path, cached, choose):
    recorded(tmp_path / "a.h5", port, lambda: generate(port, choose, cached=cached))
    found = tracekit.audit(tmp_path / "a.h5", by=by_the_port())
    assert found.exit_code == 0 and not found.unknown, found.text
    assert {"logits", "out:in", "qkv"} <= found.clean and not found.lost


class Adapted(nn.Module):
    """A port inside another module, as libraries of adapters wrap it: the port alone is what generates."""

    def __init__(self, port):
        super().__init__()
        self.base_model = nn.ModuleDict({"model": port})

    def forward(self, ids):
        return self.base_model["model"](ids) * 2


def test_a_port_is_judged_by_the_part_of_the_reference_that_has_its_names(port, tmp_path):
    recorded(tmp_path / "a.h5", port, lambda: generate(port, largest))
    found = tracekit.audit(tmp_path / "a.h5", by=by_the_port(lambda: Adapted(fresh())))
    assert found.exit_code == 0 and not found.unknown and not found.lost, found.text
    assert {"logits", "out:in", "qkv"} <= found.clean
    wrong = tracekit.audit(tmp_path / "a.h5", by=by_the_port(lambda: Adapted(fresh(1.01))))
    assert [each.site for each in wrong.culprits] == ["out"]


def test_what_a_port_computes_otherwise_is_named_with_its_line(port, tmp_path):
    recorded(tmp_path / "right.h5", port, lambda: generate(port, largest))
    changed = fresh()
    changed.out.register_forward_pre_hook(lambda module, given: (given[0] * 1.01,))
    recorded(tmp_path / "wrong.h5", changed, lambda: generate(changed, largest))
    by = by_the_port()
    found = tracekit.audit(tmp_path / "wrong.h5", by=by)
    assert [each.site for each in found.culprits] == ["out:in"]
    assert "scaled_dot_product_attention" in found.text
    verdict = tracekit.diff(tmp_path / "right.h5", tmp_path / "wrong.h5", by=by)
    assert (verdict.cause, verdict.site, verdict.step) == ("layer", "out:in", 0)
    assert "audited against a port" in verdict.text


def test_other_parameters_than_those_of_the_port_are_weights(port, tmp_path):
    recorded(tmp_path / "a.h5", port, lambda: generate(port, largest))
    found = tracekit.audit(tmp_path / "a.h5", by=by_the_port(lambda: fresh(gain=1.001)))
    assert found.weights == ("out.weight",)


def test_a_fused_attention_is_off_by_more_than_its_result_is_rounded(tmp_path):
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(IDS, 8), nn.Linear(8, 8)

        def forward(self, tokens, begin: int):
            x = self.table(tokens)
            x = functional.scaled_dot_product_attention(x, x, x, is_causal=True, scale=4.0)
            return self.out(x)

    torch.manual_seed(3)
    model = Long().eval()

    def run():
        with torch.no_grad():
            model(torch.randint(IDS, (2, 48)), 0)

    recorded(tmp_path / "a.h5", model, run)
    found = tracekit.audit(
        tmp_path / "a.h5", by=tracekit_torch.by_reference(lambda dtype: prepared(copy.deepcopy(model), dtype))
    )
    assert found.exit_code == 0 and "out:in" in found.clean, found.text


class Narrowing(Port):
    """Looks all ids up, and goes on with those that its cache does not have."""

    keeps = True

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids):
        known = 0 if self.kept is None or not self.keeps else self.kept[0].shape[1]
        x = self.norm((self.table(ids) + self.places(torch.arange(ids.shape[1])))[:, known:])
        q, k, v = self.qkv(x).chunk(3, -1)
        if known:
            k, v = torch.cat([self.kept[0], k], 1), torch.cat([self.kept[1], v], 1)
        self.kept = (k, v)
        mask = torch.ones(q.shape[1], k.shape[1]).tril(known).bool()
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return self.head(x)


def narrowing(keeps=True):
    torch.manual_seed(1)
    model = Narrowing().eval()
    model.keeps = keeps
    return model


@torch.no_grad()
def with_all_ids(model, batch=1):
    ids = torch.tensor([PROMPT] * batch)
    for _ in range(5):
        ids = torch.cat([ids, largest(model(ids)[:, -1])], 1)
    return ids[:, len(PROMPT) :].tolist()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_model_that_goes_on_with_new_positions_has_all_of_them(tmp_path, batch):
    for keeps in (True, False):
        plain = with_all_ids(narrowing(keeps), batch)
        model = narrowing(keeps)
        tokens, trace = recorded(tmp_path / f"{keeps}.h5", model, lambda model=model: with_all_ids(model, batch))
        assert tokens == plain == [sequence.tokens.tolist() for sequence in trace.sequences]
        positions = {data.rows for sequence in trace.sequences for data in sequence.sites.values()}
        assert positions == {len(PROMPT) + 4}
        assert not [site for name, site in trace.sites.items() if name != "places" and (site.partial or site.skipped)]
        # Without a cache every position is computed again, and with one none is.
        assert all((recomputed_from(sequence) is None) == keeps for sequence in trace.sequences)
        found = tracekit.audit(trace, by=by_the_port(narrowing))
        assert found.exit_code == 0 and not found.unknown.keys() - {"places"}, found.text
    verdict = tracekit.diff(tmp_path / "True.h5", tmp_path / "False.h5")
    assert verdict.exit_code == 0 and verdict.coverage.sites.done == verdict.coverage.sites.of


def test_a_cache_that_loses_a_key_is_found_in_a_model_that_goes_on_with_new_positions(tmp_path):
    model = narrowing()
    recorded(tmp_path / "ref.h5", model, lambda: with_all_ids(model))
    other = narrowing()
    other.qkv.register_forward_hook(lambda module, given, out: out * 1.01 if out.shape[1] == 1 else out)
    recorded(tmp_path / "cand.h5", other, lambda: with_all_ids(other))
    verdict = tracekit.diff(tmp_path / "ref.h5", tmp_path / "cand.h5")
    assert (verdict.exit_code, verdict.step, verdict.site) == (1, 1, "qkv")
    assert [each.site for each in tracekit.audit(tmp_path / "cand.h5", by=by_the_port(narrowing)).culprits] == ["qkv"]


def test_keys_that_a_hook_joins_with_the_cached_ones_have_a_row_a_position(tmp_path):
    class Joined(Port):
        def forward(self, ids, start: int = 0):
            x = self.table(ids) + self.places(torch.arange(start, start + ids.shape[1]))
            q, k, v = self.qkv(x).chunk(3, -1)
            mask = torch.ones(ids.shape[1], k.shape[1]).tril(start).bool()
            return self.head(functional.scaled_dot_product_attention(q[:, -ids.shape[1] :], k, v, attn_mask=mask))

    torch.manual_seed(1)
    model, held = Joined().eval(), []

    def joined(module, given, out):
        held[:] = [torch.cat([*held, out], 1)] if given[0].shape[1] == 1 else [out]
        return held[0]

    model.qkv.register_forward_hook(joined)
    plain = generate(model, largest)
    tokens, trace = recorded(tmp_path / "a.h5", model, lambda: generate(model, largest))
    assert tokens == plain and trace[0].sites["qkv"].rows == len(PROMPT) + 4
    assert not [site.name for site in trace.sites.values() if site.partial]


class LastOnly(Port):
    """Makes the logits of one position alone, as ports do while they generate."""

    def __init__(self, of) -> None:
        super().__init__()
        self.of = of
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids):
        x = self.table(ids) + self.places(torch.arange(ids.shape[1]))
        q, k, v = self.qkv(x).chunk(3, -1)
        x = self.norm(x + self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True)))
        return self.head(self.of(x))


def last_only(of):
    torch.manual_seed(1)
    return LastOnly(of).eval()


LAST = [lambda x: x[:, [-1]], lambda x: x[:, -1:], lambda x: x[:, -1]]


def logits_of(path, of, change=None):
    """The audit, by the port itself, of a run of `with_all_ids` of a port that makes the logits `of` one position."""
    model = last_only(of)
    if change is not None:
        model.head.register_forward_hook(change)

    @torch.no_grad()
    def run():
        ids = torch.tensor([PROMPT])
        for _ in range(5):
            ids = torch.cat([ids, model(ids).reshape(1, -1).argmax(-1, keepdim=True)], 1)

    recorded(path, model, run)
    return tracekit.audit(path, by=by_the_port(lambda: last_only(of)))


@pytest.mark.parametrize("of", LAST)
def test_the_logits_of_a_port_that_makes_those_of_the_last_position_are_judged(tmp_path, of):
    found = logits_of(tmp_path / "a.h5", of)
    assert found.exit_code == 0 and "logits" in found.clean and not found.lost, found.text
    found = logits_of(tmp_path / "wrong.h5", of, lambda module, given, out: out * 1.01)
    (culprit,) = found.culprits
    assert culprit.site in ("head", "logits") and "multiplied by 1.01" in found.text, found.text


def test_a_head_that_is_given_another_position_than_the_last_is_not_given_all(tmp_path):
    found = logits_of(tmp_path / "a.h5", lambda x: x[:, :1])
    assert found.exit_code == 2 and "logits" not in found.clean and len(found.lost) == 1, found.text


class Activation(Codes):
    """What a quantised module gives: it is not copied to a plain tensor, and says its numbers."""

    def dequantize(self):
        return self.codes * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is functional.linear:
            return functional.linear(args[0].dequantize(), *args[1:])
        return super(Codes, cls).__torch_function__(func, types, args, kwargs or {})


class Rounded(nn.Linear):
    """A projection that gives codes and a scale, as optimum-quanto's do once they are calibrated."""

    def forward(self, hidden):
        given = super().forward(hidden)
        scale = given.abs().max() / 127
        return Activation((given / scale).round(), scale)


@pytest.mark.parametrize("numbers", [True, False])
def test_activations_that_are_made_of_other_tensors_are_recorded_by_their_numbers(
    tmp_path, capsys, monkeypatch, numbers
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Rounded(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).eval()
    given = torch.randn(1, 3, WIDTH)
    if not numbers:
        monkeypatch.delattr(Activation, "dequantize")
        monkeypatch.setattr(functional, "linear", lambda x, *w: torch.matmul(getattr(x, "codes", x), w[0].t()))
    with torch.no_grad():
        bare = model(given)
        inner = model[0](given)
        with tracekit_torch.record(model, tmp_path / "a.h5"):
            assert torch.equal(model(given), bare)
    assert "recording stopped" not in capsys.readouterr().err
    with tracekit.open(tmp_path / "a.h5") as trace:
        (sequence,) = trace.sequences
        assert ("0" in sequence.sites) == ("1:in" in sequence.sites) == numbers
        if numbers:
            assert np.array_equal(sequence.read("0", 0, 3), (inner.codes * inner.scale)[0].numpy())
        else:
            assert "no plain tensor" in str(sequence.site_table["0"].skipped)
