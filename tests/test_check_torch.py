"""`tracekit check --engine transformers`: a model folder in the ways in which engines serve a request, and a fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny_families
from tests.speech_traces import tracekit

torch = pytest.importorskip("torch")

IDS = ",".join(map(str, tiny_families.PROMPT[0]))


def test_a_sound_model_has_no_finding(tmp_path: Path) -> None:
    tiny_families.make("mistral", tmp_path / "model", torch_dtype="float32")
    words = [str(tmp_path / "model"), "--prompt-ids", IDS, "--max-new-tokens", "5"]
    code, said = tracekit("check", "--json", "--engine", "transformers", "--", *words)
    found = json.loads(said)["findings"]
    outcomes = {(each["way"], each["value"]): each["outcome"] for each in found}
    assert code == 0 and set(outcomes.values()) <= {"equal", "within_rounding", "near_tie"}, outcomes
    ways = {way for way, _ in outcomes}
    assert ways >= {"setting", "wider_dtype", "at_once", "chunks", "second_request", "prefix_reused", "in_a_batch"}


def test_a_cache_that_loses_precision_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    plain = transformers.DynamicCache.update

    def rounded(self, keys, values, *more, **named):  # type: ignore[no-untyped-def]
        if keys.shape[2] == 1:  # a decoded token's
            keys = keys.to(torch.float16).to(keys.dtype)
        return plain(self, keys, values, *more, **named)

    monkeypatch.setattr(transformers.DynamicCache, "update", rounded)
    tiny_families.make("llama", tmp_path / "model")
    words = [str(tmp_path / "model"), "--prompt-ids", IDS, "--max-new-tokens", "5"]
    code, said = tracekit("check", "--json", "--engine", "transformers", "--", *words)
    found = json.loads(said)["findings"]
    assert code == 1
    assert {each["way"] for each in found if each["outcome"] == "fault"} >= {"checkpoint", "at_once"}
