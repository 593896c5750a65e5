"""Models that nobody tuned the recorder for: transformers' own classes, tiny and at random, through `generate`.

Each gives the tokens of the untraced run; every step, and every position of every site, is in the file.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

import tracekit
from tracekit.auditing.not_audited import Lacks
from tracekit.inspection.losses import CallsLeftOut, losses
from tracekit.trace import ENCODER

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from tracekit_torch.options import Options  # noqa: E402
from tracekit_torch.recorder import Recorder  # noqa: E402
from tracekit_torch.watch import Watch  # noqa: E402

STEPS = 5
BASE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
ENCODERS = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
LATENT = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
DECODERS = {
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Cohere": {},
    "DeepseekV3": {**LATENT, **EXPERTS},
    "Falcon": {},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "GPTNeoX": {},
    "Gemma2": {"head_dim": 8, "sliding_window": 6},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 6},
    "Granite": {},
    "Jamba": {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "Llama": {},
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "Mixtral": {"num_local_experts": 4},
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Olmo2": {},
    "Phi": {"qk_layernorm": True, "num_key_value_heads": 4},
    "Qwen3": {"head_dim": 8},
    "Qwen3Moe": {"head_dim": 8, "num_experts": 4, **EXPERTS},
    "StableLm": {"qk_layernorm": True},
}
RECURRENT = {
    "FalconMamba": {"state_size": 8},
    "Mamba": {"state_size": 8},
    "Mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "Qwen3Next": {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_experts": 4,
        "shared_expert_intermediate_size": 16,
        **EXPERTS,
    },
    "RecurrentGemma": {"lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    "Rwkv": {"attention_hidden_size": 32},
}
ENCODER_DECODERS = {
    "Bart": ENCODERS,
    "T5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "Whisper": {**ENCODERS, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 64},
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [0, 0, 12, 13, 14, 15, 16]]


def made(family: str, **numbers):
    """A model of a family, or skip where this transformers has none."""
    kinds = {"Whisper": "WhisperForConditionalGeneration", "Bart": "BartForConditionalGeneration"}
    kinds |= {"T5": "T5ForConditionalGeneration", "GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
    config = getattr(transformers, f"{family}Config", None)
    kind = getattr(transformers, kinds.get(family, f"{family}ForCausalLM"), None)
    if config is None or kind is None:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    torch.manual_seed(11)
    given = DECODERS.get(family) or RECURRENT.get(family) or ENCODER_DECODERS.get(family) or {}
    more = {"suppress_tokens": None, "begin_suppress_tokens": None} if family == "Whisper" else {}
    base = (
        BASE if family not in ("Falcon", "GPTNeoX") else {k: v for k, v in BASE.items() if k != "num_key_value_heads"}
    )
    if family in ENCODER_DECODERS:
        base = {name: value for name, value in base.items() if name.endswith("_id") or name == "vocab_size"}
        base |= {"decoder_start_token_id": 3}
    model = kind(config(**{**base, **given, **more, **numbers})).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 2 and "conv" not in name and "A_log" not in name:
                value.copy_(torch.randn_like(value) / value.shape[-1] ** 0.5)
    return model


def inputs_of(family: str, batch: int):
    if family == "Whisper":
        return {"input_features": torch.randn(batch, 16, 40, generator=torch.Generator().manual_seed(3))}
    ids = torch.tensor(PROMPTS[:batch])
    if family in ENCODER_DECODERS:
        ids = ids.flip(1)  # padded to the right
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def generating(model, family: str, batch: int, **settings):
    def run():
        torch.manual_seed(4)
        with torch.no_grad():
            return model.generate(
                **inputs_of(family, batch), max_new_tokens=STEPS, min_new_tokens=STEPS, pad_token_id=0, **settings
            )

    return run


def recorded(path, model, run, **options):
    """What `run` gives, recorded, and the trace; the tokens are those of the untraced run, before and after."""
    plain = run()
    with tracekit_torch.record(model, path, **options):
        result = run()
    assert torch.equal(result, plain) and torch.equal(run(), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return result, tracekit.open(path)


def check_whole(trace, tokens, prompts: list[int], partial: tuple[str, ...] = (), left_out: int = 0) -> None:
    """Every step of every sequence, and every position of every site, is in the file."""
    assert trace.status == "complete"
    assert [type(loss) for loss in losses(trace)] == [CallsLeftOut] * left_out
    assert [sequence.tokens.tolist() for sequence in trace.sequences] == tokens[:, -STEPS:].tolist()
    for sequence, prompt in zip(trace.sequences, prompts, strict=True):
        assert sequence.step(0).position == prompt - 1
        for name, data in sequence.sites.items():
            if data.axis is None and not name.endswith(partial or ("\0",)):
                first = prompt - 1 if name in ("lm_head", "embed_out") else 0  # logits are scaled after such a head
                assert data.ranges == ((first, prompt + STEPS - 1),), name
    assert not any(site.ended for site in trace.sites.values())


@pytest.mark.parametrize("family", [*DECODERS, *RECURRENT])
def test_a_decoder_is_recorded_whole(tmp_path, family):
    model = made(family)
    tokens, trace = recorded(tmp_path / "one.h5", model, generating(model, family, 2, do_sample=True))
    if family != "Rwkv":  # of a batch it mixes [batch, 1, width] with [batch, width]: what comes out has no rows
        check_whole(trace, tokens, [7, 5])
    tokens, trace = recorded(tmp_path / "two.h5", model, generating(model, family, 1, do_sample=False))
    check_whole(trace, tokens, [7])
    # What is padded or folded has no row a position, and says so.
    skipped = {site.name.removesuffix(":in").rsplit(".", 1)[-1] for site in trace.sites.values() if site.skipped}
    assert skipped <= {"RecurrentGemma": {"conv_1d"}, "Qwen3Next": {"norm"}}.get(family, set())


@pytest.mark.parametrize("family", ["Llama", "DeepseekV3", "GPT2", "Mamba", "Jamba"])
def test_without_a_cache(tmp_path, family):
    model = made(family)
    tokens, trace = recorded(tmp_path / "run.h5", model, generating(model, family, 2, use_cache=False))
    check_whole(trace, tokens, [7, 5])


@pytest.mark.parametrize("family", ["Llama", "DeepseekV3", "GPTNeoX"])
@pytest.mark.parametrize("settings", [{"cache_implementation": "static"}, {"prefill_chunk_size": 3}], ids=str)
def test_a_static_cache_and_a_prefill_in_chunks(tmp_path, family, settings):
    model = made(family)
    tokens, trace = recorded(tmp_path / "run.h5", model, generating(model, family, 1, **settings))
    check_whole(trace, tokens, [7])


@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": True, "num_return_sequences": 2}, {"use_cache": False}], ids=str
)
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_an_encoder_decoder_is_recorded_whole(tmp_path, family, settings):
    model = made(family)
    tokens, trace = recorded(tmp_path / "run.h5", model, generating(model, family, 2, **settings))
    each = settings.get("num_return_sequences", 1)
    # T5's bias of relative positions has no rows: its shape is [queries, keys, heads].
    check_whole(trace, tokens, [1] * 2 * each, ("relative_attention_bias",))
    given = inputs_of(family, 2)
    names = set(dict(model.named_modules()))
    for sequence in trace.sequences:
        row = sequence.index // each
        if family == "Whisper":
            length = 20
            assert np.array_equal(sequence.inputs["encoder_input_features"], given["input_features"][row].numpy())
        else:
            length = int(given["attention_mask"][row].sum())
            ids = [token for token in given["input_ids"][row].tolist() if token]
            assert sequence.inputs["encoder_token_ids"].tolist() == ids
        rows = {name: data for name, data in sequence.sites.items() if data.axis == ENCODER}
        assert {data.ranges for data in rows.values()} == {((0, length),)}
        assert {name.removesuffix(":in") for name in sequence.sites} <= names
        # Of each of two layers: keys and values of the cross attention are rows of the encoder's input.
        cross = [name for name in rows if "encoder_attn" in name or "EncDecAttention" in name]
        assert {name.rsplit(".", 1)[-1] for name in cross} >= ({"k", "v"} if family == "T5" else {"k_proj", "v_proj"})
        queries = [name for name in sequence.sites if name.endswith(("encoder_attn.q_proj", "EncDecAttention.q"))]
        assert len(queries) == 2 and not any(name in rows for name in queries)


def test_the_encoder_of_a_recording_is_the_one_of_a_plain_call(tmp_path):
    model = made("Bart")
    _, trace = recorded(tmp_path / "run.h5", model, generating(model, "Bart", 2))
    with torch.no_grad():
        hidden = model.get_encoder()(**inputs_of("Bart", 2))[0]
    last = "model.encoder.layers.1.final_layer_norm"
    for row, length in ((0, 7), (1, 5)):
        assert np.array_equal(trace.sequences[row].read(last, 0, length), hidden[row, :length].numpy())
    assert trace.sites["model.decoder.layers.1.encoder_attn.k_proj"].input == last


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_the_audit_of_an_encoder_decoder_finds_its_parameters(tmp_path, family):
    from tracekit.auditing.audit import audit
    from tracekit.checkpoints.checkpoint import Checkpoint
    from tracekit.verdict.coverage import audited_coverage

    model = made(family)
    model.save_pretrained(tmp_path / "model")
    _, trace = recorded(tmp_path / "run.h5", model, generating(model, family, 2))
    found = audit(trace, Checkpoint(tmp_path / "model"))
    assert found.exit_code == 0, found.culprits
    assert not any(why.lacks is Lacks.PARAMETER for why in found.unknown.values())
    coverage = audited_coverage(found, trace)
    assert coverage.sites.done > 25 and coverage.steps.done == coverage.steps.of == 2 * STEPS


def test_a_loop_over_an_encoder_decoder(tmp_path):
    model = made("T5")
    given = inputs_of("T5", 2)

    def run():
        ids = torch.full((2, 1), 3)
        with torch.no_grad():
            for _ in range(STEPS):
                logits = model(**given, decoder_input_ids=ids, use_cache=False).logits[:, -1]
                ids = torch.cat([ids, logits.argmax(-1)[:, None]], dim=1)
        return ids

    tokens, trace = recorded(tmp_path / "run.h5", model, run)
    check_whole(trace, tokens, [1, 1], ("relative_attention_bias",))
    assert trace.sequences[1].sites["encoder.block.1.layer.1.DenseReluDense.wo"].ranges == ((0, 5),)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("gain", [1.0, 1.25])
def test_a_loop_over_what_the_encoder_gave_before_is_judged(tmp_path, family, gain):
    model = made(family)
    model.save_pretrained(tmp_path / "model")
    given = inputs_of(family, 2)
    mask = {name: value for name, value in given.items() if name == "attention_mask"}
    if gain != 1.0:
        t5, others = "encoder.block.0.layer.0.SelfAttention.v", "model.encoder.layers.0.self_attn.v_proj"
        site = t5 if family == "T5" else others
        model.get_submodule(site).weight.data.mul_(gain)

    def run():
        ids = torch.full((2, 1), 3)
        with torch.no_grad():
            hidden = model.get_encoder()(**given)
            for _ in range(STEPS):
                logits = model(encoder_outputs=hidden, **mask, decoder_input_ids=ids, use_cache=False).logits[:, -1]
                ids = torch.cat([ids, logits.argmax(-1)[:, None]], dim=1)
        return ids

    tokens, trace = recorded(tmp_path / "run.h5", model, run)
    check_whole(trace, tokens, [1, 1], ("relative_attention_bias",))
    found = tracekit.audit(trace, by=tracekit_torch.by_reference(str(tmp_path / "model")))
    assert [culprit.site for culprit in found.culprits] == ([] if gain == 1.0 else [site]), found.text


def test_a_loop_over_an_output_of_the_encoder_that_was_changed_is_said(tmp_path):
    model = made("Bart")

    def run():
        with torch.no_grad():
            hidden = model.get_encoder()(**inputs_of("Bart", 1))
            hidden.last_hidden_state = hidden.last_hidden_state * 2.0
            return model(encoder_outputs=hidden, decoder_input_ids=torch.full((1, 1), 3)).logits

    _, trace = recorded(tmp_path / "run.h5", model, run)
    assert [said.startswith("a run of the encoder") for said in trace.config["lost"]] == [True]


def test_a_loop_over_a_recurrent_model(tmp_path):
    model = made("Mamba")

    def run():
        tokens = []
        with torch.no_grad():
            out = model(torch.tensor([PROMPTS[0]]), use_cache=True)
            for index in range(STEPS):
                token = out.logits[:, -1].argmax(-1)[:, None]
                tokens.append(token)
                if index < STEPS - 1:
                    cache = {name: out[name] for name in ("cache", "cache_params") if name in out}
                    out = model(token, use_cache=True, **cache)
        return torch.cat(tokens, dim=1)

    tokens, trace = recorded(tmp_path / "run.h5", model, run)
    check_whole(trace, tokens, [7])


def test_two_generations_and_one_that_cannot_be_recorded(tmp_path, capsys):
    model = made("Llama")
    again = generating(model, "Llama", 2)

    def run():
        beams = generating(model, "Llama", 1, num_beams=2)()
        return torch.cat([again(), again(), beams])

    _, trace = recorded(tmp_path / "run.h5", model, run)
    assert [sequence.step_count for sequence in trace.sequences] == [STEPS] * 4
    assert trace.config["lost"] == ["beam search, which does not choose one token a step; generate with num_beams=1"]
    assert capsys.readouterr().err.count("beam search") == 1
    verdict = tracekit.diff(trace, trace)
    assert verdict.verdict == "withheld" and "beam search" in str(verdict)


def test_a_call_between_two_generations_leaves_the_second_whole(tmp_path):
    model = made("Llama")
    again = generating(model, "Llama", 1)

    def run():
        first = again()
        model(torch.tensor(PROMPTS[:1]))
        return torch.cat([first, again()])

    _, trace = recorded(tmp_path / "run.h5", model, run)
    assert trace.status == "complete"
    assert [sequence.step_count for sequence in trace.sequences] == [STEPS, 0, STEPS]


def generated(path, *runs, module=None):
    """The recorder of a program that may run several models: `tracekit record` without its command line."""
    recorder = Recorder(path, Options(), {"argv": ["program.py"], "cwd": "."})
    with recorder.watching(), Watch(recorder, module).installed():
        for run in runs:
            run()
    recorder.close()
    return recorder


def test_a_second_model_is_said_to_be_lost(tmp_path, capsys):
    first, second = made("Llama"), made("Qwen2")
    runs = (generating(first, "Llama", 1), generating(second, "Qwen2", 1), generating(second, "Qwen2", 1))
    assert generated(tmp_path / "run.h5", *runs).sequences == 1
    said = "generations of a second model (Qwen2ForCausalLM); choose a model with --module"
    assert tracekit.open(tmp_path / "run.h5").config["lost"] == [said]
    assert capsys.readouterr().err.count(said) == 1


def test_a_second_model_that_is_not_asked_for_is_no_loss(tmp_path):
    first, second = made("Llama"), made("Qwen2")
    runs = (generating(second, "Qwen2", 1), generating(first, "Llama", 1), generating(second, "Qwen2", 1))
    assert generated(tmp_path / "run.h5", *runs, module="LlamaForCausalLM").sequences == 1
    assert not tracekit.open(tmp_path / "run.h5").config.get("lost")


def test_an_assistant_is_not_taken_for_the_model(tmp_path):
    model, assistant = made("Llama"), made("Llama", num_hidden_layers=1)
    run = generating(model, "Llama", 1, assistant_model=assistant)
    plain = run()
    with tracekit_torch.record(model, tmp_path / "run.h5") as recorder:
        assert torch.equal(run(), plain)
    assert recorder.sequences == 0 and any("without assistant_model" in note for note in recorder.notes)


COMPILED = {
    "the model": torch.compile,
    "its forward": lambda model, **how: setattr(model, "forward", torch.compile(model.forward, **how)),
    "in place": lambda model, **how: model.compile(**how),
    "a layer": lambda model, **how: model.model.layers.__setitem__(0, torch.compile(model.model.layers[0], **how)),
    "an mlp in place": lambda model, **how: model.model.layers[1].mlp.compile(**how),
}


@pytest.mark.parametrize("way", COMPILED)
def test_a_compiled_model_is_recorded_as_the_eager_one(tmp_path, way, capsys):
    def loop(model):
        def run():
            ids = torch.tensor([PROMPTS[0]])
            with torch.no_grad():
                for _ in range(STEPS):
                    logits = model(input_ids=ids, use_cache=False).logits[:, -1]
                    ids = torch.cat([ids, logits.argmax(-1)[:, None]], dim=1)
            return ids

        return run

    plain = made("Llama")
    _, expected = recorded(tmp_path / "eager.h5", plain, loop(plain))
    model = made("Llama")
    compiled = COMPILED[way](model, backend="eager")
    model = model if compiled is None else compiled
    _, trace = recorded(tmp_path / "compiled.h5", model, loop(model))
    ours, theirs = trace.sequences[0], expected.sequences[0]
    assert ours.sites == theirs.sites and trace.weights.keys() >= set()
    for name in theirs.sites:
        assert np.array_equal(ours.read(name, 0, 11), theirs.read(name, 0, 11)), name
    assert capsys.readouterr().err.count("its regions ran eagerly") == 1
    assert "torch.compile" in trace.config["lost"][0]


def test_torchscript_is_refused_or_said(tmp_path):
    inner = torch.jit.trace(torch.nn.Linear(4, 3), torch.ones(2, 4))
    with pytest.raises(tracekit.TraceError, match="TorchScript"), tracekit_torch.record(inner, tmp_path / "run.h5"):
        pass
    outer = torch.nn.Sequential(inner, torch.nn.Linear(3, 2))
    _, trace = recorded(tmp_path / "run.h5", outer, lambda: outer(torch.ones(2, 5, 4)))
    assert trace.sites["0"].skipped == "it is TorchScript, which calls no hooks"
    assert set(trace.sequences[0].sites) == {"1:in", "1"}


def test_a_transformed_call_is_said_and_the_others_are_recorded(tmp_path, capsys):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    rows = torch.ones(2, 5, 4)
    _, trace = recorded(tmp_path / "run.h5", model, lambda: torch.func.vmap(model)(rows) + model(rows))
    assert len(trace.sequences) == 2 and "vmap" in trace.config["lost"][0]
    assert "recording stopped" not in capsys.readouterr().err


def test_another_thread_is_not_mixed_in(tmp_path, capsys):
    model = made("Llama")
    entered, left = threading.Event(), threading.Event()
    ids = torch.tensor([[20, 21, 22]])
    other: list[torch.Tensor] = []

    class Pause(transformers.LogitsProcessor):
        def __call__(self, input_ids, scores):
            if input_ids.shape[1] == 9:
                entered.set()
                left.wait(60)
            return scores

    def beside():
        entered.wait(60)
        other.append(model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0))
        left.set()

    def run():
        entered.clear()
        left.clear()
        thread = threading.Thread(target=beside)
        thread.start()
        result = generating(model, "Llama", 1, do_sample=False, logits_processor=[Pause()])()
        thread.join()
        return result

    tokens, trace = recorded(tmp_path / "run.h5", model, run)
    check_whole(trace, tokens, [7], left_out=1)
    assert torch.equal(other[0], other[1])
    assert any("another thread" in line for line in trace.config["lost"])
    assert trace.config["by_chance"] == trace.config["lost"]  # the other one might have come first


class Chooser(torch.nn.Module):
    """As the indexer of sparse attention: which of the positions so far each one looks at, int32 [batch, time, ...]."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, ids, so_far, width):
        return torch.arange(width, dtype=torch.int32).expand(*ids.shape, width) % so_far


@pytest.mark.parametrize(("columns", "lost"), [(lambda so_far: so_far, False), (lambda so_far: 3 + so_far // 9, True)])
def test_columns_that_are_positions_are_no_loss(tmp_path, columns, lost):
    """They are said; a site that changes its width for another reason ends, which withholds PARITY."""

    class Sparse(transformers.LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            self.chooser, self.so_far = Chooser(), 0

        def forward(self, input_ids=None, **kwargs):
            self.so_far = input_ids.shape[1] + (self.so_far if input_ids.shape[1] == 1 else 0)
            self.chooser(input_ids, self.so_far, columns(self.so_far))
            return super().forward(input_ids=input_ids, **kwargs)

    plain = made("Llama")
    model = Sparse(plain.config).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    _, trace = recorded(tmp_path / "run.h5", model, generating(model, "Llama", 1))
    site = trace.sites["chooser"]
    assert bool(site.ended) is lost and (site.partial is None) is lost
    assert tracekit.diff(trace, trace).verdict == ("withheld" if lost else "parity")
