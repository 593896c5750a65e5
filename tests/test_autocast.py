"""A program under torch.autocast: its products round both operands, its weights stay in float32."""

from __future__ import annotations

from pathlib import Path

import pytest

import tracekit

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402

from tests import tiny_families  # noqa: E402

IDS = torch.tensor([[5, 9, 2, 44], [7, 8, 9, 10]])


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("faulty", [False, True])
def test_what_autocast_rounds_is_no_departure(checkpoints, tmp_path: Path, family: str, faulty: bool) -> None:
    folder = checkpoints(family)
    model = tiny_families.load(folder, "sdpa")
    if faulty:
        model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _, given, made: made * 1.05)
    with (
        torch.inference_mode(),
        tracekit_torch.record(model, tmp_path / "run.h5"),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False, pad_token_id=0)
    found = tracekit.audit(tmp_path / "run.h5", folder)
    assert [culprit.site for culprit in found.culprits] == ["model.layers.1.mlp.down_proj"] * faulty, found.text
    with pytest.raises(tracekit.TraceError, match=r"under torch\.autocast"):
        tracekit.audit(tmp_path / "run.h5", folder, by=tracekit_torch.by_reference(folder))
