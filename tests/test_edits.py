"""Explanations by edits of the reference's source: the line is named, what is harmless is not, doubt is listed."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import tracekit
from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.inspection.positions import prompt_length
from tracekit.mistakes.edited_line import EditedLine, EditKind
from tracekit.mistakes.explanation import EDITED_LINE, Explanation, Untried
from tracekit.report.words import sentence
from tracekit.report.words.explanations import explanation_json

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from tracekit_torch.reference_program import conditions, explaining  # noqa: E402
from tracekit_torch.reference_program.captured_calls import CallSegments, CapturingCalls  # noqa: E402
from tracekit_torch.reference_program.capturing import Capturing  # noqa: E402
from tracekit_torch.reference_program.fitting import deviation  # noqa: E402
from tracekit_torch.reference_program.loading import forward_of, load_reference  # noqa: E402
from tracekit_torch.reference_program.segment import Frame, Segment  # noqa: E402
from tracekit_torch.reference_program.source_lines import handed_over  # noqa: E402

from tests import tiny_families  # noqa: E402


def _set(model: Any, **values: Any) -> None:
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            for name, value in values.items():
                if hasattr(holder, name):
                    setattr(holder, name, value)


def _heads_as_they_lie(model: Any) -> None:
    """The queries of a layer are viewed under the sizes that a transposition would give."""
    attention = model.model.layers[1].self_attn
    right, forward = torch.Tensor.transpose, attention.forward

    def wrong(*args: Any, **kwargs: Any) -> Any:
        queries: list[Any] = []

        def transpose(values: Any, one: int, two: int) -> Any:
            result = right(values, one, two)
            if queries or values.dim() != 4:
                return result
            queries.append(values)
            return values.reshape(result.shape)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "transpose", transpose)
            return forward(*args, **kwargs)

    attention.forward = wrong


def _sizes_exchanged(model: Any) -> None:
    attention = model.transformer.h[1].self_attention
    heads, width = attention.num_heads, attention.head_dim
    attention._merge_heads = lambda values: (
        values.view(heads, 1, -1, width).permute(0, 2, 1, 3).reshape(1, -1, heads * width)
    )


def _mask_forgotten(model: Any) -> None:
    """Attention is not given its mask: a prompt sees all of itself, and each later token what came before."""
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, forward=forward, **kwargs: forward(
            *args, **(kwargs | {"attention_mask": None})
        )


def _norm_forgotten(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.k_layernorm = torch.nn.Identity()


def _cache_forgotten(model: Any) -> None:
    """Attention is not given the cache: a later token sees itself alone."""
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, forward=forward, **kwargs: forward(*args, **(kwargs | {"cache": None}))


def _window_forgotten(model: Any) -> None:
    """The mask is that of a model without a window."""
    module, forward = import_module(type(model).__module__), model.model.forward

    def wrong(*args: Any, **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "create_sliding_window_causal_mask", module.create_causal_mask)
            return forward(*args, **kwargs)

    model.model.forward = wrong


def _experts_forgotten(model: Any) -> None:
    """What the experts are given stands for what they give."""
    block = model.model.layers[1].mlp

    def forward(values: Any) -> Any:
        block.gate(values.reshape(-1, values.shape[-1]))
        return values + block.shared_experts(values)

    block.forward = forward


def _bound_of_the_other_sign(model: Any) -> None:
    def gated(both: Any, limit: float, alpha: float) -> Any:
        gate, up = both[..., ::2].clamp(max=limit), both[..., 1::2].clamp(min=limit, max=limit)
        return (up + 1.0) * gate * torch.sigmoid(gate * alpha)

    for layer in model.model.layers:
        experts = layer.mlp.experts
        experts._apply_gate = partial(gated, limit=experts.limit, alpha=experts.alpha)


def _audited(folder: Path, out: Path, plant: Callable[[Any], None], attention: str = "eager") -> tracekit.Audit:
    model = tiny_families.load(folder, attention)
    plant(model)
    with tiny_families.run(model, out) as trace:
        return tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))


FAULTS: dict[str, tuple[str, Callable[[Any], None], str, EditKind, float | None]] = {
    "soft cap left out": (
        "gemma2", lambda model: _set(model, attn_logit_softcapping=None), "torch.tanh(", EditKind.LEFT_OUT, None,
    ),
    "experts not renormalised": (
        "qwen3next", lambda model: _set(model, norm_topk_prob=False), "router_top_value /=", EditKind.LEFT_OUT, None,
    ),
    "scale of the experts": (
        "deepseekv3", lambda model: _set(model, routed_scaling_factor=2.4), "routed_scaling_factor",
        EditKind.CONSTANT, 2.4,
    ),
    "eps of one norm": (
        "gpt2", lambda model: setattr(model.transformer.h[1].ln_1, "eps", 1e-6), "self.ln_1(", EditKind.CONSTANT, 1e-6,
    ),
    "scale of attention with its bias": (
        "bloom", lambda model: _set(model, inv_norm_factor=0.36), "alibi.baddbmm(", EditKind.CONSTANT, 0.36,
    ),
    "scale of the logits": (
        "cohere", lambda model: _set(model, logit_scale=0.07), "self.logit_scale", EditKind.CONSTANT, 0.07,
    ),
    "scale of the residual": (
        "granite", lambda model: _set(model, residual_multiplier=0.4), "self.residual_multiplier",
        EditKind.CONSTANT, 0.4,
    ),
    "a reshape for a transposition": (
        "llama", _heads_as_they_lie, "self.q_proj(hidden_states).view(", EditKind.RESHAPED, None,
    ),
    "a mask that is not added": (
        "llama", _mask_forgotten, "attn_weights + attention_mask", EditKind.LEFT_OUT, None,
    ),
    "a mask that is not there": (
        "llama", _mask_forgotten, "if attention_mask is not None", EditKind.LEFT_OUT, None,
    ),
    "sizes of a view exchanged": (
        "bloom", _sizes_exchanged, "x.view(batch_size, self.num_heads", EditKind.RESHAPED, None,
    ),
    "a layer norm left out": (
        "persimmon", _norm_forgotten, "self.k_layernorm(key_states)", EditKind.LEFT_OUT, None,
    ),
    "a cache that is not there": (
        "cohere", _cache_forgotten, "if cache is not None:", EditKind.BRANCH, None,
    ),
    "a cache that is not handed over": (
        "cohere", _cache_forgotten, "= self.self_attn(", EditKind.OTHER_VALUE, None,
    ),
    "the function of another mask": (
        "phi3", _window_forgotten, "if self.config.sliding_window is None else", EditKind.BRANCH, None,
    ),
    "experts that are not run": (
        "erniemoe", _experts_forgotten, "self.experts(hidden_states, top_k_index", EditKind.LEFT_OUT, None,
    ),
    "a bound of the other sign": (
        "gptoss", _bound_of_the_other_sign, "up.clamp(min=-self.limit", EditKind.CONSTANT, 7.0,
    ),
    "scale of attention": (
        "mixtral", lambda model: _set(model, scaling=0.3), "* scaling", EditKind.CONSTANT, 0.3,
    ),
}  # fmt: skip
"""Family, what is done to the model, a part of the wrong line, and what the edit is."""


@pytest.mark.parametrize("fault", FAULTS)
def test_the_line_is_named(checkpoints: Any, tmp_path: Path, fault: str) -> None:
    name, plant, text, kind, number = FAULTS[fault]
    found = _audited(checkpoints(name), tmp_path / "run.h5", plant)
    assert found.culprits
    for culprit in found.culprits:
        assert culprit.explanation is not None, found.text
        lines = [line for line in culprit.explanation.lines if text in line.source and line.kind is kind]
        assert lines, culprit.explanation.lines
        assert lines[0].number is None if number is None else lines[0].number == pytest.approx(number, rel=1e-6)
        assert lines[0].file.startswith("transformers/models/")
    # A line that is told apart, or named with those that are not.
    assert "as if" in found.text


def test_a_reference_is_as_it_was_after_its_conditions_were_inverted(checkpoints: Any, tmp_path: Path) -> None:
    model = tiny_families.load(checkpoints("cohere"))
    _cache_forgotten(model)
    reference = load_reference(str(checkpoints("cohere")), "float32")
    forward, ids = type(reference.model).forward, torch.tensor(tiny_families.PROMPT)
    code, before = inspect.unwrap(forward).__code__, [dict(vars(module)) for module in reference.modules()]
    logits = reference(ids).logits
    with tiny_families.run(model, tmp_path / "run.h5") as trace:
        found = tracekit.audit(trace, checkpoints("cohere"), by=tracekit_torch.by_reference(reference))
    assert any(line.kind is EditKind.BRANCH for line in found.culprits[0].explanation.lines)
    assert inspect.unwrap(forward).__code__ is code
    assert [vars(module).keys() for module in reference.modules()] == [held.keys() for held in before]
    assert torch.equal(reference(ids).logits, logits)


def _double(model: Any) -> None:
    """Twice a half of every gate: another order of operations."""
    for layer in model.model.layers:
        inner = layer.mlp.act_fn
        layer.mlp.act_fn = _Twice(inner)


class _Twice(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, value: Any) -> Any:
        return (self.inner(value) / 3.0) * 3.0


@pytest.mark.parametrize(
    ("name", "plant", "attention"),
    [("mixtral", lambda model: None, "sdpa"), ("gemma2", _double, "eager"), ("bloom", lambda model: None, "eager")],
)
def test_a_harmless_rewrite_is_no_line(
    checkpoints: Any, tmp_path: Path, name: str, plant: Callable[[Any], None], attention: str
) -> None:
    found = _audited(checkpoints(name), tmp_path / "run.h5", plant, attention)
    assert not found.culprits, found.text


def test_an_error_that_no_edit_makes_is_not_explained(checkpoints: Any, tmp_path: Path) -> None:
    def noisy(model: Any) -> None:
        made = torch.Generator().manual_seed(0)
        forward = model.model.layers[0].mlp.act_fn.forward
        model.model.layers[0].mlp.act_fn.forward = lambda value: (
            forward(value) * (1.0 + 0.1 * torch.randn(value.shape, generator=made))
        )

    found = _audited(checkpoints("gemma2"), tmp_path / "run.h5", noisy)
    assert [culprit.site for culprit in found.culprits] == ["model.layers.0.mlp.down_proj:in"]
    assert found.culprits[0].explanation is None, found.text


@pytest.mark.parametrize("name", ["granite", "olmo2"])
def test_a_helper_that_is_called_twice_is_one_line(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Queries and keys are turned by the same lines, of which both calls are edited at once."""
    folder = checkpoints(name)
    model = tiny_families.load(folder)
    program = import_module(type(model).__module__)
    with monkeypatch.context() as patch:
        patch.setattr(program, "rotate_half", lambda x: torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1))
        with tiny_families.run(model, tmp_path / "run.h5") as trace:
            pass
    with tracekit.open(tmp_path / "run.h5") as trace:
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
    explanation = found.culprits[0].explanation
    assert explanation is not None, found.text
    assert "torch.cat((-x2, x1)" in explanation.lines[0].source, explanation.lines
    assert explanation.lines[0].kind is EditKind.LEFT_OUT and explanation.lines[0].operation == "neg"


def test_a_line_of_a_loop_is_edited_in_all_rounds(checkpoints: Any, tmp_path: Path) -> None:
    """The experts' activation, which runs once for every expert that a token chose."""

    def other_activation(model: Any) -> None:
        for layer in model.model.layers:
            layer.mlp.experts.act_fn = torch.nn.GELU()

    found = _audited(checkpoints("mixtral"), tmp_path / "run.h5", other_activation)
    explanation = found.culprits[0].explanation
    assert explanation is not None, found.text
    assert any("self.act_fn(gate) * up" in line.source for line in explanation.lines), explanation.lines
    assert explanation.lines[0].kind is EditKind.OPERATOR and explanation.lines[0].other == "gelu"


def test_a_cache_that_is_not_kept_is_no_line_of_the_prefill(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every decoded position sees itself alone, as it would with another mask: which of both, a prefill cannot tell.
    Decoding with a condition inverted can: the call that does not hand the cache over is among what is listed."""
    folder = checkpoints("granite")
    model = tiny_families.load(folder, "sdpa")
    for layer in model.model.layers:
        inner = layer.self_attn.forward
        monkeypatch.setattr(
            layer.self_attn, "forward", lambda *args, inner=inner, **given: inner(*args, **{**given, "cache": None})
        )
    with tiny_families.run(model, tmp_path / "run.h5") as trace:
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
    assert [culprit.site for culprit in found.culprits][:1] == ["model.layers.0.self_attn.o_proj:in"], found.text
    explanation = found.culprits[0].explanation
    assert explanation is not None, found.text
    sources = [line.source for line in explanation.lines]
    assert any("self.self_attn(" in source for source in sources), found.text
    assert all("cache" in source or source.endswith("(") for source in sources), sources  # or a call that hands it on


def _without_the_last_layer(model: Any) -> None:
    model.model.layers = model.model.layers[:-1]


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma3"])
def test_a_layer_that_is_not_run_is_no_line_within_it(checkpoints: Any, tmp_path: Path, name: str) -> None:
    """Its norms times zero, or the power of thousands in them, would do the same. A mask and experts' counts are made
    for the layer alone, and are no part of what leads from its input to its output."""
    found = _audited(checkpoints(name), tmp_path / "run.h5", _without_the_last_layer)
    assert [culprit.site for culprit in found.culprits] == ["model.norm:in"], found.text
    explanation = found.culprits[0].explanation
    assert explanation is not None
    assert explanation.lines[0].kind is EditKind.LEFT_OUT, explanation.lines
    assert any("self.layers[: self.config.num_hidden_layers]" in line.source for line in explanation.lines)
    assert any(line.kind is EditKind.SCALED and line.number == 0.0 for line in explanation.lines)


def _without_the_mixer(model: Any) -> None:
    model.model.layers[3].block_type = "none"


def _without_experts(model: Any) -> None:
    for layer in model.model.layers[1:]:
        layer.mlp.experts.forward = lambda hidden, *rest: torch.zeros_like(hidden)


@pytest.mark.parametrize(
    ("name", "plant", "text", "not_text"),
    [
        ("qwen3next", _without_the_mixer, 'elif self.block_type == "full_attention"', "layers[: self.config"),
        ("deepseekv3", _without_experts, "if expert_idx == self.num_experts", "def forward"),
    ],
)
def test_what_a_condition_leaves_out_is_the_line_of_the_condition(
    checkpoints: Any, tmp_path: Path, name: str, plant: Callable[[Any], None], text: str, not_text: str
) -> None:
    """Of a branch that is not taken, and of a loop whose rounds all end early. The layer that it stands in goes on: its
    own call is not among the lines."""
    found = _audited(checkpoints(name), tmp_path / "run.h5", plant)
    assert found.culprits
    explanation = found.culprits[0].explanation
    assert explanation is not None, found.text
    assert any(text in line.source for line in explanation.lines), explanation.lines
    assert not any(not_text in line.source for line in explanation.lines), explanation.lines


def _activated(values: Any, activation: Any = None) -> Any:
    return values if activation is None else activation(values)


def _kernel(*args: Any, **kwargs: Any) -> Any:
    return _activated(*args, **kwargs)


def _mixer(values: Any) -> Any:
    return _kernel(values, activation=abs)


def test_a_value_is_followed_through_a_function_that_hands_on_whatever_it_is_given() -> None:
    """To the call that gave it, and no further."""
    frames = tuple(
        Frame(each.__code__, 0, each.__code__.co_firstlineno + 1)
        for each in (test_a_value_is_followed_through_a_function_that_hands_on_whatever_it_is_given, _mixer, _kernel)
    )
    lines = [lines.line for lines in handed_over({"activation"}, _activated.__code__, frames)]
    assert lines == [frames[2].line, frames[1].line]
    assert handed_over({"others"}, _activated.__code__, frames) == []


def test_conditions_of_functions_that_decoding_alone_runs_are_among_those_inverted(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = checkpoints("qwen3next"), "model.layers.0.linear_attn.out_proj:in"
    inverted = []
    monkeypatch.setattr(conditions.Conditions, "_decoded", lambda self, condition, *_, **__: inverted.append(condition))
    with tiny_families.run(tiny_families.load(folder), tmp_path / "run.h5") as trace:
        model, sequence = load_reference(str(folder), "float32"), trace.sequences[0]
        replay = Capturing(model, sequence, forward_of(model, trace, sequence))
        sites = replay.sites_with_segments([name])
        until = prompt_length(sequence) + 1
        tried = conditions.Conditions(model, trace, sequence, sites, {}, until, UNIT_ROUNDOFF["float32"])
        assert len(tried._first) == len(inverted) > 0
    found = {(each.frames[-1].code.co_name, ast.unparse(each.test)) for each in inverted}
    assert ("torch_recurrent_gated_delta_rule", "initial_state is None") in found
    assert ("torch_chunk_gated_delta_rule", "initial_state is None") in found


def _padded_less(model: Any) -> None:
    """One position less is put before what a convolution reads."""
    module = import_module(type(model).__module__)

    def conv(values: Any, weight: Any, bias: Any = None, activation: Any = None, **_: Any) -> Any:
        out = torch.nn.functional.conv1d(values, weight[:, None], bias, padding=1, groups=values.shape[1])
        return torch.nn.functional.pad(out, (0, 1))[..., : values.shape[-1]]

    for layer in model.model.layers:
        if hasattr(layer, "conv"):
            layer.conv.forward = _with(layer.conv.forward, module, "causal_conv1d_fn", conv)


def _lonely_experts_forgotten(model: Any) -> None:
    """Experts of a single token do not run."""
    for layer in model.model.layers:
        experts = layer.block_sparse_moe.experts
        one_by_one = partial(inspect.unwrap(type(experts).forward), experts)
        experts.forward = _with(one_by_one, torch, "greater", lambda values, _: values > 1)


def _with(forward: Callable[..., Any], holder: Any, name: str, value: Any) -> Callable[..., Any]:
    def patched(*args: Any, **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(holder, name, value)
            return forward(*args, **kwargs)

    return patched


@pytest.mark.parametrize(
    ("name", "plant", "text"),
    [
        ("lfm2moe", _padded_less, "padding = weight.shape[-1] - 1"),
        ("granitemoe", _lonely_experts_forgotten, "expert_hit = torch.greater("),
    ],
)
def test_a_line_that_works_out_a_number_or_what_a_loop_goes_through_is_among_those_named(
    checkpoints: Any, tmp_path: Path, name: str, plant: Callable[[Any], None], text: str
) -> None:
    found = _audited(checkpoints(name), tmp_path / "run.h5", plant)
    assert found.culprits
    explanation = found.culprits[0].explanation
    assert explanation is not None, found.text
    assert any(text in line.source for line in explanation.lines), explanation.lines


class _NotTheSecondTime:
    def __init__(self) -> None:
        self.asked = 0

    def __bool__(self) -> bool:
        self.asked += 1
        return self.asked % 4 != 2


def _normed_again(model: Any, gain: float) -> None:
    """The norm before attention runs after it as well, which a condition rules out; `gain`: of what it gives then."""
    layer = model.model.decoder.layers[0]
    layer.do_layer_norm_before = _NotTheSecondTime()
    layer.self_attn_layer_norm.register_forward_hook(
        lambda _, given, out: out * gain if layer.do_layer_norm_before.asked % 4 == 2 else out
    )


@pytest.mark.parametrize(("gain", "named"), [(None, False), (1.0, True), (1.01, False)])
def test_a_condition_under_which_the_value_is_another_module_s_output(
    checkpoints: Any, tmp_path: Path, gain: float | None, named: bool
) -> None:
    """What goes into the next norm is then the very tensor that a module gave, which did not run at all otherwise."""
    found = _audited(checkpoints("opt"), tmp_path / "run.h5", lambda model: gain and _normed_again(model, gain))
    assert [culprit.site for culprit in found.culprits] == (
        [] if gain is None else ["model.decoder.layers.0.final_layer_norm:in"]
    ), found.text
    lines = [line for culprit in found.culprits for line in (culprit.explanation.lines if culprit.explanation else ())]
    assert any(line.source == "if not self.do_layer_norm_before:" for line in lines) is named, lines


def test_a_layer_that_adds_nothing_need_not_run(tmp_path: Path) -> None:
    folder = tiny_families.make("llama", tmp_path / "llama")
    model = tiny_families.load(folder)
    with torch.no_grad():
        for part in (model.model.layers[-1].self_attn.o_proj, model.model.layers[-1].mlp.down_proj):
            part.weight.zero_()
    model.save_pretrained(folder)
    found = _audited(folder, tmp_path / "run.h5", _without_the_last_layer)
    assert not found.culprits, found.text


def test_values_whose_squares_overflow_explain_nothing(tmp_path: Path) -> None:
    """Masked scores that no softmax takes are near the largest numbers there are: their own rounding is no excuse."""
    folder = tiny_families.make("recurrentgemma", tmp_path / "reference", attention_window_size=12)
    model = tiny_families.load(folder)
    with torch.no_grad():
        model.model.layers[1].temporal_block.v_proj.weight.mul_(0.01)  # else they are infinite
    model.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = _audited(folder, tmp_path / "run.h5", partial(_set, attention_window_size=512, sliding_window=512))
    [culprit] = found.culprits
    assert culprit.explanation is not None, found.text
    assert {Path(line.file).name for line in culprit.explanation.lines} == {"masking_utils.py"}


def test_a_number_that_does_nothing_is_not_determined() -> None:
    def left(number: float) -> Any:
        return np.full(4, min(number, 5.0))

    assert deviation(left, 9.0) == float("inf")
    assert deviation(left, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("scaling", [0.275, 0.25])
def test_the_roundest_number_is_named_first(checkpoints: Any, tmp_path: Path, scaling: float) -> None:
    """The scores' scale times 1.1, or the soft cap that divides them over 1.1."""
    found = _audited(checkpoints("gemma2"), tmp_path / "run.h5", lambda model: _set(model, scaling=scaling))
    assert bool(found.culprits) is (scaling != 0.25), found.text
    for culprit in found.culprits:
        assert culprit.explanation is not None
        first, *others = culprit.explanation.lines
        assert first.number == 0.275 and "* scaling" in first.source
        assert any("/ softcap" in line.source for line in others)


def test_positions_that_are_all_zero_are_a_factor_of_zero_and_no_small_number(checkpoints: Any, tmp_path: Path) -> None:
    """What a loop does whose positions stay 0: the fit comes as near to 0 as the values tell."""

    def plant(model: Any) -> None:
        model.model.rotary_emb.inv_freq.zero_()

    found = _audited(checkpoints("mixtral"), tmp_path / "run.h5", plant)
    assert found.culprits
    for culprit in found.culprits:
        assert culprit.explanation is not None, found.text
        numbers = [line.number for line in culprit.explanation.lines if line.kind is EditKind.SCALED]
        assert 0.0 in numbers and not any(0.0 < abs(number) < 1e-3 for number in numbers if number), numbers


@pytest.mark.parametrize("most", [None, 1e6])
def test_what_was_not_tried_is_said(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: float | None
) -> None:
    """Where the work comes to its limit before all edits were tried, no line is claimed as if all had been."""
    if most is not None:
        monkeypatch.setattr(explaining, "WORK", most)
    found = _audited(checkpoints("granite"), tmp_path / "run.h5", FAULTS["scale of the residual"][1])
    assert found.culprits
    assert all(culprit.untried == (frozenset({Untried.EDITS}) if most else frozenset()) for culprit in found.culprits)
    assert [told["all_tried"] for told in found.to_json()["culprits"]] == [most is None] * len(found.culprits)
    assert ("not all edits of the reference's source were tried" in found.text) is (most is not None)


def test_conditions_that_are_too_much_work_are_said_to_be_untried(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "WORK", 1.0)
    found = _audited(checkpoints("granite"), tmp_path / "run.h5", FAULTS["scale of the residual"][1])
    assert found.culprits and all(culprit.untried == {Untried.CONDITIONS} for culprit in found.culprits)
    assert not any(told["all_tried"] for told in found.to_json()["culprits"])
    assert "not all conditions of the reference's source were tried: others may fit as well" in found.text


@pytest.mark.parametrize("faulty", [True, False])
def test_the_first_positions_refute_what_is_not_tried_at_all(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: bool
) -> None:
    """Of a long run, few edits are made of the whole: those that remain, and those along the positions."""
    folder = checkpoints("granite")
    model = tiny_families.load(folder)
    if faulty:
        _set(model, scaling=0.3)
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        ids = torch.randint(3, 160, (1, 70), generator=torch.Generator().manual_seed(2))
        model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    tried: dict[int, set[tuple[str, int]]] = {}
    run, beside = Segment.run, Segment.run_beside

    def counted_beside(self: Segment, lanes: Any, refuted: Any = None) -> Any:
        found = beside(self, lanes, refuted)
        for values in found.values():
            if values is not None:
                tried.setdefault(len(values), set()).update((self.nodes[place].name, place) for place in lanes[0])
        return found

    def counted(self: Segment, changed: Any, refuted: Any = None) -> Any:
        values = run(self, changed, refuted)
        if values is not None:
            tried.setdefault(len(values), set()).update((self.nodes[place].name, place) for place in changed)
        return values

    monkeypatch.setattr(Segment, "run", counted)
    monkeypatch.setattr(Segment, "run_beside", counted_beside)
    with tracekit.open(tmp_path / "run.h5") as trace:
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
    assert bool(found.culprits) is faulty, found.text
    if faulty:
        explanation = found.culprits[0].explanation
        assert explanation is not None and not found.culprits[0].untried
        assert any("* scaling" in line.source and line.number == pytest.approx(0.3) for line in explanation.lines)
        assert sorted(tried) == [16, 75]
        assert len(tried[75]) < len(tried[16])


def test_two_faults_are_two_lines(checkpoints: Any, tmp_path: Path) -> None:
    def both(model: Any) -> None:
        _set(model, attn_logit_softcapping=None)
        for layer in model.model.layers:
            layer.input_layernorm.eps = 1e-3

    found = _audited(checkpoints("gemma2"), tmp_path / "run.h5", both)
    named = {culprit.site: culprit.explanation for culprit in found.culprits}
    for layer in range(2):
        norm, core = named[f"model.layers.{layer}.input_layernorm"], named[f"model.layers.{layer}.self_attn.o_proj:in"]
        assert norm is not None and any(
            "self.eps" in line.source and line.number == pytest.approx(1e-3, rel=1e-3) for line in norm.lines
        )
        assert core is not None and any("torch.tanh(" in line.source for line in core.lines)


def test_lines_that_are_not_told_apart_are_all_named(checkpoints: Any, tmp_path: Path) -> None:
    """A factor of the routed experts is one of their weights, or of what divides them."""
    found = _audited(checkpoints("deepseekv3"), tmp_path / "run.h5", FAULTS["scale of the experts"][1])
    explanation = found.culprits[0].explanation
    assert explanation is not None and len(explanation.lines) > 1
    assert explanation.lines[0].source.startswith("topk_weights = topk_weights * self.routed_scaling_factor")
    assert "these values do not tell it from a change at" in found.text
    told = found.to_json()["culprits"][0]["explanation"]
    assert len(told["lines"]) == len(explanation.lines)
    assert told["lines"][0] | {"text": ""} == {
        "type": "edited_line", "file": "transformers/models/deepseek_v3/modeling_deepseek_v3.py",
        "line": explanation.lines[0].line, "last": explanation.lines[0].last, "source": explanation.lines[0].source,
        "kind": "constant", "operation": "mul", "number": 2.4, "stated": 2.5, "other": "", "text": "",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3next", "deepseekv3", "gptoss", "opt"])
def test_a_segment_computes_what_the_replay_does(checkpoints: Any, tmp_path: Path, name: str) -> None:
    """Operations in place, views and routed experts among them."""
    folder = checkpoints(name)
    with tiny_families.run(tiny_families.load(folder), tmp_path / "run.h5") as trace:
        model, sequence = load_reference(str(folder), "float32"), trace.sequences[0]
        replay = Capturing(model, sequence, forward_of(model, trace, sequence))
        sites = replay.sites_with_segments([*sequence.sites, "logits"])
    assert len(sites) == len(sequence.sites) + 1
    for site, segment in sites.values():
        values = segment.run({})
        assert values is not None
        assert np.array_equal(values, site.values, equal_nan=True), site.site


def test_an_edit_leaves_nothing_behind(checkpoints: Any, tmp_path: Path) -> None:
    """Edits that write to other memory, or that make what is written to later another value's memory."""
    folder, name = checkpoints("qwen3next"), "model.layers.0.linear_attn.out_proj:in"
    with tiny_families.run(tiny_families.load(folder), tmp_path / "run.h5") as trace:
        model, sequence = load_reference(str(folder), "float32"), trace.sequences[0]
        replay = Capturing(model, sequence, forward_of(model, trace, sequence))
        site, segment = replay.sites_with_segments([name])[name]
    units = UNIT_ROUNDOFF["float32"], UNIT_ROUNDOFF["float32"]
    suspect: Any = explaining.Suspect(site, cast(Any, None), site.rows, segment, units, 10)
    before = {value: held.clone() for value, held in segment.clean.items()}
    trials = [
        trial
        for trial in suspect._trials()
        if not all(segment.steady(value) for place, _ in trial.at for value in segment.nodes[place].outputs)
    ]
    assert len(trials) > 20
    for trial in trials:
        suspect._values(trial, 1.25)
        changed = [
            value
            for value, held in before.items()
            if not torch.equal(held.nan_to_num(), segment.clean[value].nan_to_num())
        ]
        assert not changed, (trial.edit.kind, trial.change.label, segment.nodes[trial.place].name)


@pytest.mark.parametrize("name", ["granite", "bloom", "gemma3", "qwen3next"])
def test_a_segment_of_all_calls_computes_what_decoding_does(checkpoints: Any, tmp_path: Path, name: str) -> None:
    folder = checkpoints(name)
    with tiny_families.run(tiny_families.load(folder), tmp_path / "run.h5") as trace:
        model, sequence = load_reference(str(folder), "float32"), trace.sequences[0]
        sites = CapturingCalls(model, trace, sequence, {}).sites_with_segments([*sequence.sites, "logits"])
    assert len(sites) == len(sequence.sites) + 1
    for site, segment in sites.values():
        values = segment.run({})
        assert values is not None and len(segment.targets) > 1
        assert np.array_equal(values, site.values, equal_nan=True), site.site


def test_what_the_first_calls_refute_is_not_run_in_the_others(checkpoints: Any, tmp_path: Path) -> None:
    """Its twin: an edit of which all calls together leave little is run in all of them, whatever the first leaves."""
    folder, name = checkpoints("granite"), "model.layers.1.self_attn.o_proj:in"
    with tiny_families.run(tiny_families.load(folder), tmp_path / "run.h5") as trace:
        model, sequence = load_reference(str(folder), "float32"), trace.sequences[0]
        site, segment = CapturingCalls(model, trace, sequence, {}).sites_with_segments([name])[name]
    units = UNIT_ROUNDOFF["float32"], UNIT_ROUNDOFF["float32"]
    clean: Any = explaining.CalledSuspect(site, cast(Any, None), site.rows, segment, units, 10)
    trials = list(clean._trials())
    wanted = next(trial for trial in trials if trial.edit.kind is EditKind.OPERATOR)
    wrong = replace(site, recorded=clean._values(wanted, 0.0))
    suspect: Any = explaining.CalledSuspect(wrong, cast(Any, None), site.rows, segment, units, 10)
    assert suspect._with(wanted, None)[0].left == 0.0
    spared = 0
    for trial in trials[::25]:
        before = segment.work
        tried = suspect._with(trial, None)
        between = segment.work
        values = suspect._values(trial, 0.0)
        if not tried:
            assert values is None or suspect._left(values) > explaining.NEAR
            spared += between - before < (segment.work - between) / 4
    assert spared > len(trials[::25]) / 4


@pytest.mark.parametrize("factor", [1.0, 1.0 + 1e-6])
def test_decoding_is_taken_where_it_is_the_prefill_but_for_float32(
    checkpoints: Any, tmp_path: Path, factor: float
) -> None:
    """DeepSeek's decoding rounds as float32 where its prefill does not. Its twin: what is further off is none."""
    folder, name = checkpoints("deepseekv3"), "model.layers.0.self_attn.o_proj:in"
    with tiny_families.run(tiny_families.load(folder), tmp_path / "run.h5") as trace:
        model, sequence = load_reference(str(folder), "float32"), trace.sequences[0]
        site, _ = Capturing(model, sequence, forward_of(model, trace, sequence)).sites_with_segments([name])[name]
        found = CallSegments(model, trace, sequence, [name], {}).of(replace(site, values=site.values * factor))
    assert (found is not None) is (factor == 1.0)


def test_a_cache_that_counts_by_a_layer_without_keys_decodes_as_generate_does(checkpoints: Any, tmp_path: Path) -> None:
    """MiniMax's first layer keeps none: the model by itself would begin anew at position 0 in every call."""
    folder, name = checkpoints("minimax"), "model.layers.1.self_attn.o_proj:in"
    with tiny_families.run(tiny_families.load(folder), tmp_path / "run.h5") as trace:
        model, sequence = load_reference(str(folder), "float32"), trace.sequences[0]
        site, _ = Capturing(model, sequence, forward_of(model, trace, sequence)).sites_with_segments([name])[name]
        assert CallSegments(model, trace, sequence, [name], {}).of(site) is not None


@pytest.mark.parametrize("decoding", [1.0, 1.7])
def test_an_axis_is_named_whose_effect_depends_on_the_length_of_a_call(
    checkpoints: Any, tmp_path: Path, decoding: float
) -> None:
    """A mean over the positions, of one in decoding. Its twin: decoding is wrong in another way as well, which leaves
    the axis no explanation of all."""

    def over_positions(model: Any) -> None:
        for layer in model.model.layers:
            norm = layer.input_layernorm

            def forward(value: Any, norm: Any = norm) -> Any:
                scale = torch.rsqrt(value.pow(2).mean(-2, keepdim=True) + norm.variance_epsilon)
                return value * scale * norm.weight * (decoding if value.shape[-2] == 1 else 1.0)

            norm.forward = forward

    found = _audited(checkpoints("llama"), tmp_path / "run.h5", over_positions)
    assert [culprit.site for culprit in found.culprits] == [f"model.layers.{n}.input_layernorm" for n in (0, 1)]
    for culprit in found.culprits:
        lines = () if culprit.explanation is None else culprit.explanation.lines
        assert [line.kind for line in lines] == ([EditKind.INDEX] if decoding == 1.0 else []), found.text
        assert all(".mean(-1, keepdim=True)" in line.source for line in lines)


def test_an_edit_is_said_in_a_sentence() -> None:
    line = EditedLine("a/modeling_x.py", 7, 7, "y = torch.tanh(x)", EditKind.LEFT_OUT, "tanh")
    explanation = Explanation(EDITED_LINE, residual=0.4, edit=line)
    assert sentence(explanation) == "as if modeling_x.py:7 (y = torch.tanh(x)) were left out"
    assert explanation.same(Explanation(EDITED_LINE, residual=0.9, edit=line))
    told = explanation_json(explanation)
    assert told is not None and told["kind"] == "edited_line" and told["lines"][0]["line"] == 7
    for kind in EditKind:
        assert sentence(EditedLine("m.py", 1, 2, "z", kind, "mul", 2.0, 1.0, "add")).startswith("as if ")


def test_lines_that_fill_a_cache_are_among_those_named(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values handed to the cache in the wrong order: only a model that keeps one runs that line."""
    from transformers.cache_utils import DynamicCache

    update = DynamicCache.update
    folder = checkpoints("llama")
    model = tiny_families.load(folder)
    with monkeypatch.context() as patched:
        patched.setattr(DynamicCache, "update", lambda self, k, v, *args, **more: update(self, v, k, *args, **more))
        trace = tiny_families.run(model, tmp_path / "run.h5")
    found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
    assert {culprit.site for culprit in found.culprits} == {f"model.layers.{n}.self_attn.o_proj:in" for n in (0, 1)}
    for culprit in found.culprits:
        lines = culprit.explanation.lines
        assert any("cache.update(" in line.source for line in lines), found.text
        assert all(line.kind is EditKind.TAKEN_FOR for line in lines)


@pytest.mark.parametrize("by_an_edit", [True, False])
def test_two_mistakes_are_not_tried_where_one_edit_explains(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_an_edit: bool
) -> None:
    """Its twin: without edits they are."""
    tried: list[object] = []
    monkeypatch.setattr("tracekit.mistakes.explain.pairs", lambda *case: tried.append(case) or [])
    if not by_an_edit:
        monkeypatch.setattr(explaining, "all_edits", tuple)
    folder = checkpoints("llama")
    program = import_module("transformers.models.llama.modeling_llama")
    reference = load_reference(str(folder), "float32")
    rotated = program.apply_rotary_pos_emb
    with monkeypatch.context() as changed:
        changed.setattr(
            program, "apply_rotary_pos_emb", lambda q, k, *table: (rotated(q, k, *table)[0], k * table[0][:, None])
        )
        trace = tiny_families.run(tiny_families.load(folder), tmp_path / "run.h5")
    with trace:
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(reference))
    said = found.culprits[0].explanation
    assert [line.source[:7] for line in (() if said is None else said.lines)][:1] == (["k_embed"] if by_an_edit else [])
    assert bool(tried) is not by_an_edit
