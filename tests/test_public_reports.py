"""Mistakes of public reports on tiny random models: each is found at its site and explained, its twin is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tracekit
from tracekit.mistakes.edited_line import EditKind

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402

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
