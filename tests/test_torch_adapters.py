"""Loops of the program's own, other modules, and other precisions."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest

import tracekit
from tracekit.trace import resolve

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

PROMPT = [3, 4, 5, 6, 7, 9]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def recorded(path, model, run, **options):
    with tracekit_torch.record(model, path, **options):
        result = run()
    return result, tracekit.open(path)


def cached_loop(model, choose, steps=5, prompts=(PROMPT,), chunks=1, mode=torch.no_grad):
    def run():
        torch.manual_seed(4)
        fed = torch.tensor(prompts)
        chosen = []
        with mode():
            cache = None
            for piece in fed.chunk(chunks, dim=1):
                out = model(piece, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
            for index in range(steps):
                token = choose(out.logits[:, -1])
                chosen.append(token.reshape(-1).tolist())
                if index < steps - 1:
                    out = model(input_ids=token.reshape(-1, 1), past_key_values=cache)
        return [list(row) for row in zip(*chosen, strict=True)]

    return run


CHOICES = {
    "multinomial": lambda logits: torch.multinomial(torch.softmax(logits / 0.8, -1), 1),
    "argmax": lambda logits: logits.argmax(-1),
    "torch argmax": lambda logits: torch.argmax(logits, dim=-1, keepdim=True),
}


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_loop_with_a_cache(tmp_path, model, choice, mode, chunks):
    run = cached_loop(model, CHOICES[choice], chunks=chunks, mode=mode, prompts=(PROMPT, PROMPT[::-1]))
    plain = run()
    tokens, trace = recorded(tmp_path / "run.h5", model, run)
    assert tokens == plain
    assert [sequence.tokens.tolist() for sequence in trace.sequences] == plain
    for sequence, prompt in zip(trace.sequences, (PROMPT, PROMPT[::-1]), strict=True):
        assert sequence.prompt_ids.tolist() == prompt
        assert [sequence.step(index).position for index in range(5)] == [5, 6, 7, 8, 9]
        assert sequence.end_reason == "left"
        assert {data.ranges for data in sequence.sites.values()} == {((0, 10),)}
        assert "lm_head" not in sequence.sites
        whole = torch.tensor([[*prompt, *sequence.tokens[:-1]]])
        with torch.no_grad():
            expected = model(whole).logits[0, 5:].numpy()
        # float32 sums in another order; logits are of order 10.
        np.testing.assert_allclose(sequence.logits(0, 5), expected, atol=1e-4)
        if choice == "multinomial":
            draw = sequence.step(3).draws[0]
            assert draw.words == 2 * 97 and draw.offset == 2 * 97 * (2 * 3 + sequence.index)
            assert draw.result == sequence.tokens[3]
            assert len(sequence.step(3).survivors_id) == 97
    assert trace.sites["lm_head"].recorded_as == "logits"


def test_a_choice_that_nothing_watches_is_read_off_the_next_call(tmp_path, model):
    run = cached_loop(model, lambda logits: logits.max(dim=-1).indices)
    tokens, trace = recorded(tmp_path / "run.h5", model, run)
    # The last token is chosen, but never fed.
    assert trace.sequences[0].tokens.tolist() == tokens[0][:-1]


def test_a_loop_without_a_cache(tmp_path, model):
    def run():
        ids = torch.tensor([PROMPT])
        with torch.no_grad():
            for _ in range(4):
                logits = model(ids, use_cache=False).logits[:, -1]
                ids = torch.cat([ids, logits.argmax(-1)[:, None]], dim=1)
        return ids[0].tolist()

    tokens, trace = recorded(tmp_path / "run.h5", model, run)
    (sequence,) = trace.sequences
    assert [*PROMPT, *sequence.tokens.tolist()] == tokens
    assert {data.ranges for data in sequence.sites.values()} == {((0, len(PROMPT) + 3),)}


def test_a_second_turn_on_the_same_cache_is_a_sequence_of_its_own(tmp_path, model):
    def run():
        with torch.no_grad():
            out = model(torch.tensor([PROMPT]), use_cache=True)
            token = out.logits[:, -1].argmax(-1)[:, None]
            out = model(token, past_key_values=out.past_key_values)
            out = model(torch.tensor([[11, 12, 13]]), past_key_values=out.past_key_values)
            out.logits[:, -1].argmax(-1)
        return token.item()

    token, trace = recorded(tmp_path / "run.h5", model, run)
    first, second = trace.sequences
    assert first.tokens.tolist() == [token]
    assert second.prompt_ids.tolist() == [*PROMPT, token, 11, 12, 13] and second.info["parent"] == 0
    assert second.sites["model.norm"].ranges == ((7, 10),)
    assert second.step(0).position == 9


def test_plain_calls_keep_the_logits_of_every_position(tmp_path, model):
    def run():
        with torch.no_grad():
            return [model(torch.tensor([ids])).logits for ids in (PROMPT, PROMPT[::-1])]

    logits, trace = recorded(tmp_path / "run.h5", model, run)
    for sequence, expected in zip(trace.sequences, logits, strict=True):
        assert sequence.step_count == 0 and sequence.end_reason == "done"
        assert np.array_equal(sequence.read("lm_head", 0, len(PROMPT)), expected[0].numpy())
    assert trace.sites["lm_head"].recorded_as is None


def test_embeddings_may_be_the_prompt(tmp_path, model):
    embeds = model.get_input_embeddings()(torch.tensor([PROMPT])).detach()

    def run():
        return model.generate(inputs_embeds=embeds, max_new_tokens=4, do_sample=False)

    plain = run()
    tokens, trace = recorded(tmp_path / "run.h5", model, run)
    (sequence,) = trace.sequences
    assert torch.equal(plain, tokens) and sequence.tokens.tolist() == tokens[0].tolist()
    assert sequence.prompt_ids is None
    assert np.array_equal(sequence.inputs["inputs_embeds"], embeds[0].numpy())
    assert sequence.step(0).position == len(PROMPT) - 1
    assert sequence.sites["model.norm"].ranges == ((0, len(PROMPT) + 3),)


def test_following_in_a_loop(tmp_path, model):
    recorded(tmp_path / "reference.h5", model, cached_loop(model, CHOICES["multinomial"]))
    reference = tracekit.open(tmp_path / "reference.h5").sequences[0]
    run = cached_loop(model, CHOICES["argmax"], steps=7)
    tokens, trace = recorded(tmp_path / "run.h5", model, run, follow=tmp_path / "reference.h5")
    assert tokens[0][:5] == reference.tokens.tolist()
    assert trace.sequences[0].tokens.tolist()[:5] == reference.tokens.tolist()


class Encoder(nn.Module):
    """A convolution, a cell that runs twice, a write in place, a tied input, an output without rows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 5, 3, padding=1)
        self.cell = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(5, 4)
        self.pooled = nn.Linear(5, 2)
        self.unused = nn.Linear(3, 3)

    def forward(self, features, scale=1.0):
        hidden = self.conv(features.transpose(1, 2)).transpose(1, 2)
        hidden = self.cell(torch.tanh(self.cell(hidden)))
        hidden += scale
        normed = self.norm(hidden)
        return {"out": self.out(normed), "pooled": self.pooled(normed.mean(1))}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(2)
    return Encoder().eval()


def test_any_module_is_recorded_call_by_call(tmp_path, encoder):
    features = torch.randn(2, 7, 6)

    def run():
        return [encoder(features)["out"], encoder(features, scale=2.0)["out"]]

    plain = run()
    result, trace = recorded(tmp_path / "run.h5", encoder, run)
    assert all(torch.equal(one, other) for one, other in zip(plain, result, strict=True))
    assert len(trace.sequences) == 4
    assert {(sequence.step_count, sequence.end_reason) for sequence in trace.sequences} == {(0, "done")}
    sequence = trace.sequences[3]
    assert np.array_equal(sequence.inputs["features"], features[1].numpy())
    assert np.array_equal(sequence.read("out", 0, 7), result[1][1].detach().numpy())
    assert resolve(trace, "output") == "out"
    rows = encoder.conv(features.transpose(1, 2)).transpose(1, 2).detach()
    assert np.array_equal(sequence.read("conv", 0, 7), rows[1].numpy())
    assert np.array_equal(sequence.read("conv:in", 0, 7), features[1].numpy())
    assert trace.sites["cell"].input == "conv"
    assert "not [batch, time, ...]" in trace.sites["pooled"].skipped
    # The second run of the cell is a site of its own, and what was written to in between is no longer its output.
    assert trace.sites["norm"].input == "norm:in"
    second = sequence.read("cell#2", 0, 7) + np.float32(2.0)
    assert np.array_equal(sequence.read("norm:in", 0, 7), second)
    assert not np.array_equal(sequence.read("cell", 0, 7), sequence.read("cell#2", 0, 7))
    assert trace.sites["out"].input == "norm"
    assert "unused" not in trace.sites


def test_rows_without_a_batch_are_one_sequence(tmp_path):
    torch.manual_seed(2)
    layers = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    features = torch.randn(8, 6)
    result, trace = recorded(tmp_path / "run.h5", layers, lambda: layers(features))
    (sequence,) = trace.sequences
    assert np.array_equal(sequence.read("2", 0, 8), result.detach().numpy())
    assert trace.sites["2"].input == "2:in"


def test_a_prompt_larger_than_the_memory_of_a_call_is_written_in_pieces(tmp_path, model, monkeypatch):
    def run():
        torch.manual_seed(0)
        return model.generate(torch.tensor([PROMPT * 12]), max_new_tokens=3, do_sample=True)

    whole, expected = recorded(tmp_path / "whole.h5", model, run)
    monkeypatch.setattr("tracekit_torch.memory.CALL_BYTES", 40_000)
    monkeypatch.setattr("tracekit_torch.memory.BLOCK_BYTES", 12_000)
    pieces, trace = recorded(tmp_path / "pieces.h5", model, run)
    assert torch.equal(whole, pieces)
    ours, theirs = trace.sequences[0], expected.sequences[0]
    assert ours.sites == theirs.sites and ours.positions == 74
    for name in theirs.sites:
        assert np.array_equal(ours.read(name, 0, 74), theirs.read(name, 0, 74)), name


def float64_llama(model, ids):
    """The logits of a Llama [positions, vocabulary], every operation in float64, written out by hand."""
    config = model.config
    weights = {name: value.detach().double() for name, value in model.state_dict().items()}
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    length = len(ids)

    def norm(x, name):
        return weights[f"{name}.weight"] * x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.rms_norm_eps)

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T

    # The configuration defines the frequencies in float32; what follows from them is computed in float64.
    frequencies = model.model.rotary_emb.inv_freq.float().double()
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def rotate(x):
        half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
        return x * cos + half * sin

    x = weights["model.embed_tokens.weight"][torch.tensor(ids)]
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        y = norm(x, f"{at}.input_layernorm")
        q = rotate(linear(y, f"{at}.self_attn.q_proj").view(length, heads, width).transpose(0, 1))
        k = rotate(linear(y, f"{at}.self_attn.k_proj").view(length, kv_heads, width).transpose(0, 1))
        v = linear(y, f"{at}.self_attn.v_proj").view(length, kv_heads, width).transpose(0, 1)
        k, v = (part.repeat_interleave(heads // kv_heads, 0) for part in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(width)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        core = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, -1)
        x = x + linear(core, f"{at}.self_attn.o_proj")
        y = norm(x, f"{at}.post_attention_layernorm")
        gated = functional.silu(linear(y, f"{at}.mlp.gate_proj")) * linear(y, f"{at}.mlp.up_proj")
        x = x + linear(gated, f"{at}.mlp.down_proj")
    return linear(norm(x, "model.norm"), "lm_head").numpy()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_oracle_is_float64_throughout(tmp_path, model, attention):
    fresh = transformers.AutoModelForCausalLM.from_config(model.config, attn_implementation=attention).eval()
    fresh.load_state_dict(model.state_dict())
    ids = torch.tensor([PROMPT])

    def run():
        return fresh.generate(ids, max_new_tokens=6, do_sample=False)

    tokens, reference = recorded(tmp_path / "reference.h5", fresh, run)
    expected = float64_llama(fresh, tokens[0, :-1].tolist())[len(PROMPT) - 1 :]
    _, oracle = recorded(tmp_path / "oracle.h5", fresh, run, follow=tmp_path / "reference.h5", dtype="float64")
    assert oracle.config["dtype"] == "float64"
    sequence = oracle.sequences[0]
    assert sequence.tokens.tolist() == tokens[0, len(PROMPT) :].tolist()
    assert {data.dtype for name, data in sequence.sites.items() if not name.endswith("embed_tokens:in")} == {"float64"}
    steps = sequence.step_count
    scale = np.abs(expected).max()
    # A float64 run differs from another by its order of summation only: a few hundred roundings of 1e-16. One
    # conversion to float32 anywhere would leave 1e-8 at least.
    assert np.abs(sequence.logits(0, steps) - expected).max() / scale < 1e-13
    assert np.abs(reference.sequences[0].logits(0, steps) - expected).max() / scale > 1e-9


def test_a_16_bit_model_can_have_a_float32_oracle_and_a_model_be_narrowed(tmp_path, model):
    fresh = transformers.AutoModelForCausalLM.from_config(model.config).eval().bfloat16()
    ids = torch.tensor([PROMPT])

    def run():
        return fresh.generate(ids, max_new_tokens=3, do_sample=False)

    _, trace = recorded(tmp_path / "wide.h5", fresh, run, dtype="float32")
    assert trace.sequences[0].sites["model.norm"].dtype == "float32"
    fresh = transformers.AutoModelForCausalLM.from_config(model.config).eval()
    frequencies = fresh.model.rotary_emb.inv_freq.clone()
    _, trace = recorded(tmp_path / "narrow.h5", fresh, run, dtype="bfloat16")
    assert trace.sequences[0].sites["model.norm"].dtype == "bfloat16"
    assert torch.equal(fresh.model.rotary_emb.inv_freq, frequencies)


@pytest.mark.parametrize("kind", ["generate", "loop", "encoder-decoder", "port"])
def test_a_model_that_the_program_deletes_is_gone_while_it_is_recorded(tmp_path, kind):
    """A program that deletes its model and loads another one must not need memory for both."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 31, "num_layers": 1, "num_heads": 2, "d_model": 16, "d_kv": 8, "d_ff": 16}
    if kind == "encoder-decoder":
        config = transformers.T5Config(**sizes, decoder_start_token_id=0)
        program = transformers.T5ForConditionalGeneration(config).eval()
    elif kind == "port":
        program = nn.Sequential(nn.Embedding(31, 8), nn.Linear(8, 31)).eval()
    else:
        config = transformers.GPT2Config(vocab_size=31, n_embd=16, n_layer=1, n_head=2, n_positions=32)
        program = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.tensor([[3, 4, 5]])
    with tracekit_torch.record(program, tmp_path / "a.h5"), torch.no_grad():
        if kind in ("generate", "encoder-decoder"):
            program.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        elif kind == "loop":
            out = program(ids)
            program(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)
            del out
        else:
            program(torch.cat([ids, program(ids)[:, -1:].argmax(-1)], 1))
        parts = [weakref.ref(part) for part in program.modules()]
        parts += [weakref.ref(parameter) for parameter in program.parameters()]
        del program
        gc.collect()
        assert [part() for part in parts if part() is not None] == []
    assert tracekit.open(tmp_path / "a.h5").sequences[0].step_count >= 1
