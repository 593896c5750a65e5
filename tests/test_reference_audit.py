"""The audit by the reference program: models of many kinds, none of which has a line of code here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit
from tracekit.auditing.drawn_error import drawn_result, judged
from tracekit.inspection.losses import LooksAhead

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from tracekit_torch.reference_program.loading import prepared  # noqa: E402

from tests import tiny_families  # noqa: E402

CLEAN = ["gemma2", "qwen3next", "deepseekv3", "gpt2", "falcon", "gptneox", "bloom", "cohere", "granite"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_run_is_within_its_bounds(checkpoints: Any, tmp_path: Path, name: str, dtype: str) -> None:
    folder = checkpoints(name)
    with tiny_families.run(tiny_families.load(folder, dtype=dtype), tmp_path / "run.h5") as trace:
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
        stored = {site for sequence in trace.sequences for site in sequence.sites}
    assert found.exit_code == 0, found.text
    assert 0.0 < found.peak <= 1.0
    assert stored <= found.clean, found.unknown


def _set(model: Any, **values: Any) -> None:
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            for name, value in values.items():
                if hasattr(holder, name):
                    setattr(holder, name, value)


def _gain(path: str, factor: float) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        with torch.no_grad():
            model.get_submodule(path).weight.mul_(factor)

    return plant


def _times(factor: float) -> Callable[..., Any]:
    return lambda module, args: (args[0] * factor, *args[1:])


FAULTS: dict[str, tuple[str, Callable[[Any], None], set[str]]] = {
    "soft cap left out": (
        "gemma2",
        lambda model: _set(model, attn_logit_softcapping=None),
        {"model.layers.0.self_attn.o_proj:in", "model.layers.1.self_attn.o_proj:in"},
    ),
    "window one longer": (
        "gemma2",
        lambda model: _set(model, sliding_window=7),
        {"model.layers.0.self_attn.o_proj:in"},
    ),
    "experts not renormalised": (
        "qwen3next",
        lambda model: _set(model, norm_topk_prob=False),
        {f"model.layers.{layer}.mlp.experts" for layer in range(4)},
    ),
    "scale of the experts": (
        "deepseekv3",
        lambda model: _set(model, routed_scaling_factor=2.4),
        {"model.layers.1.mlp.experts"},
    ),
    "eps of one norm": (
        "gpt2",
        lambda model: setattr(model.transformer.h[1].ln_1, "eps", 1e-6),
        {"transformer.h.1.ln_1"},
    ),
    "exact gelu for tanh gelu": (
        "phi",
        lambda model: setattr(model.model.layers[0].mlp, "activation_fn", torch.nn.GELU()),
        {"model.layers.0.mlp.fc2:in"},
    ),
    "gain of one layer": (
        "falcon",
        _gain("transformer.h.1.mlp.dense_h_to_4h", 1.0001),
        {"transformer.h.1.mlp.dense_h_to_4h"},
    ),
    "scale of attention with its bias": (
        "bloom",
        lambda model: _set(model, inv_norm_factor=0.36),
        {"transformer.h.0.self_attention.dense:in", "transformer.h.1.self_attention.dense:in"},
    ),
    "gain behind a relu, where half of the values are exactly 0": (
        "opt",
        lambda model: model.model.decoder.layers[0].fc2.register_forward_pre_hook(_times(1.0001)),
        {"model.decoder.layers.0.fc2:in"},
    ),
    "scale of the logits": ("cohere", lambda model: _set(model, logit_scale=0.07), {"logits"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_at_its_site_and_nowhere_else(checkpoints: Any, tmp_path: Path, fault: str) -> None:
    name, plant, sites = FAULTS[fault]
    folder = checkpoints(name)
    model = tiny_families.load(folder)
    plant(model)
    with tiny_families.run(model, tmp_path / "run.h5") as trace:
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
    assert found.exit_code == 1 and found.peak > 1.0
    assert {culprit.site for culprit in found.culprits} == sites, found.text


def test_two_faults_at_once_are_two_culprits(checkpoints: Any, tmp_path: Path) -> None:
    folder = checkpoints("gemma2")
    model = tiny_families.load(folder)
    FAULTS["window one longer"][1](model)
    _gain("model.layers.1.mlp.up_proj", 1.00001)(model)
    with tiny_families.run(model, tmp_path / "run.h5") as trace:
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
    assert {culprit.site for culprit in found.culprits} == {
        "model.layers.0.self_attn.o_proj:in",
        "model.layers.1.mlp.up_proj",
    }


def test_an_input_that_is_another_module_s_output_is_compared_where_the_reference_gives_another(
    checkpoints: Any, tmp_path: Path
) -> None:
    """A dropped residual is one at the norm's input, which the candidate stores as the output that it is: not at the
    norm, whose own rounding would pass for it."""
    folder = checkpoints("llama")
    model = tiny_families.load(folder)
    layer = model.model.layers[1]

    def without_residual(hidden_states: Any, **settings: Any) -> Any:
        hidden_states, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **settings)
        return hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))

    layer.forward = without_residual
    with tiny_families.run(model, tmp_path / "run.h5") as trace:
        site = "model.layers.1.post_attention_layernorm:in"
        assert trace.sites[site.removesuffix(":in")].input == "model.layers.1.self_attn.o_proj"
        assert site not in trace.sequences[0].sites
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
    assert [culprit.site for culprit in found.culprits] == [site], found.text


def test_more_tests_let_each_of_them_pass_more() -> None:
    """What is beyond its limit by chance, where few tests are made, is within it where many are."""
    drawn = np.random.default_rng(0)
    values = drawn.standard_normal((40, 16))
    errors = (drawn.standard_normal((9, 40, 16)) * 1e-7).astype(np.float32)
    result = drawn_result(values, errors[1:], 2.0**-30)
    own = judged("site", np.arange(40), values + errors[0], result, 0.9, 2.0**-30)
    assert own.wrong and not own.held_to(1e-9).wrong and own.held_to(1e-9).level == 1e-9


def test_an_operation_in_place_rounds_as_well() -> None:
    from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

    one, other = torch.full((64,), 1.5, dtype=torch.float64), torch.full((64,), 0.5, dtype=torch.float64)
    with DrawnRounding(2.0**-24, 2.0**-24, 0) as drawn:
        one += other
        one.mul_(1.0)
    off = drawn.off(one)
    assert off is not None and bool((one == 2.0).all())
    off = off.abs()
    assert 0.0 < float(off.max()) <= 2.0 * 2.0**-23 and float(off.min()) > 0.0


@pytest.mark.parametrize("given", [{"alpha": 0.25}, {"beta": 0.5}, {"alpha": 3.0, "beta": 0.0}])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_scaled_product_is_off_by_its_rounding_alone(given: dict[str, float], in_place: bool) -> None:
    """Bloom's attention is `alibi.baddbmm(q, k, beta=, alpha=)`: without alpha, all of it would pass for rounding."""
    from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

    made = torch.Generator().manual_seed(0)
    start, one, other = (torch.randn(4, 16, 16, generator=made, dtype=torch.float64) for _ in range(3))
    with DrawnRounding(2.0**-24, 2.0**-24, 0) as drawn:
        out = start.clone().baddbmm_(one, other, **given) if in_place else torch.baddbmm(start, one, other, **given)
    off = drawn.off(out)
    assert off is not None and 0.0 < float(off[0].abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["sum", "mean", "var_mean"])
def test_a_sum_that_cancels_is_off_by_what_its_terms_round(name: str) -> None:
    from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

    given = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given -= given.mean(-1, keepdim=True)

    def compute() -> Any:
        out = getattr(torch, name)(given, -1)
        return out[1] if name == "var_mean" else out

    with DrawnRounding(2.0**-24, 2.0**-24, 0) as drawn:
        errors = drawn.off(compute())
    assert errors is not None
    off = float(errors.square().mean().sqrt()) * 2.0**24
    # Added up in turn: a walk of 64 roundings, the k-th of sqrt(k) terms.
    walk = (64.0 if name == "sum" else 1.0) / 6.0**0.5
    assert 0.7 * walk < off < 1.4 * walk


@pytest.mark.parametrize(("unit", "least"), [(2.0**-11, 2.0**-25), (2.0**-8, 0.0)], ids=["float16", "bfloat16"])
def test_what_is_small_in_float16_is_off_by_a_step_and_not_by_a_share(unit: float, least: float) -> None:
    """float16 has no numbers between 0 and 6e-8; in bfloat16 there are as many near 0 as elsewhere."""
    from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

    sizes = torch.tensor([0.0, 1e-9, 1e-6, 1.0], dtype=torch.float64)
    given = sizes.expand(64, 4).clone()
    with DrawnRounding(unit, 2.0**-24, 0) as drawn:
        errors = drawn.off(given * 1.0)
    assert errors is not None
    largest = errors.abs().amax((0, 1)).double()
    bound = torch.maximum(sizes * unit, sizes.clamp_max(least))
    assert bool((largest <= bound).all()) and bool((largest >= 0.9 * bound).all())
    recorded = drawn_result(sizes[None].numpy(), np.zeros((1, 1, 4), np.float32), unit)
    assert np.allclose(np.sqrt(3.0 * recorded.variance), bound.numpy(), rtol=1e-6, atol=1e-140)


@pytest.mark.parametrize("gain", [1.0, 1.25])
def test_squares_of_small_numbers_in_float16_are_rounding_and_a_gain_is_not(tmp_path: Path, gain: float) -> None:
    class Squares(torch.nn.Module):
        """A gate of squares, as RWKV has it."""

        def __init__(self, gain: float = 1.0) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.table, self.up = torch.nn.Embedding(61, 32), torch.nn.Linear(32, 64, bias=False)
            self.down, self.head = torch.nn.Linear(64, 32, bias=False), torch.nn.Linear(32, 61, bias=False)
            self.up.weight.data.mul_(5e-3)
            self.down.weight.data.mul_(1e3)
            self.gain = gain

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table(ids)
            return self.head(x + self.gain * self.down(torch.relu(self.up(x)).square()))

    def reference(dtype: str) -> torch.nn.Module:
        return prepared(Squares().eval(), dtype)

    model = Squares(gain).eval().half()
    ids = torch.tensor([[3, 4, 5, 6, 7, 9, 11, 20, 33, 41]])
    with torch.no_grad(), tracekit_torch.record(model, tmp_path / "a.h5"):
        model(ids)
    found = tracekit.audit(tmp_path / "a.h5", by=tracekit_torch.by_reference(reference, "the port"))
    assert [culprit.site for culprit in found.culprits] == ([] if gain == 1.0 else ["head:in"]), found.text


@pytest.mark.parametrize(("scale", "shared"), [(32**0.5, True), (5.5, False)])
def test_a_scalar_is_rounded_once_for_all_values(scale: float, shared: bool) -> None:
    """An embedding times the root of its width: in float32 all values are off by the root's own rounding."""
    from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

    given = torch.randn(400, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with DrawnRounding(2.0**-24, 2.0**-24, 0, runs=32) as drawn:
        out = given * scale
    off = drawn.off(out)
    assert off is not None
    spread = float((off / out).mean((1, 2)).square().mean().sqrt()) * 2.0**24
    assert 0.3 < spread < 0.9 if shared else spread < 0.02


@pytest.mark.parametrize("unit", [2.0**-24, 2.0**-8])
@pytest.mark.parametrize(
    "constant",
    [
        lambda given, number: torch.tensor(number, dtype=given.dtype),
        lambda given, number: torch.full((1,), number, dtype=given.dtype),
        lambda given, number: torch.full_like(given, number),
        lambda given, number: given.new_zeros(1).fill_(number),
        lambda given, number: torch.full_like(given, -30.0).clamp(min=number),
        lambda given, number: given.new_zeros(1).masked_fill(torch.tensor([True]), number),
        lambda given, number: torch.zeros_like(given) + number,
    ],
    ids=["tensor", "full", "full_like", "fill", "clamp", "masked_fill", "added"],
)
def test_a_constant_of_the_program_is_rounded_once_wherever_it_goes(constant: Any, unit: float) -> None:
    """T5Gemma: `hidden * torch.tensor(width**0.5, dtype=hidden.dtype)`. Constants that the dtype has are exact."""
    from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

    given = torch.randn(400, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def spread(number: float) -> float:
        with DrawnRounding(unit, unit, 0, runs=32) as drawn:
            out = given * constant(given, number)
        off = drawn.off(out)
        assert off is not None
        return float((off / out).mean((1, 2)).square().mean().sqrt()) / unit

    assert 0.3 < spread(32**0.5) < 0.9 and spread(-5.5) < 0.02


def test_what_is_computed_of_a_single_number_without_dimensions_is_rounded_as_well() -> None:
    """DiffLlama: `exp(sum(q * k)) - exp(sum(q * k)) + initial`, all without a dimension, times the second attention."""
    from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

    one, other = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with DrawnRounding(2.0**-24, 2.0**-24, 0, runs=8) as drawn:
        gain = torch.exp((one * other).sum()) - torch.exp((one * one).sum()) + 0.2
        out = gain * torch.ones(4, dtype=torch.float64)
    off = drawn.off(out)
    assert off is not None and off.shape == (8, 4) and float(off.abs().max()) > 0.0


def _added(value: Any) -> Any:
    return torch.zeros(8, 64, dtype=value.dtype).index_add_(0, torch.arange(400) % 8, value)


def _scattered(value: Any) -> Any:
    return torch.zeros(8, 64, dtype=value.dtype).scatter_add(0, (torch.arange(400) % 8)[:, None].expand(-1, 64), value)


def _put(value: Any) -> Any:
    return torch.zeros(8, 64, dtype=value.dtype).index_put((torch.arange(400) % 8,), value, accumulate=True)


ROUNDED: dict[str, Callable[[Any], Any]] = {
    "index_add": _added,
    "scatter_add": _scattered,
    "index_put": _put,
    "std": lambda value: value.std(-1),
    "std_mean": lambda value: torch.std_mean(value, -1)[1],
    "prelu": lambda value: torch.nn.functional.prelu(value, value.new_tensor([0.3])),
    "fft": lambda value: torch.fft.fft(value).abs(),
    "rfft": lambda value: torch.view_as_real(torch.fft.rfft(value)),
    "irfft": lambda value: torch.fft.irfft(torch.fft.rfft(value)),
    "complex": lambda value: torch.view_as_real(torch.view_as_complex(value.view(400, 32, 2)) * torch.polar(
        torch.ones(32, dtype=value.dtype), torch.arange(32, dtype=value.dtype)
    )),
    "cdist": lambda value: torch.cdist(value[:20], value[20:40]),
    "avg_pool2d": lambda value: torch.nn.functional.avg_pool2d(value[None, None], 3),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUNDED)
def test_what_is_no_pointwise_operation_rounds_as_float32_does(name: str) -> None:
    from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

    given = torch.randn(400, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    with DrawnRounding(2.0**-24, 2.0**-24, 0, runs=8) as drawn:
        exact = ROUNDED[name](given.double())
    off = drawn.off(exact)
    assert off is not None
    error = float((ROUNDED[name](given).double() - exact).square().mean().sqrt())
    assert error < 1.5 * float(off.square().mean().sqrt()) < 40.0 * error


MOVED: dict[str, Callable[[Any], Any]] = {
    "cat": lambda value: torch.cat([value, value]),
    "index": lambda value: value[torch.arange(3)],
    "topk": lambda value: value.topk(3)[0],
    "tril": lambda value: value.tril(),
    "amax": lambda value: value.amax(-1),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_moves_numbers_rounds_nothing(name: str) -> None:
    from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

    given = torch.randn(40, 64, dtype=torch.float64)
    with DrawnRounding(2.0**-24, 2.0**-24, 0) as drawn:
        out = MOVED[name](given)
    off = drawn.off(out)
    assert off is None or not off.any()


FUSED: dict[str, tuple[float, float, Callable[[Any], Any]]] = {
    "gelu": (0.3, -3.3, torch.nn.functional.gelu),
    "gelu near zero": (0.3, -0.3, torch.nn.functional.gelu),
    "gelu left of it": (0.3, -1.3, torch.nn.functional.gelu),
    "glu": (1.0, 0.0, torch.nn.functional.glu),
    "hardswish": (1.0, 0.0, torch.nn.functional.hardswish),
    "log sigmoid": (1.0, 0.0, torch.nn.functional.logsigmoid),
    "layer norm far from zero": (1.0, 30.0, lambda x: torch.nn.functional.layer_norm(x, (32,))),
}
"""What a kernel is given, as a multiple of normal numbers and an offset, and the kernel."""


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_kernel_of_torch_is_off_by_no_more_than_its_drawn_rounding(name: str) -> None:
    """Both are off by more than their steps are one after the other, each rounded."""
    from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

    scale, offset, compute = FUSED[name]
    given = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)) * scale + offset
    with DrawnRounding(2.0**-24, 2.0**-24, 0, runs=32) as drawn:
        exact = compute(given.double())
        bound = drawn.off(exact)
    assert bound is not None
    error = compute(given).double() - exact
    assert 0.2 < float(error.square().mean().sqrt() / bound.square().mean().sqrt()) < 1.0


def test_a_piecewise_polynomial_of_the_error_function_is_off_by_no_more_than_is_drawn() -> None:
    """As processors with AVX-512 have it, on any: in single precision, each step rounded."""
    from tracekit_torch.reference_program import error_function

    edges, table = error_function._pieces()
    value = torch.rand(40000, generator=torch.Generator().manual_seed(0)) * 3.6 + 0.3
    piece, square = torch.bucketize(value.double(), edges, right=True), value * value
    sum_ = torch.zeros_like(value)
    for row in table.float().flip(0):
        sum_ = sum_ * square + row[piece]
    off = (value * sum_).double() - torch.erf(value.double() / 2.0**0.5)
    drawn = error_function.pieces_off(value) * 2.0**-24 / 3.0**0.5
    for first in (0.3, 1.0, 2.0, 3.0):
        here = (value >= first) & (value < first + 0.7)
        assert 0.2 < float(off[here].square().mean().sqrt() / drawn[here].square().mean().sqrt()) < 1.0
    beyond = torch.tensor([0.0, 8.0, 1e30, float("inf")])
    assert error_function.pieces_off(beyond).tolist() == [0.0] * 4


def test_a_folder_that_is_no_model_is_one_line(checkpoints: Any, tmp_path: Path) -> None:
    folder = checkpoints("gpt2")
    tiny_families.run(tiny_families.load(folder), tmp_path / "run.h5").close()
    with pytest.raises(tracekit.TraceError, match=r"config.json"):
        tracekit.audit(tmp_path / "run.h5", folder, by=tracekit_torch.by_reference(tmp_path))


def test_what_is_computed_from_values_that_are_not_finite_is_no_culprit(checkpoints: Any, tmp_path: Path) -> None:
    """Rows that are finite inherit what their layer got wrong, unless the layer's own values are put in whole."""
    folder = checkpoints("qwen3next")
    model = tiny_families.load(folder)

    def faulty(_: Any, args: Any, output: Any) -> Any:
        output = output * 1.5
        return output.masked_fill(torch.arange(output.shape[1])[None, :, None] > 3, float("nan"))

    model.model.layers[0].input_layernorm.register_forward_hook(faulty)
    with tracekit_torch.record(model, tmp_path / "run.h5"), torch.no_grad():
        model(torch.tensor(tiny_families.PROMPT))
    found = tracekit.audit(tmp_path / "run.h5", folder, by=tracekit_torch.by_reference(folder))
    assert found.non_finite is not None
    assert {culprit.site for culprit in found.culprits} == {"model.layers.0.input_layernorm"}, found.text


@pytest.mark.parametrize("faulty", [False, True])
def test_a_model_that_looks_ahead_is_judged_by_its_prompts_call(tmp_path: Path, faulty: bool) -> None:
    """An encoder that generates computes all positions anew at each step, and a trace holds the first of each."""
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    sizes: Any = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=300)
    BertLMHeadModel(BertConfig(**sizes, initializer_range=0.2)).save_pretrained(tmp_path / "bert")
    model: Any = BertLMHeadModel.from_pretrained(tmp_path / "bert", attn_implementation="eager").eval()
    if faulty:
        model.bert.encoder.layer[1].intermediate.intermediate_act_fn = torch.nn.GELU(approximate="tanh")
    prompt = torch.arange(5, 15)[None]
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        model.generate(prompt, do_sample=False, max_new_tokens=4, eos_token_id=None, pad_token_id=0)
    found = tracekit.audit(tmp_path / "run.h5", tmp_path / "bert", by=tracekit_torch.by_reference(tmp_path / "bert"))
    assert [(each.judged, each.held) for each in found.lost if isinstance(each, LooksAhead)] == [(10, 13)]
    wrong = {culprit.site for culprit in found.culprits}
    assert wrong <= {f"bert.encoder.layer.1.{site}" for site in ("intermediate", "output.dense:in")}
    assert bool(wrong) is faulty and found.exit_code == (1 if faulty else 2), found.text
