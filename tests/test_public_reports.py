"""Mistakes of public reports on tiny random models: each is found at its site and explained, its twin is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tracekit
from tracekit.mistakes.edited_line import EditKind
from tracekit.mistakes.explanation import Extent

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from tracekit_torch.adapters.causal_calls import cache_of  # noqa: E402

from tests import tiny_families  # noqa: E402

LENGTH = 24


def _roberta(folder: Path, pad: int) -> Any:
    torch.manual_seed(11)
    config = transformers.XLMRobertaConfig(
        vocab_size=160, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=100, pad_token_id=pad,
    )  # fmt: skip
    made = transformers.XLMRobertaForMaskedLM(config)
    with torch.no_grad():
        for value in made.parameters():
            if value.dim() >= 2:
                value.copy_(torch.randn_like(value) / value.shape[-1] ** 0.5)
    made.save_pretrained(folder)
    return transformers.XLMRobertaForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()


def _counted(first: int) -> Callable[..., Any]:
    return lambda ids, *rest: torch.arange(first, first + ids.shape[1])[None]


@pytest.mark.parametrize("pad", [0, 1, 3])
@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("faulty", [True, False])
def test_positions_counted_from_0_in_place_of_pad_and_1(tmp_path: Path, pad: int, padding: int, faulty: bool) -> None:
    model = _roberta(tmp_path / "model", pad)
    ids = torch.randint(4, 150, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[0, LENGTH - padding :] = pad
    if faulty:
        model.roberta.embeddings.create_position_ids_from_input_ids = _counted(0)
    elif not padding:
        model.roberta.embeddings.create_position_ids_from_input_ids = _counted(pad + 1)  # the same in other words
    with tracekit_torch.record(model, tmp_path / "run.h5"), torch.no_grad():
        model(ids, attention_mask=(ids != pad).long())
    found = tracekit.audit(tmp_path / "run.h5", tmp_path / "model", by=tracekit_torch.by_reference(tmp_path / "model"))
    if not faulty:
        assert not found.culprits, found.text
        return
    assert [culprit.site for culprit in found.culprits] == ["roberta.embeddings.position_embeddings"], found.text
    line = found.culprits[0].explanation.lines[0]
    assert (line.kind, line.name) == (EditKind.LOOKED_UP, "modeling_xlm_roberta.py")
    assert "looked up rows counted by position from 0" in found.text


def _sum_in(dtype: str) -> Callable[[Any], None]:
    """1 + w of every norm computed in a format."""

    def plant(model: Any) -> None:
        for module in model.modules():
            if type(module).__name__ == "GemmaRMSNorm":
                factor = 1.0 + module.weight.detach().to(getattr(torch, dtype))
                module.forward = lambda x, module=module, factor=factor: (
                    module._norm(x.float()) * factor.float()
                ).type_as(x)

    return plant


@pytest.mark.parametrize("model", ["gemma"])
@pytest.mark.parametrize(
    ("held", "computed", "found"),
    [
        ("bfloat16", "float32", {"what": "weight + 1", "dtype": "bfloat16"}),  # a checkpoint in 16 bits
        ("float32", "float32", {"what": "weight and weight + 1", "dtype": "bfloat16"}),
        ("bfloat16", "bfloat16", None),  # in a program of that format it is rounding like any other
    ],
)
def test_1_and_the_weight_of_a_norm_added_in_bfloat16(
    tmp_path: Path, model: str, held: str, computed: str, found: dict[str, str] | None
) -> None:
    folder = tiny_families.make(model, tmp_path / "model")
    tiny_families.load(folder, dtype=held).save_pretrained(folder)
    traces = {}
    for name, dtype in (("right", "float64"), ("wrong", "bfloat16")):
        program = tiny_families.load(folder, dtype=computed)
        _sum_in(dtype)(program)
        traces[name] = tiny_families.run(program, tmp_path / f"{name}.h5")
    for by in ({}, {"by": tracekit_torch.by_reference(folder)}):
        assert not tracekit.audit(traces["right"], folder, **by).culprits
        audit = tracekit.audit(traces["wrong"], folder, **by)
        said = {(culprit.explanation.mistake.id, *culprit.explanation.values.values()) for culprit in audit.culprits}
        assert said == (set() if found is None else {("norm_weight_rounded", *found.values())}), audit.text
        assert len(audit.culprits) == (0 if found is None else 5)
    verdict = tracekit.diff(traces["right"], traces["wrong"], weights=folder)
    assert verdict.verdict == ("parity" if found is None else "divergence"), verdict.text


def _mamba(folder: Path, name: str) -> None:
    torch.manual_seed(11)
    more = {"num_heads": 8, "head_dim": 8, "n_groups": 1} if name == "Mamba2Config" else {}
    config = getattr(transformers, name)(vocab_size=160, hidden_size=32, state_size=8, num_hidden_layers=2, **more)
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)


def _kept_in(dtype: str, what: tuple[str, ...]) -> Callable[[Any], None]:
    """Attributes of the cache rounded to a format after each call."""

    def after(_: Any, args: Any, output: Any) -> None:
        for layer in cache_of(output).layers:
            for name in what:
                held = getattr(layer, name, None)
                for value in held.values() if isinstance(held, dict) else () if held is None else [held]:
                    value.copy_(value.to(getattr(torch, dtype)).to(value.dtype))

    return lambda model: model.register_forward_hook(after)


STATE = ("recurrent_states",)
KEPT = {
    "mamba": (STATE, "bfloat16"),
    "mamba2": (STATE, "bfloat16"),
    "qwen3next": (STATE, "bfloat16"),  # linear attention
    "llama": (("keys", "values"), "float16"),
}


@pytest.mark.parametrize("model", KEPT)
@pytest.mark.parametrize("faulty", [True, False])
def test_what_is_kept_between_calls_in_a_narrower_format(tmp_path: Path, model: str, faulty: bool) -> None:
    folder, (what, dtype) = tmp_path / "model", KEPT[model]
    if model.startswith("mamba"):
        _mamba(folder, f"{model.capitalize()}Config")
    else:
        tiny_families.make(model, folder)
    program = tiny_families.load(folder, None if model.startswith("mamba") else "eager")
    _kept_in(dtype if faulty else "float64", what)(program)
    with tiny_families.run(program, tmp_path / "run.h5") as trace:
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
    assert bool(found.culprits) is faulty, found.text
    for culprit in found.culprits:
        said = culprit.explanation
        assert said.mistake.id == "kept_rounded" and said.value == dtype and not said.also, found.text
        assert said.values["what"] == " and ".join(name.replace("_", " ") for name in what)
        assert said.where.extent is Extent.DECODING


@pytest.mark.parametrize("model", ["mamba", "qwen3next"])
def test_a_state_in_the_programs_own_16_bits_is_rounding(tmp_path: Path, model: str) -> None:
    folder = tmp_path / "model"
    _mamba(folder, "MambaConfig") if model == "mamba" else tiny_families.make(model, folder)
    traces = {}
    for name, dtype in (("right", "float32"), ("wrong", "bfloat16")):
        program = tiny_families.load(folder, None if model == "mamba" else "eager", "bfloat16")
        _kept_in(dtype, STATE)(program)
        traces[name] = tiny_families.run(program, tmp_path / f"{name}.h5")
    verdict = tracekit.diff(traces["right"], traces["wrong"], weights=folder, by=tracekit_torch.by_reference(folder))
    assert verdict.verdict == "parity", verdict.text
