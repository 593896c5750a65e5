"""The audit over families of models: no alarm on a clean run of any, and each fault named beside what is harmless."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tracekit_torch
from safetensors.torch import load_file, save_file

import tracekit
from tests import tiny_families as tiny
from tests.spoken import notes
from tracekit.auditing.audit import audit
from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.mistakes.culprits import ExplainedAudit, explained_audit
from tracekit.report.words import sentence
from tracekit.trace import Trace

WHOLE = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "olmo2",
    "granite",
    "gpt2",
    "phi",
)
"""Families whose every site has a recipe."""
PROJECTIONS = r"^(?:model\.norm|model\.embed_tokens|lm_head|.*(?:layernorm|_proj))(?::in)?$"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def of(name: str, **settings: Any) -> Path:
        key = f"{name} {settings}"
        if key not in made:
            made[key] = tiny.make(name, tmp_path_factory.mktemp(name), **settings)
        return made[key]

    return of


def audited(trace: Trace, folder: Path) -> ExplainedAudit:
    checkpoint = Checkpoint(folder)
    return explained_audit(trace, checkpoint, audit(trace, checkpoint))


def said(found: ExplainedAudit) -> dict[str, str | None]:
    return {each.site: sentence(each.explanation) if each.explanation else None for each in found.culprits}


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_clean_run_of_any_family_is_within_its_bounds(name: str, folder, tmp_path: Path) -> None:
    found = audited(tiny.run(tiny.load(folder(name)), tmp_path / "clean.h5"), folder(name))
    assert [(each.site, each.evidence) for each in found.culprits] == []
    assert (found.weights, found.differences) == ((), ())
    assert len(found.clean) > 10
    if name in WHOLE:
        assert dict(found.unknown) == {}
    if name in ("mixtral", "qwen3moe", "gptoss"):
        assert NotAudited(Lacks.RECIPE_OF_EXPERTS) in found.unknown.values()


@pytest.mark.parametrize("held", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_model_cast_to_float64_is_within_its_bounds(name: str, held: str, folder, tmp_path: Path) -> None:
    """Norms, rotary tables and softmax stay in float32 in it; Gemma's factor of the embeddings, in the file's dtype."""
    stored = folder(name)
    if held != "float32":
        tiny.load(stored, dtype=held).save_pretrained(tmp_path / "model")
        stored = tmp_path / "model"
    found = audited(tiny.run(tiny.load(stored, dtype=held).double(), tmp_path / "run.h5"), stored)
    assert said(found) == {} and (found.exit_code, dict(found.unknown)) == (0, {})


@pytest.mark.parametrize(
    ("site", "factor"),
    [("model.layers.1.input_layernorm", 1.0 + 1e-6), ("model.layers.0.mlp.up_proj", 1.0 + 1e-12)],
)
def test_a_gain_in_a_model_cast_to_float64_is_found(site: str, factor: float, folder, tmp_path: Path) -> None:
    model = tiny.load(folder("llama")).double()
    model.get_submodule(site).register_forward_hook(lambda *given: given[-1] * factor)
    found = audited(tiny.run(model, tmp_path / "run.h5"), folder("llama"))
    assert [culprit.site for culprit in found.culprits] == [site]


@pytest.mark.parametrize("name", ["gemma2", "granite"])
def test_a_head_whose_output_is_not_the_logits_is_a_site_of_its_own(name: str, folder, tmp_path: Path) -> None:
    trace = tiny.run(tiny.load(folder(name)), tmp_path / "run.h5")
    assert trace.sequences[0].sites["lm_head"].ranges == ((9, 19),)
    assert {"lm_head", "logits"} <= audited(trace, folder(name)).clean


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "olmo2"])
def test_a_norm_of_queries_that_is_not_recorded_is_there_all_the_same(name: str, folder, tmp_path: Path) -> None:
    trace = tiny.run(tiny.load(folder(name)), tmp_path / "run.h5", sites=PROJECTIONS)
    found = audited(trace, folder(name))
    assert said(found) == {}
    assert found.unknown["model.layers.0.self_attn.o_proj:in"] == NotAudited(
        Lacks.SITE, ("model.layers.0.self_attn.q_norm",)
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [("clip_qkv", 1.0), ("attention_output_gate", True), ("residual_multiplier", 0.2), ("model_type", "strange")],
)
def test_a_setting_that_no_recipe_reads_is_no_alarm(setting: str, value: Any, folder, tmp_path: Path) -> None:
    trace = tiny.run(tiny.load(folder("llama")), tmp_path / "run.h5")
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder("llama").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {setting: value}))
    found = audited(trace, copy)
    assert said(found) == {} and "model.layers.1.self_attn.o_proj:in" in found.unknown
    assert "model.layers.1.self_attn.o_proj" in found.clean


@pytest.mark.parametrize("parameter", ["self_attn.sinks", "self_attn.q_norm.weight", "mlp.gate.weight", "scale"])
def test_a_parameter_that_no_recipe_reckons_with_is_no_alarm(parameter: str, folder, tmp_path: Path) -> None:
    trace = tiny.run(tiny.load(folder("llama")), tmp_path / "run.h5")
    copy = tmp_path / "model"
    copy.mkdir()
    (copy / "config.json").write_text((folder("llama") / "config.json").read_text())
    tensors = load_file(folder("llama") / "model.safetensors")
    save_file(tensors | {f"model.layers.1.{parameter}": torch.ones(8)}, copy / "model.safetensors")
    unknown = audited(trace, copy).unknown
    assert [why for why in unknown.values() if parameter in why.of]


# ---------------------------------------------------------------- a fault beside what is harmless


def scaled_outside(model: Any) -> Any:
    """Gemma whose embeddings are multiplied after their module, as ports do."""
    table = model.model.embed_tokens
    factor = float(table.embed_scale)
    plain = torch.nn.Embedding(*table.weight.shape)
    plain.weight = table.weight
    model.model.embed_tokens = plain
    model.model.layers[0].register_forward_pre_hook(lambda _, args: (args[0] * factor, *args[1:]))
    return model


def wrong_gelu(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.GELU()


def gain(site: str) -> Callable[[Any], None]:
    """A module whose output is 0.1 % too large."""

    def plant(model: Any) -> None:
        module = model.get_submodule(site)
        forward = module.forward
        module.forward = lambda *args, **more: forward(*args, **more) * 1.001

    return plant


def test_embeddings_scaled_outside_are_harmless_and_said(folder, tmp_path: Path) -> None:
    reference = tiny.run(tiny.load(folder("gemma")), tmp_path / "reference.h5")
    candidate = tiny.run(scaled_outside(tiny.load(folder("gemma"))), tmp_path / "candidate.h5")
    assert said(audited(candidate, folder("gemma"))) == {}
    for one, other in ((reference, candidate), (candidate, reference)):
        verdict = tracekit.diff(one, other, weights=str(folder("gemma")))
        assert verdict.verdict == "parity", verdict.evidence
        assert [note for note in notes(verdict) if "multiplies the embeddings by 5.65685 in it" in note]


@pytest.mark.parametrize(
    ("fault", "site", "text"),
    [
        (wrong_gelu, "model.layers.0.mlp.down_proj:in", "gelu instead of gelu_pytorch_tanh"),
        (gain("model.layers.1.mlp.up_proj"), "model.layers.1.mlp.up_proj", "gain 1.001"),
        (gain("model.embed_tokens"), "model.embed_tokens", "gain 1.001"),
    ],
)
def test_a_fault_beside_embeddings_scaled_outside(fault, site: str, text: str, folder, tmp_path: Path) -> None:
    reference = tiny.run(tiny.load(folder("gemma")), tmp_path / "reference.h5")
    model = scaled_outside(tiny.load(folder("gemma")))
    fault(model)
    candidate = tiny.run(model, tmp_path / "candidate.h5")
    assert said(audited(candidate, folder("gemma")))[site] == text
    verdict = tracekit.diff(reference, candidate, weights=str(folder("gemma")))
    assert (verdict.verdict, verdict.site) == ("divergence", site)
    assert verdict.explanation is not None and sentence(verdict.explanation) == text


def test_embeddings_that_are_not_scaled_at_all(folder, tmp_path: Path) -> None:
    model = tiny.load(folder("gemma"))
    model.model.embed_tokens.embed_scale.fill_(1.0)
    found = said(audited(tiny.run(model, tmp_path / "run.h5"), folder("gemma")))
    assert found == {"model.embed_tokens": "the embeddings are not multiplied by 5.65685"}


@pytest.mark.parametrize("sites", [None, PROJECTIONS + r"|_norm"])
def test_another_theta_beside_normed_queries(sites: str | None, folder, tmp_path: Path) -> None:
    model = tiny.load(folder("qwen3"))
    rotary = model.model.rotary_emb
    rotary.inv_freq.copy_(10000.0 ** (-torch.arange(0, 8, 2) / 8))
    found = said(audited(tiny.run(model, tmp_path / "run.h5", sites=sites), folder("qwen3")))
    assert found["model.layers.0.self_attn.o_proj:in"] == "rotary theta 10000 instead of 1000000"


def test_rotary_in_a_layer_that_has_none(folder, tmp_path: Path) -> None:
    model = tiny.load(folder("smollm3"))
    assert not model.model.layers[3].self_attn.use_rope
    model.model.layers[3].self_attn.use_rope = 1
    found = said(audited(tiny.run(model, tmp_path / "run.h5"), folder("smollm3")))
    assert found == {
        "model.layers.3.self_attn.o_proj:in": "queries and keys are rotated in a layer that has no rotary embedding"
    }


def test_a_window_that_is_off_in_the_prompt_and_ignored_in_decoding(folder, tmp_path: Path) -> None:
    """As candle's Mistral does."""
    name = folder("mistral")
    model = tiny.load(name)
    core = model.model.layers[0].self_attn.forward.__func__

    def forward(self: Any, hidden_states: Any, *args: Any, attention_mask: Any = None, **more: Any) -> Any:
        rows = hidden_states.shape[1]
        keys = rows + (0 if rows > 1 else self.seen)
        self.seen = keys
        behind = torch.arange(keys - rows, keys)[:, None] - torch.arange(keys)[None, :]
        seen = (behind >= 0) & ((behind < 7) | (rows == 1))
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
        return core(self, hidden_states, *args, attention_mask=mask, **more)

    from transformers import DynamicCache

    for layer in model.model.layers:
        layer.self_attn.forward = forward.__get__(layer.self_attn)
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        model.generate(
            torch.tensor(tiny.PROMPT),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=None,
            past_key_values=DynamicCache(),
        )
    found = said(audited(tracekit.open(tmp_path / "run.h5"), name))
    text = "in the prompt: a window of 7 positions instead of 6; in decoding: the sliding window of 6 is ignored"
    assert found == {f"model.layers.{layer}.self_attn.o_proj:in": text for layer in (0, 1)}


@pytest.mark.parametrize(("calls", "where"), [((10,), ", in the prompt alone"), ((10, 1), "")])
def test_a_window_that_acts_on_the_last_rows_of_the_prompt(
    calls: tuple[int, ...], where: str, folder, tmp_path: Path
) -> None:
    """As candle's Gemma 2 masks its layers without a window, of which decoding forgets it again."""
    model = tiny.load(folder("qwen2"))

    def windowed(_: Any, args: Any, given: dict[str, Any]) -> Any:
        rows, keys = given["attention_mask"].shape[-2:]
        behind = torch.arange(keys - rows, keys)[:, None] - torch.arange(keys)[None, :]
        hidden = (behind >= 8) & torch.tensor(rows in calls)
        return args, given | {"attention_mask": given["attention_mask"].masked_fill(hidden, -1e30)}

    model.model.layers[0].self_attn.register_forward_pre_hook(windowed, with_kwargs=True)
    found = said(audited(tiny.run(model, tmp_path / "run.h5"), folder("qwen2")))
    assert found == {"model.layers.0.self_attn.o_proj:in": f"a window of 8 positions instead of no window{where}"}


@pytest.mark.parametrize("tied", [True, False])
def test_the_wrong_head_of_two(tied: bool, folder, tmp_path: Path) -> None:
    """A checkpoint with a head of its own, whatever `tie_word_embeddings` says of it."""
    name = folder("llama", tie_word_embeddings=False)
    copy = tmp_path / "model"
    copy.mkdir()
    (copy / "model.safetensors").write_bytes((name / "model.safetensors").read_bytes())
    config = json.loads((name / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (copy / "config.json").write_text(json.dumps(config))
    model = tiny.load(name)
    if tied:
        right = tiny.load(name)
        right.lm_head.weight = right.model.embed_tokens.weight
    else:
        right = tiny.load(name)
        model.lm_head.weight = model.model.embed_tokens.weight
    assert said(audited(tiny.run(right, tmp_path / "right.h5"), copy)) == {}
    names = ("lm_head.weight", "model.embed_tokens.weight")
    used, other = reversed(names) if tied else names
    text = f"the head's table is {other} instead of {used} (tie_word_embeddings {str(tied).lower()})"
    assert said(audited(tiny.run(model, tmp_path / "wrong.h5"), copy)) == {"logits": text}


@pytest.mark.parametrize("fault", ["", "table", "changed"])
def test_a_head_behind_a_prefix_of_the_file_alone(fault: str, folder, tmp_path: Path) -> None:
    """Programs of speech models rename `language_model.lm_head` (Voxtral): it is not tied, whatever is not declared."""
    name = folder("llama", tie_word_embeddings=False)
    copy = tmp_path / "model"
    copy.mkdir()
    held = {f"language_model.{key}": value for key, value in load_file(name / "model.safetensors").items()}
    save_file(held, copy / "model.safetensors")
    config = json.loads((name / "config.json").read_text())
    config.pop("tie_word_embeddings")
    (copy / "config.json").write_text(json.dumps(config))
    model = tiny.load(name)
    if fault == "table":
        model.lm_head.weight = model.model.embed_tokens.weight
    elif fault:
        model.lm_head.weight.data[3] *= 1.01
    tiny.run(model, tmp_path / "run.h5")
    found = tracekit.audit(tmp_path / "run.h5", copy)
    assert [one.site for one in found.culprits] == (["logits"] if fault else [])
    assert found.weights == (("lm_head.weight",) if fault == "changed" else ())
    if fault == "table":
        text = "the head's table is language_model.model.embed_tokens.weight instead of language_model.lm_head.weight"
        assert text in found.text


@pytest.mark.parametrize(("ours", "alike"), [(True, False), (False, False), (True, True)])
def test_whether_an_unknown_family_ties_its_head_is_not_guessed(
    ours: bool, alike: bool, folder, tmp_path: Path
) -> None:
    """Some programs of transformers keep a head of their own whatever `tie_word_embeddings` says (BigBirdPegasus)."""
    model = tiny.load(folder("llama", tie_word_embeddings=False))
    copy = tmp_path / "model"
    if alike:
        model.lm_head.weight.data = model.model.embed_tokens.weight.data.clone()
    model.save_pretrained(copy)
    said_of_it = {"tie_word_embeddings": True, "model_type": "unheard_of"}
    (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()) | said_of_it))
    if not ours:
        model.lm_head.weight = model.model.embed_tokens.weight
    found = audited(tiny.run(model, tmp_path / "run.h5"), copy)
    assert said(found) == {}
    if alike:
        assert "logits" in found.clean
    else:
        assert found.unknown["logits"] == NotAudited(Lacks.TIED_HEAD, ("unheard_of",))


@pytest.mark.parametrize(("name", "text"), [("gemma", "weight used instead of weight + 1"), ("qwen3next", None)])
def test_a_port_that_forgot_the_one(name: str, text: str | None, folder, tmp_path: Path) -> None:
    reference = tiny.run(tiny.load(folder(name)), tmp_path / "reference.h5")
    model = tiny.load(folder(name))
    norm = model.model.layers[1].post_attention_layernorm
    norm.forward = lambda x: norm._norm(x.float()) * norm.weight
    candidate = tiny.run(model, tmp_path / "candidate.h5")
    verdict = tracekit.diff(reference, candidate, weights=str(folder(name)))
    assert verdict.site == "model.layers.1.post_attention_layernorm"
    assert verdict.explanation is not None
    assert sentence(verdict.explanation) == (text or "weight used instead of weight + 1")


def test_a_class_of_the_programs_own_does_not_vouch_for_itself(folder, tmp_path: Path) -> None:
    """Its norms are judged by the reference's; without one, and without a family, not at all."""

    class Norm(torch.nn.Module):
        def __init__(self, norm: Any) -> None:
            super().__init__()
            self.weight, self.eps = norm.weight, norm.eps

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight

    reference = tiny.run(tiny.load(folder("qwen3next")), tmp_path / "reference.h5")
    model = tiny.load(folder("qwen3next"))
    model.model.norm = Norm(model.model.norm)
    candidate = tiny.run(model, tmp_path / "candidate.h5")
    found = audited(candidate, folder("qwen3next"))
    assert said(found) == {} and found.unknown["model.norm"].lacks is Lacks.MEASURED_CLASS
    verdict = tracekit.diff(reference, candidate, weights=str(folder("qwen3next")))
    assert (verdict.site, None if verdict.explanation is None else sentence(verdict.explanation)) == (
        "model.norm",
        "weight used instead of weight + 1",
    )


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma"])
def test_rows_that_are_alike_are_not_many_errors(name: str, folder, tmp_path: Path) -> None:
    """A token that repeats gives the first layer equal rows, and these equal errors: no average takes anything away."""
    trace_of = []
    for gain in (1.0, 1.00001):
        model = tiny.load(folder(name))
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.mul_(gain)
        out = tmp_path / f"{gain}.h5"
        with tracekit_torch.record(model, out):
            model.generate(torch.full((1, 96), 7), max_new_tokens=2, do_sample=False, eos_token_id=None)
        trace_of.append(tracekit.open(out))
    clean, wrong = (audit(trace, Checkpoint(folder(name))) for trace in trace_of)
    assert [(each.site, each.evidence) for each in clean.culprits] == []
    assert [each.site for each in wrong.culprits] == ["model.layers.0.self_attn.q_proj"]
