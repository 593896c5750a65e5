"""The PyTorch recorder: the recorded run is the run, and what is recorded is what happened."""

from __future__ import annotations

import numpy as np
import pytest

import tracekit
from tracekit.dtypes import to_float
from tracekit.torch_rng.generator import TorchGenerator
from tracekit.trace import TraceError, resolve

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from tracekit_torch.adapters import causal_calls  # noqa: E402
from tracekit_torch.recorder import Recorder  # noqa: E402

PROMPTS = ["The history", "The brothers drew a line in the", "Rome"]


def tiny_model(family: str):
    """Two layers of seeded random weights, peaked enough that greedy and sampled tokens differ."""
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(
        family,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=262,
        max_position_embeddings=128,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
        initializer_range=0.3,
        tie_word_embeddings=family == "llama",
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def byte_tokenizer():
    """A token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {text: index for index, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocabulary | {"<s>": 256, "</s>": 257, "<pad>": 258}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")


@pytest.fixture(scope="module")
def batch(tokenizer):
    return tokenizer(PROMPTS, return_tensors="pt", padding=True)


SAMPLING = {"do_sample": True, "temperature": 0.9, "top_k": 40, "top_p": 0.9}
WAYS = {
    "greedy": {"do_sample": False},
    "sampling": SAMPLING,
    "repetition": SAMPLING | {"repetition_penalty": 1.3, "min_p": 0.01},
    "returns": SAMPLING | {"num_return_sequences": 2},
    "chunks": SAMPLING | {"prefill_chunk_size": 3},
    "static": SAMPLING | {"cache_implementation": "static"},
    "uncached": SAMPLING | {"use_cache": False},
}


def generate(model, batch, rows=3, seed=11, tokens=9, **settings):
    torch.manual_seed(seed)
    inputs = {name: value[:rows] for name, value in batch.items()}
    return model.generate(**inputs, max_new_tokens=tokens, **settings)


def record(path, model, batch, *, options=None, **settings):
    with tracekit_torch.record(model, path, **(options or {})):
        result = generate(model, batch, **settings)
    return result, tracekit.open(path)


def continuations(result, batch, copies=1):
    start = batch["input_ids"].shape[1]
    return [row[start:].tolist() for row in result]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_recording_changes_neither_tokens_nor_generator(tmp_path, model, batch, way, rows):
    plain = generate(model, batch, rows=rows, **WAYS[way])
    state = torch.get_rng_state()
    recorded, trace = record(tmp_path / "run.h5", model, batch, rows=rows, **WAYS[way])
    assert torch.equal(plain, recorded)
    assert torch.equal(state, torch.get_rng_state())
    eos = model.generation_config.eos_token_id
    assert trace.status == "complete" and len(trace.sequences) == len(recorded)
    for sequence, row in zip(trace.sequences, continuations(recorded, batch), strict=True):
        end = row.index(eos) + 1 if eos in row else len(row)
        assert sequence.tokens.tolist() == row[:end]
        assert sequence.end_reason == ("stop" if eos in row else "length")
        # The last token is never fed.
        assert sequence.positions == len(sequence.prompt_ids) + sequence.step_count - 1
        assert {data.ranges for data in sequence.sites.values()} == {((0, sequence.positions),)}


def test_a_padded_row_holds_what_it_holds_alone(tmp_path, model, tokenizer, batch):
    _, trace = record(tmp_path / "batch.h5", model, batch, **SAMPLING)
    for index, prompt in enumerate(PROMPTS):
        of_batch = trace.sequences[index]
        alone = tokenizer(prompt, return_tensors="pt")
        assert of_batch.prompt_ids.tolist() == alone["input_ids"][0].tolist()
        assert of_batch.prompt_text == prompt
        assert of_batch.step(0).position == len(of_batch.prompt_ids) - 1
        assert of_batch.info["row"] == index
        whole = torch.cat([alone["input_ids"][0], torch.tensor(of_batch.tokens[:-1])])[None]
        with tracekit_torch.record(model, tmp_path / "alone.h5"):
            model(whole)
        single = tracekit.open(tmp_path / "alone.h5").sequences[0]
        for name in of_batch.sites:
            ours, theirs = (sequence.read(name, 0, of_batch.positions) for sequence in (of_batch, single))
            # float32 sums in another order; values are of order 1 to 10.
            np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-4, err_msg=name)
        rows = single.read("lm_head", len(of_batch.prompt_ids) - 1, of_batch.positions)
        np.testing.assert_allclose(of_batch.logits(0, of_batch.step_count), rows, atol=2e-5, rtol=1e-4)


def test_values_are_those_that_plain_hooks_see(tmp_path, model, batch):
    kept = {}

    def hook(name):
        def keep(_, args, output):
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, torch.Tensor):
                kept.setdefault(name, []).append(value.detach().clone())

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    generate(model, batch, rows=1, **SAMPLING)
    for handle in handles:
        handle.remove()
    _, trace = record(tmp_path / "run.h5", model, batch, rows=1, **SAMPLING)
    sequence = trace.sequences[0]
    padding = int((batch["attention_mask"][0] == 0).sum())
    compared = 0
    for name, calls in kept.items():
        if name == "lm_head" or next(model.get_submodule(name).parameters(), None) is None:
            continue
        stored = resolve(trace, name)
        expected = torch.cat([call[0] for call in calls]).numpy()[padding:]
        assert np.array_equal(sequence.read(stored, 0, sequence.positions), expected), name
        compared += 1
    assert compared > 20
    heads = torch.cat([call[0, -1:] for call in kept["lm_head"]]).numpy()
    assert np.array_equal(sequence.logits(0, sequence.step_count), heads)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_every_linear_and_norm_has_its_input_by_the_wiring(tmp_path, model, batch, mode):
    with getattr(torch, mode)():
        _, trace = record(tmp_path / "run.h5", model, batch, rows=1, **SAMPLING)
    sequence = trace.sequences[0]
    checked = 0
    for site in trace.sites.values():
        if site.module_class != "Linear":
            continue
        stored = resolve(trace, f"{site.name}:in")
        given = torch.tensor(sequence.read(stored, 0, sequence.positions))
        computed = model.get_submodule(site.name)(given).detach().numpy()
        if site.name == "lm_head":
            assert site.recorded_as == "logits" and site.input == "model.norm"
            got, computed = sequence.logits(0, sequence.step_count), computed[-sequence.step_count :]
        else:
            got = sequence.read(site.name, 0, sequence.positions)
        np.testing.assert_allclose(got, computed, atol=2e-5, rtol=1e-4, err_msg=site.name)
        checked += 1
    assert checked == 15
    first = "model.layers.0"
    assert trace.sites[f"{first}.input_layernorm"].input == "model.embed_tokens"
    assert trace.sites[f"{first}.self_attn.k_proj"].input == f"{first}.input_layernorm"
    assert trace.sites[f"{first}.self_attn.o_proj"].input == f"{first}.self_attn.o_proj:in"
    assert trace.sites[f"{first}.self_attn"].same_as == f"{first}.self_attn.o_proj"
    assert trace.sites["model.layers.1.input_layernorm"].input == first
    assert trace.sites["model"].same_as == "model.norm"
    orders = [site.order for site in trace.sites.values()]
    assert orders == sorted(orders) and len(set(orders)) == len(orders)
    assert trace.sites[f"{first}.self_attn.o_proj:in"].order < trace.sites[f"{first}.self_attn.o_proj"].order
    assert trace.sites["model.norm"].attributes["eps"] == model.config.rms_norm_eps


def test_draws_give_the_recorded_tokens_again(tmp_path, model, batch):
    _, trace = record(tmp_path / "run.h5", model, batch, rows=3, **SAMPLING)
    width = model.config.vocab_size
    offset = 0
    for step in range(max(sequence.step_count for sequence in trace.sequences)):
        for index, sequence in enumerate(trace.sequences):
            if step >= sequence.step_count:
                continue
            recorded = sequence.step(step)
            (draw,) = recorded.draws
            assert (draw.generator, draw.seed, draw.words) == ("mt19937", 11, 2 * width)
            assert draw.offset == offset + 2 * width * index
            generator = TorchGenerator(11)
            generator.skip(draw.offset)
            probs = np.zeros(width, dtype=np.float32)
            probs[recorded.survivors_id] = recorded.survivors_prob
            assert int(generator.multinomial(probs, 1)[0]) == recorded.token == draw.result
        offset += 2 * width * len(trace.sequences)


def test_thorough_watch_sees_the_same_draws(tmp_path, model, batch):
    _, fast = record(tmp_path / "fast.h5", model, batch, rows=1, **SAMPLING)
    result, thorough = record(tmp_path / "all.h5", model, batch, options={"rng": "thorough"}, rows=1, **SAMPLING)
    assert torch.equal(result, generate(model, batch, rows=1, **SAMPLING))
    for step in range(fast.sequences[0].step_count):
        assert thorough.sequences[0].step(step).draws == fast.sequences[0].step(step).draws


def test_survivors_are_what_transformers_left(tmp_path, model, batch):
    settings = SAMPLING | {"return_dict_in_generate": True, "output_scores": True}
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        out = generate(model, batch, rows=1, **settings)
    sequence = tracekit.open(tmp_path / "run.h5").sequences[0]
    for step, scores in enumerate(out.scores):
        probs = torch.softmax(scores[0], dim=-1)
        left = {int(token): float(probs[token]) for token in torch.nonzero(probs)}
        recorded = sequence.step(step)
        assert dict(zip(recorded.survivors_id.tolist(), recorded.survivors_prob.tolist(), strict=True)) == left
        assert list(recorded.survivors_prob) == sorted(recorded.survivors_prob, reverse=True)
    assert sequence.sampling["top_k"] == 40 and sequence.sampling["max_new_tokens"] == 9


def test_weights_are_digested_as_they_are_held(tmp_path, folder, batch):
    import xxhash

    for word in ("float32", "bfloat16"):
        held = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, word)).eval()
        _, trace = record(tmp_path / "run.h5", held, batch, rows=1, tokens=2)
        assert list(trace.weights) == list(held.state_dict())
        for name, value in held.state_dict().items():
            bits = value.contiguous().view(torch.uint8).numpy()
            assert trace.weights[name].digest == xxhash.xxh3_64_intdigest(bits.tobytes())
            assert (trace.weights[name].dtype, trace.weights[name].shape) == (word, tuple(value.shape))
        assert trace.config["dtype"] == word
        data = trace.sequences[0].sites["model.norm"]
        assert data.dtype == word
        assert np.isfinite(to_float(trace.sequences[0].read("model.norm", 0, 1), word)).all()
        assert trace.sequences[0].logits_dtype == word


def test_levels_sites_and_logits_narrow_what_is_kept(tmp_path, model, batch):
    def kept(**options):
        _, trace = record(tmp_path / "run.h5", model, batch, options=options, rows=1, **SAMPLING)
        sequence = trace.sequences[0]
        return set(sequence.sites), sequence.step(0), trace

    whole, first, _ = kept()
    sites, step, trace = kept(level="tokens")
    assert not sites and step.logits is None and step.token == first.token and step.draws == first.draws
    assert not trace.sites
    sites, step, _ = kept(level="logits")
    assert not sites and np.array_equal(step.logits, first.logits)
    sites, step, _ = kept(level="layers")
    assert sites == {"model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"}
    assert np.array_equal(step.logits, first.logits)
    sites, _, trace = kept(sites=r"layers\.1\.mlp")
    assert sites == {name for name in whole if "layers.1.mlp" in name} | {"model.layers.1.mlp.gate_proj:in"}
    sites, step, _ = kept(level="logits", logits="5")
    assert step.logits is None and len(step.topk_id) == 5
    logprob = first.logits - np.log(np.exp(first.logits.astype(np.float64)).sum())
    order = np.argsort(-logprob, kind="stable")[:5]
    assert step.topk_id.tolist() == order.tolist()
    # log-softmax rounded to float32.
    np.testing.assert_allclose(step.topk_logprob, logprob[order], rtol=1e-6, atol=1e-6)


def test_follow_forces_the_tokens_row_by_row_and_stops_with_them(tmp_path, model, batch):
    _, reference = record(tmp_path / "reference.h5", model, batch, **SAMPLING)
    for settings in (SAMPLING, {"do_sample": False}):
        options = {"follow": tmp_path / "reference.h5"}
        _, followed = record(tmp_path / "run.h5", model, batch, options=options, seed=99, tokens=30, **settings)
        for ours, theirs in zip(followed.sequences, reference.sequences, strict=True):
            assert ours.tokens.tolist() == theirs.tokens.tolist()
            assert ours.end_reason == ("stop" if theirs.end_reason == "stop" else "left")
        forced = [event for index in range(5) for event in followed.sequences[1].step(index).events]
        assert {event.kind for event in forced} == {"forced"} | ({"processor"} if settings is SAMPLING else set())
    # A forced run uses the generator as it would have without.
    generate(model, batch, seed=99, tokens=9, **SAMPLING)
    state = torch.get_rng_state()
    record(tmp_path / "run.h5", model, batch, options=options, seed=99, tokens=9, **SAMPLING)
    if max(sequence.step_count for sequence in reference.sequences) == 9:
        assert torch.equal(state, torch.get_rng_state())


NOT_LARGEST = [[3], [5], [7, 9]]
"""Words that this greedy run would not give."""


@pytest.mark.parametrize(
    ("name", "settings", "explained"),
    [
        ("RepetitionPenaltyLogitsProcessor", {"repetition_penalty": 1.05}, "repetition_penalty_ignored"),
        ("NoBadWordsLogitsProcessor", {"bad_words_ids": NOT_LARGEST}, "bad_words_ids_ignored"),
        ("SuppressTokensLogitsProcessor", {"suppress_tokens": [3, 5]}, "suppress_tokens_ignored"),
    ],
)
def test_a_greedy_runs_processors_are_judged_though_the_tokens_are_equal(
    tmp_path, model, batch, monkeypatch, name, settings, explained
):
    settings = {"do_sample": False, "rows": 1, "tokens": 3, **settings}
    _, right = record(tmp_path / "right.h5", model, batch, **settings)
    _, again = record(tmp_path / "again.h5", model, batch, **settings)
    found = tracekit.diff(right, again)
    assert (found.verdict, found.notes) == ("parity", ())
    ignored = lambda processor, input_ids, scores: scores  # noqa: E731
    monkeypatch.setattr(getattr(transformers.generation.logits_process, name), "__call__", ignored)
    _, wrong = record(tmp_path / "wrong.h5", model, batch, **settings)
    assert right.sequences[0].tokens.tolist() == wrong.sequences[0].tokens.tolist()
    found = tracekit.diff(right, wrong)
    assert (found.cause, found.explanation and found.explanation.mistake.id) == ("filter", explained), found.evidence


def test_a_minimum_of_new_tokens_that_is_lost_is_named_though_transformers_works_out_a_length_of_it(
    tmp_path, model, batch, monkeypatch
):
    _, free = record(tmp_path / "free.h5", model, batch, rows=1, tokens=6, **SAMPLING)
    stops = free.sequences[0].tokens.tolist()[4:5]
    settings = {**SAMPLING, "rows": 1, "tokens": 6, "min_new_tokens": 6, "eos_token_id": stops}
    _, right = record(tmp_path / "right.h5", model, batch, **settings)
    assert "min_length" not in right.sequences[0].sampling
    for name in ("MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor"):
        ignored = lambda processor, input_ids, scores: scores  # noqa: E731
        monkeypatch.setattr(getattr(transformers.generation.logits_process, name), "__call__", ignored)
    _, wrong = record(tmp_path / "wrong.h5", model, batch, **settings)
    found = tracekit.diff(right, wrong)
    assert (found.cause, found.explanation and found.explanation.mistake.id) == ("filter", "min_new_tokens_ignored")


def test_a_greedy_step_without_processors_holds_logits_alone(tmp_path, model, batch):
    _, trace = record(tmp_path / "run.h5", model, batch, do_sample=False)
    assert trace.sequences[0].step(0).survivors_id is None


def test_a_loop_that_takes_the_largest_of_processed_scores_holds_them(tmp_path, model, batch):
    ids = batch["input_ids"][:1]
    chain = transformers.LogitsProcessorList([transformers.RepetitionPenaltyLogitsProcessor(1.3)])
    with tracekit_torch.record(model, tmp_path / "run.h5"), torch.no_grad():
        for _ in range(4):
            scores = chain(ids, model(ids).logits[:, -1])
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    sequence = tracekit.open(tmp_path / "run.h5").sequences[0]
    assert sequence.step_count == 4
    for step in map(sequence.step, range(4)):
        assert step.survivors_id[0] == step.token
        unpenalised = np.argsort(-step.logits)
        assert not np.array_equal(step.survivors_id, unpenalised[: step.survivors_id.size])


def test_beam_search_is_left_out_with_one_line(tmp_path, model, batch, capsys):
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        generate(model, batch, rows=1, num_beams=2, do_sample=False)
        generate(model, batch, rows=1, **SAMPLING)
    assert capsys.readouterr().err.count("beam search") == 1
    assert len(tracekit.open(tmp_path / "run.h5").sequences) == 1


def test_an_interrupted_generation_ends_with_an_error(tmp_path, model, batch):
    class Stop(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            if input_ids.shape[1] > batch["input_ids"].shape[1] + 3:
                raise RuntimeError("enough")
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with pytest.raises(RuntimeError, match="enough"), tracekit_torch.record(model, tmp_path / "run.h5"):
        generate(model, batch, rows=1, stopping_criteria=transformers.StoppingCriteriaList([Stop()]), **SAMPLING)
    sequence = tracekit.open(tmp_path / "run.h5").sequences[0]
    assert sequence.end_reason == "error" and sequence.step_count == 3


def test_a_recorder_that_breaks_does_not_break_the_program(tmp_path, model, batch, monkeypatch, capsys):
    plain = generate(model, batch, **SAMPLING)
    original = Recorder.write_step
    count = 0

    def fail(*args):
        nonlocal count
        count += 1
        if count > 4:
            raise OSError("disk full")
        original(*args)

    monkeypatch.setattr(Recorder, "write_step", fail)
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        assert torch.equal(generate(model, batch, **SAMPLING), plain)
    assert "recording stopped, the program goes on: disk full" in capsys.readouterr().err
    trace = tracekit.open(tmp_path / "run.h5")
    assert trace.status == "recovered"
    assert sum(sequence.step_count for sequence in trace.sequences) == 4
    assert not any(module._forward_hooks for module in model.modules())


def test_positions_follow_from_what_was_fed_where_no_cache_is_found(tmp_path, model, batch, monkeypatch, capsys):
    """transformers renames its arguments: no call then says how many positions its cache holds."""
    generate(model, batch, rows=1, **SAMPLING)
    for names in (causal_calls.CACHE_NAMES, ()):
        monkeypatch.setattr(causal_calls, "CACHE_NAMES", names)
        with tracekit_torch.record(model, tmp_path / "run.h5"):
            generate(model, batch, rows=1, **SAMPLING)
        assert capsys.readouterr().err == ""
        (sequence,) = tracekit.open(tmp_path / "run.h5").sequences
        assert {data.ranges for data in sequence.sites.values()} == {((0, sequence.positions),)}
        assert sequence.positions == sequence.step(0).position + sequence.step_count


def test_everything_is_put_back(tmp_path, model, batch):
    watched = [(torch, "multinomial"), (torch.Tensor, "exponential_"), (torch.nn.Module, "__call__")]
    watched += [(transformers.LogitsProcessorList, "__call__"), (type(model), "_sample")]
    before = [getattr(owner, name) for owner, name in watched]
    record(tmp_path / "run.h5", model, batch, **SAMPLING)
    assert [getattr(owner, name) for owner, name in watched] == before
    assert "exponential_" not in vars(torch.Tensor)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("options", [{"level": "most"}, {"logits": 0}, {"sites": "("}, {"dtype": "float8"}])
def test_options_that_mean_nothing_are_refused(tmp_path, model, options):
    with (
        pytest.raises(TraceError, match=next(iter(options))),
        tracekit_torch.record(model, tmp_path / "run.h5", **options),
    ):
        pass


def test_a_trace_to_follow_must_be_readable(tmp_path, model):
    with (
        pytest.raises(TraceError, match=r"none\.h5"),
        tracekit_torch.record(model, tmp_path / "run.h5", follow=tmp_path / "none.h5"),
    ):
        pass
