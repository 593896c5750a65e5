"""`tracekit check --engine llama.cpp`: a sound GGUF in all ways of llama.cpp has no finding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp")

from tests import tiny_gguf
from tests.speech_traces import tracekit


def test_a_sound_file_has_no_finding(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "tiny.gguf", kind="Q4_1")
    words = [str(model), "--prompt-ids", "5,9,3,17,40,22,8", "--max-new-tokens", "5"]
    code, said = tracekit("check", "--json", "--engine", "llama.cpp", "--", *words)
    found = json.loads(said)["findings"]
    outcomes = {(each["way"], each["name"], each["value"]): each["outcome"] for each in found}
    assert code == 0 and set(outcomes.values()) <= {"equal", "within_rounding", "near_tie"}, outcomes
    varied = {name for _, name, _ in outcomes}
    assert varied >= {"threads", "micro_batch", "flash_attention", "cache_type"}
    assert {way for way, _, _ in outcomes} >= {"at_once", "chunks", "long_prompt"}
