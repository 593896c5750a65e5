"""Loops of a program's own that take positions of the cache back, or go on with a cache that something else filled."""

from __future__ import annotations

import pytest

import tracekit

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402

from tests import tiny_families  # noqa: E402

PROMPT = tiny_families.PROMPT[0]
TOKENS = 8


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tiny_families.make("llama", tmp_path_factory.mktemp("rewound") / "llama")
    return folder, tracekit_torch.by_reference(str(folder))


def crop(cache, length):
    if cache.get_seq_length() > length:
        try:
            cache.crop(length - cache.get_seq_length())
        except ValueError:  # before transformers 5.24, the length that is left
            cache.crop(length)


def speculated(model):
    """Speculative decoding by hand: two tokens are guessed, and what the model would not have chosen is taken back."""
    ids, cache, done = list(PROMPT), None, 0
    while len(ids) < len(PROMPT) + TOKENS:
        guessed = [(ids[-1] * 7 + 3) % 97, (ids[-1] * 5 + 1) % 97]
        out = model(torch.tensor([[*ids[done:], *guessed]]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        chosen = out.logits[0, len(ids) - done - 1 :].argmax(-1).tolist()
        taken = next((count for count, guess in enumerate(guessed) if guess != chosen[count]), len(guessed)) + 1
        done = len(ids) + taken - 1
        ids += chosen[:taken]
        crop(cache, done)
    return ids


def after_another(model):
    """A loop that goes on with the cache of a model that was not recorded."""
    other = transformers.AutoModelForCausalLM.from_pretrained(model.name_or_path, attn_implementation="eager")
    cache = other(torch.tensor([PROMPT[:-1]]), use_cache=True).past_key_values
    token, tokens = torch.tensor([PROMPT[-1:]]), []
    for _ in range(TOKENS):
        out = model(token, past_key_values=cache, use_cache=True)
        cache, token = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(int(token))
    return tokens


def recorded(folder, path, run):
    model = tiny_families.load(folder, "eager")
    with torch.no_grad():
        plain = run(model)
        with tracekit_torch.record(model, path):
            assert run(model) == plain
    return tracekit.open(path), plain


def test_each_round_stands_where_it_does(llama, tmp_path):
    folder, by = llama
    trace, ids = recorded(folder, tmp_path / "run.h5", speculated)
    for sequence in trace.sequences:
        prompt = sequence.prompt_ids.tolist()
        assert prompt[: len(ids)][:-2] == ids[: len(prompt)][:-2]  # but for what was guessed wrong
        assert sequence.sites["model.norm"].ranges[0][1] == len(prompt)
        assert not sequence.step_count or sequence.step(0).position == len(prompt) - 1
    for options in ({}, {"by": by}):
        assert not tracekit.audit(trace, folder, **options).culprits
    again, _ = recorded(folder, tmp_path / "again.h5", speculated)
    assert tracekit.diff(trace, again).verdict in ("parity", "withheld")


def test_a_loop_on_a_cache_of_another_has_its_steps_and_positions(llama, tmp_path):
    folder, by = llama
    trace, tokens = recorded(folder, tmp_path / "run.h5", after_another)
    (sequence,) = trace.sequences
    assert sequence.tokens.tolist() == tokens
    assert sequence.step(0).position == len(PROMPT) - 1
    assert sequence.prompt_ids.tolist() == [-1] * (len(PROMPT) - 1) + PROMPT[-1:]
    assert not tracekit.audit(trace, folder).culprits
    with pytest.raises(tracekit.TraceError, match="position 0 of its input is no token's embedding"):
        tracekit.audit(trace, folder, by=by)
