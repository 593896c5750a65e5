"""What a plain PyTorch port is given beside its ids, and what the reference is given of it."""

from __future__ import annotations

import functools
import inspect
import math
from functools import partial

import pytest

import tracekit

torch = pytest.importorskip("torch")

import tracekit_torch  # noqa: E402
from torch import nn  # noqa: E402
from tracekit_torch.named_arguments import in_place, parameters_of  # noqa: E402
from tracekit_torch.reference_program.loading import prepared  # noqa: E402

from tests import tiny_families  # noqa: E402

PROMPT = [3, 4, 5, 6, 7, 9]
IDS, WIDTH = 61, 16


class Port(nn.Module):
    """Attention that is causal where it is given a mask, of positions that it is told."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.places = nn.Embedding(IDS, WIDTH), nn.Embedding(64, WIDTH)
        self.qkv, self.wo = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, IDS, bias=False)
        self.gain = gain

    def forward(self, ids, places=None, mask=None, scale: float = 1.0, extra=None):
        x = self.table(ids)
        x = x if places is None else x + self.places(places)
        query, key, value = self.qkv(x).chunk(3, -1)
        scores = self.gain * scale * query @ key.mT
        if mask is not None:
            scores = scores + mask if mask.is_floating_point() else scores.masked_fill(mask == 0, -math.inf)
        x = x + self.wo(scores.softmax(-1) @ value)
        return self.head(x if extra is None else x + extra)


def ones(time):
    return torch.ones(time, time, dtype=torch.int64).tril()


def bias(time):
    return torch.full((1, time, time), -math.inf).triu(1)


def whole(time):
    return torch.tril(torch.ones(time, time, dtype=torch.bool))


@torch.no_grad()
def generate(model, mask, axes=1, extra=None):
    ids = torch.tensor([PROMPT])
    for _ in range(4):
        time = ids.shape[1]
        places = torch.arange(time) if axes == 1 else torch.arange(time)[None]
        more = None if extra is None else extra(time)
        logits = model(ids, places, mask(time), scale=0.7, extra=more)[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)


def audited(path, **given):
    gain = given.pop("gain", 1.0)
    model = Port(gain).eval()
    with tracekit_torch.record(model, path):
        generate(model, **given)
    return tracekit.audit(path, by=tracekit_torch.by_reference(partial(prepared, Port().eval()), "the port"))


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("mask", [ones, bias, whole])
def test_positions_a_mask_and_a_number_that_the_calls_were_given_are_given_again(tmp_path, mask, axes):
    found = audited(tmp_path / "a.h5", mask=mask, axes=axes)
    assert found.exit_code == 0 and not found.culprits and "logits" not in found.unknown


class Loose(Port):
    """The same, which takes its places in `*rest` and the mask in `**named`."""

    def forward(self, ids, *rest, **named):
        return super().forward(ids, *rest, **named)


@pytest.mark.parametrize(("gain", "named"), [(1.0, set()), (1.01, {"wo:in"})])
def test_what_an_open_list_of_arguments_took_is_given_again(tmp_path, gain, named):
    model = Loose(gain).eval()
    with tracekit_torch.record(model, tmp_path / "a.h5"), torch.no_grad():
        ids = torch.tensor([PROMPT])
        for _ in range(4):
            time = ids.shape[1]
            logits = model(ids, torch.arange(time), bias(time), scale=0.7)[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    by = tracekit_torch.by_reference(partial(prepared, Loose().eval()), "the port")
    found = tracekit.audit(tmp_path / "a.h5", by=by)
    assert {culprit.site for culprit in found.culprits} == named and "logits" not in found.unknown, found.text


def test_a_fault_beside_such_arguments_is_named(tmp_path):
    assert audited(tmp_path / "a.h5", mask=bias, gain=1.01).culprits[0].site == "wo:in"


def test_what_cannot_be_given_again_is_said_and_nothing_judged(tmp_path):
    with pytest.raises(tracekit.TraceError, match="were given as extra is not recorded"):
        audited(
            tmp_path / "a.h5", mask=ones, extra=lambda time: torch.linspace(0.0, 1.0, time * WIDTH).view(time, WIDTH)
        )


def test_a_reference_that_asserts_its_own_dtype_is_said_in_one_line(tmp_path):
    class Strict(Port):
        def forward(self, ids, *args, **kwargs):
            assert self.head.weight.dtype == torch.float32, "float32 only"
            return super().forward(ids, *args, **kwargs)

    model = Strict().eval()
    with tracekit_torch.record(model, tmp_path / "a.h5"):
        generate(model, ones)
    with pytest.raises(tracekit.TraceError, match="float32 only"):
        tracekit.audit(tmp_path / "a.h5", by=tracekit_torch.by_reference(partial(prepared, Strict().eval()), "it"))


ROOM = 16
"""Positions that a static cache has room for."""


class Static(Port):
    """The same with a cache of a fixed length, as torchtune's models have once their caches are set up: a call's mask
    is over all of it."""

    cache = None

    def forward(self, ids, places, mask=None):
        if self.cache is None:
            return super().forward(ids, places, mask)
        query, key, value = self.qkv(x := self.table(ids) + self.places(places)).chunk(3, -1)
        self.cache[0][:, places], self.cache[1][:, places] = key, value
        scores = (self.gain * query @ self.cache[0].mT).masked_fill(mask == 0, -math.inf)
        return self.head(x + self.wo(scores.softmax(-1) @ self.cache[1]))


def with_a_static_cache(path, mask, gain=1.0):
    model = Static(gain).eval()
    model.cache = torch.zeros(2, 1, ROOM, WIDTH)
    with tracekit_torch.record(model, path), torch.no_grad():
        ids, time = torch.tensor([PROMPT]), 0
        for _ in range(4):
            time, first = time + ids.shape[1], time
            ids = model(ids, torch.arange(first, time), mask[:, first:time])[:, -1].argmax(-1, keepdim=True)
    return tracekit.audit(path, by=tracekit_torch.by_reference(partial(prepared, Static().eval()), "the port"))


def over_the_room(hidden=()):
    mask = torch.ones(1, ROOM, ROOM, dtype=torch.bool).tril()
    for query, key in hidden:
        mask[:, query, key] = False
    return mask


@pytest.mark.parametrize("hidden", [(), [(7, 2)]], ids=["causal", "one key hidden later"])
@pytest.mark.parametrize("gain", [1.0, 1.01])
def test_a_causal_mask_over_what_a_cache_has_room_for_is_given_again(tmp_path, gain, hidden):
    found = with_a_static_cache(tmp_path / "a.h5", over_the_room(hidden), gain)
    assert [culprit.site for culprit in found.culprits] == (["wo:in"] if hidden or gain != 1.0 else [])
    assert "logits" not in found.unknown


def test_a_mask_over_that_room_that_hides_more_is_said(tmp_path):
    with pytest.raises(tracekit.TraceError, match="were given as mask is not recorded"):
        with_a_static_cache(tmp_path / "a.h5", over_the_room([(3, 1)]))


def test_places_that_no_call_has_are_not_made():
    """Names come from a file."""
    parameters = [*inspect.signature(Loose.forward).parameters.values()][1:]
    assert in_place(parameters, {"rest[1]": 5}, skipped=1) == ([None, 5], {})
    absurd = {"rest[99999999]": 5, "rest[-1]": 6, "rest[x]": 7}
    assert in_place(parameters, absurd, skipped=1) == ([], absurd)


class HandsOn:
    """In the place of a module's `forward`, with the signature of its class's, as nnsight's is."""

    def __init__(self, module):
        functools.update_wrapper(self, type(module).forward)
        self.module = module

    def __call__(self, *args, **kwargs):
        return type(self.module).forward(self.module, *args, **kwargs)


def takes_anything(module):
    """As a function that a program puts there, which says nothing of what it takes."""
    return lambda *args, **kwargs: type(module).forward(module, *args, **kwargs)


def other_names(module):
    """With parameters of its own, which are what its calls mean."""
    return lambda tokens, places: type(module).forward(module, tokens, places)


@pytest.mark.parametrize("in_its_place", [HandsOn, takes_anything])
def test_what_a_call_is_given_in_place_is_known_where_another_forward_hands_it_on(tmp_path, in_its_place):
    llama = tiny_families.load(tiny_families.make("llama", tmp_path / "llama"))
    for name, model, more in (("port", Port(), (torch.arange(6)[None],)), ("llama", llama, ())):
        for kind in ("own", "handed"):
            if kind == "handed":
                model.forward = in_its_place(model)
            with torch.no_grad(), tracekit_torch.record(model, tmp_path / f"{kind}.h5"):
                model(torch.tensor([PROMPT]), *more)
        verdict = tracekit.diff(tmp_path / "own.h5", tmp_path / "handed.h5")
        assert verdict.exit_code == 0, (name, verdict)
        sequence = tracekit.open(tmp_path / "handed.h5")[0]
        assert sequence.prompt_ids.tolist() == PROMPT, name


def test_a_forward_with_parameters_of_its_own_says_what_its_calls_take():
    model = Port()
    model.forward = other_names(model)
    assert list(parameters_of(model)) == ["tokens", "places"]
