"""A prompt with masked positions, a batch that is padded on the right: what the mask hides is no fault."""

from __future__ import annotations

import pytest

import tracekit
from tracekit.inspection.masked import places, sees, unmasked

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402

from tests import tiny_families  # noqa: E402

PROMPT = tiny_families.PROMPT[0]
PADS, TOKENS = 3, 5
LENGTH = len(PROMPT)
PADDED = torch.tensor([PROMPT, [*PROMPT[:-PADS], *[0] * PADS]])
MASK = (PADDED != 0).long()
HOLE = torch.ones_like(PADDED).index_put((torch.tensor([1, 1]), torch.tensor([3, 4])), torch.tensor(0))
EXPLAINED = "masked positions of the prompt are attended to"
CORES = [f"model.layers.{layer}.self_attn.o_proj:in" for layer in range(2)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tiny_families.make("llama", tmp_path_factory.mktemp("masked") / "llama")
    return folder, tracekit_torch.by_reference(str(folder))


def looped(model, path, mask, *, counted, forgets=False, chunk=None):
    """A loop of a program's own. `counted`: positions are those that the mask shows; else those of the cache.
    `forgets`: the mask is not given after the prompt."""
    with torch.no_grad(), tracekit_torch.record(model, path):
        cache, token, stands = None, None, mask.cumsum(1) - 1
        chunk = chunk or PADDED.shape[1]
        for first in range(0, PADDED.shape[1], chunk):
            stop = min(first + chunk, PADDED.shape[1])
            more = {"position_ids": stands[:, first:stop]} if counted else {}
            out = model(PADDED[:, first:stop], attention_mask=mask[:, :stop], past_key_values=cache, **more)
            cache = out.past_key_values
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        for _ in range(TOKENS):
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
            more = {"position_ids": mask.sum(1, keepdim=True) - 1} if counted else {}
            more |= {} if forgets else {"attention_mask": mask}
            out = model(token, past_key_values=cache, **more)
            cache, token = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
    return path


def audits(path, folder, by):
    return [tracekit.audit(path, folder), tracekit.audit(path, folder, by=by)]


@pytest.mark.parametrize(
    ("name", "mask", "attention", "counted"),
    [
        ("llama", MASK, "sdpa", True),
        ("llama", MASK, "eager", False),
        ("llama", HOLE, "eager", True),
        ("mistral", HOLE, "eager", False),
        ("gpt2", MASK, "eager", True),
        ("opt", MASK, "eager", False),
    ],
)
def test_what_a_mask_hides_is_no_fault(tmp_path, name, mask, attention, counted):
    folder = tiny_families.make(name, tmp_path / "model")
    path = looped(tiny_families.load(folder, attention), tmp_path / "run.h5", mask, counted=counted)
    for found in audits(path, folder, tracekit_torch.by_reference(str(folder))):
        assert not found.culprits, found.text
    with tracekit.open(path) as trace:
        whole, masked = trace.sequences
        assert unmasked(whole) is None and places(whole) is None
        assert unmasked(masked).tolist() == [*mask[1].bool().tolist(), *[True] * TOKENS]
        assert (places(masked) is not None) == counted


def test_a_prompt_in_chunks_has_the_mask_of_all_of_it(llama, tmp_path):
    folder, by = llama
    path = looped(tiny_families.load(folder), tmp_path / "run.h5", MASK, counted=True, chunk=4)
    for found in audits(path, folder, by):
        assert found.exit_code == 0, found.text


def test_a_single_call_is_judged_with_its_mask(llama, tmp_path):
    folder, by = llama
    model = tiny_families.load(folder)
    with torch.no_grad(), tracekit_torch.record(model, tmp_path / "run.h5"):
        model(PADDED, attention_mask=MASK)
    for found in audits(tmp_path / "run.h5", folder, by):
        assert found.exit_code == 0, found.text


def test_a_model_that_ignores_its_mask_is_named(llama, tmp_path):
    folder, by = llama
    model = tiny_families.load(folder)

    def ignore(_, args, kwargs):
        return args, kwargs | {"attention_mask": None}

    model.model.register_forward_pre_hook(ignore, with_kwargs=True)
    path = looped(model, tmp_path / "run.h5", MASK, counted=True)
    for found in audits(path, folder, by):
        assert [culprit.site for culprit in found.culprits] == CORES
        assert (found.culprits[0].sequence, found.culprits[0].position) == (1, len(PROMPT) - PADS)
    assert EXPLAINED in tracekit.audit(path, folder).text


def test_a_mask_that_decoding_forgets_is_named(llama, tmp_path):
    found = tracekit.audit(
        looped(tiny_families.load(llama[0]), tmp_path / "run.h5", MASK, counted=True, forgets=True), llama[0]
    )
    assert [culprit.site for culprit in found.culprits] == CORES
    assert (found.culprits[0].sequence, found.culprits[0].position) == (1, len(PROMPT))
    assert f"{EXPLAINED}, in decoding alone" in found.text


def test_decoded_positions_that_do_not_go_on_are_named(llama, tmp_path):
    """transformers' `generate` counts from 1 again after padding on the right."""
    model = tiny_families.load(llama[0])
    with torch.no_grad(), tracekit_torch.record(model, tmp_path / "run.h5"):
        model.generate(PADDED, attention_mask=MASK, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    found = tracekit.audit(tmp_path / "run.h5", llama[0])
    assert [culprit.site for culprit in found.culprits] == CORES
    assert (found.culprits[0].sequence, found.culprits[0].position) == (1, len(PROMPT))
    assert "decoded tokens stand 6 positions too early" in found.text


# ---------------------------------------------------------------- masks of four dimensions


def pairs(kind):
    """bool [positions, positions]: which ones each position of the prompt and the generated tokens attends to."""
    seen = torch.ones(LENGTH + TOKENS, LENGTH + TOKENS, dtype=torch.bool).tril()
    if kind == "packed":
        seen[5:, :5] = False
    if kind == "prefix":
        seen[:5, :5] = True
    if kind == "padded":
        seen[:, :2] = False
    return seen


def by_pairs(model, path, seen, *, chunk=LENGTH, added=True, decoding=True, bias=0.0, tokens=TOKENS):
    """A loop that gives a mask of each pair of positions. `added`: what is added to the scores, with a `bias` a
    position, or yes or no; `decoding`: with the generated tokens, too."""

    def mask(first, stop):
        shown = seen[first:stop, :stop][None, None]
        lowest = torch.finfo(torch.float32).min
        return (bias * torch.arange(stop) * torch.ones(shown.shape)).masked_fill(~shown, lowest) if added else shown

    with torch.no_grad(), tracekit_torch.record(model, path):
        cache = None
        for first in range(0, LENGTH, chunk):
            stop = min(first + chunk, LENGTH)
            out = model(torch.tensor([PROMPT[first:stop]]), attention_mask=mask(first, stop), past_key_values=cache)
            cache = out.past_key_values
        for at in range(LENGTH, LENGTH + tokens):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            more = {"attention_mask": mask(at, at + 1)} if decoding else {}
            out = model(token, past_key_values=cache, **more)
            cache = out.past_key_values
    return path


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("llama", "causal", {"added": False}),
        ("llama", "causal", {"chunk": 4}),
        ("llama", "padded", {}),
        ("llama", "packed", {"added": False}),
        ("llama", "packed", {"chunk": 4}),
        ("gpt2", "prefix", {"chunk": 4}),
        ("llama", "prefix", {"decoding": False}),
        ("llama", "packed", {"tokens": 0}),
    ],
)
def test_a_mask_of_pairs_is_no_fault(tmp_path, name, kind, options):
    folder = tiny_families.make(name, tmp_path / "model")
    model = tiny_families.load(folder, "eager" if options.get("added", True) else "sdpa")
    path = by_pairs(model, tmp_path / "run.h5", pairs(kind), **options)
    for found in audits(path, folder, tracekit_torch.by_reference(str(folder))):
        assert found.exit_code == 0, found.text
    with tracekit.open(path) as trace:
        assert (sees(trace.sequences[0]) is not None) == (kind in ("packed", "prefix"))


def test_a_mask_of_pairs_that_decoding_forgets_is_named(llama, tmp_path):
    path = by_pairs(tiny_families.load(llama[0]), tmp_path / "run.h5", pairs("packed"), decoding=False)
    found = tracekit.audit(path, llama[0])
    assert [culprit.site for culprit in found.culprits] == CORES
    assert (found.culprits[0].step, found.culprits[0].position) == (1, LENGTH)
    assert f"{EXPLAINED}, in decoding alone" in found.text


def test_a_mask_of_yes_and_no_that_is_added_to_the_scores_is_named(llama, tmp_path):
    """Eager attention adds what it is given: True hides nothing."""
    path = by_pairs(tiny_families.load(llama[0]), tmp_path / "run.h5", pairs("causal"), added=False)
    found = tracekit.audit(path, llama[0])
    assert [culprit.site for culprit in found.culprits] == CORES


def test_a_window_that_a_mask_of_pairs_does_not_have_is_named(tmp_path):
    """transformers takes it in place of its own, while the prompt is read."""
    folder = tiny_families.make("mistral", tmp_path / "model")
    path = by_pairs(tiny_families.load(folder, "eager"), tmp_path / "run.h5", pairs("causal"), decoding=False)
    found = tracekit.audit(path, folder)
    assert [(culprit.site, culprit.step) for culprit in found.culprits] == [(site, 0) for site in CORES]


def test_a_mask_that_no_trace_holds_is_not_judged(llama, tmp_path):
    folder, by = llama
    path = by_pairs(tiny_families.load(folder, "eager"), tmp_path / "run.h5", pairs("causal"), bias=-0.1)
    for options in ({}, {"by": by}):
        with pytest.raises(tracekit.TraceError, match="from position 0 on, calls were given an attention mask that"):
            tracekit.audit(path, folder, **options)


def test_what_comes_before_such_a_mask_is_judged(llama, tmp_path):
    """Tokens that decoding hides by itself, as a cache does that lets go of the oldest."""
    folder, by = llama
    seen = pairs("causal")
    seen[LENGTH + 2 :, :3] = False
    path = by_pairs(tiny_families.load(folder, "eager"), tmp_path / "run.h5", seen)
    for found in audits(path, folder, by):
        assert not found.culprits and found.clean and found.exit_code == 2
        assert f"from position {LENGTH + 2} on, calls were given an attention mask" in found.text
