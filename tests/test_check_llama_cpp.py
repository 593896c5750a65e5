"""`tracekit check --engine llama.cpp`: a sound GGUF in all ways of llama.cpp has no finding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp")

import tracekit_llama_cpp
from tracekit_llama_cpp import recording

from tests import tiny_gguf
from tests.speech_traces import tracekit
from tracekit import audit, diff, open
from tracekit.selfcheck.conduct import check
from tracekit.selfcheck.variation import Outcome
from tracekit.verdict.cause import Cause
from tracekit.verdict.decision import Decision
from tracekit.verdict.evidence import InStatedUnits


def test_a_sound_file_has_no_finding(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "tiny.gguf", kind="Q4_1")
    words = [str(model), "--prompt-ids", "5,9,3,17,40,22,8", "--max-new-tokens", "5"]
    code, said = tracekit("check", "--json", "--engine", "llama.cpp", "--", *words)
    found = json.loads(said)["findings"]
    outcomes = {(each["way"], each["name"], each["value"]): each["outcome"] for each in found}
    assert code == 0 and set(outcomes.values()) <= {"equal", "within_rounding", "near_tie"}, outcomes
    varied = {name for _, name, _ in outcomes}
    assert varied >= {"threads", "micro_batch", "flash_attention", "cache_type"}
    assert {way for way, _, _ in outcomes} >= {"at_once", "chunks", "long_prompt", "second_request", "prefix_reused"}


def test_a_prefix_of_another_request_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recording._Steps.run

    def run(self, context, ids, taps, kept=0):  # type: ignore[no-untyped-def]
        if self._options.keep_prefix and not kept:
            ids = [ids[0] + 1, *ids[1:]]  # what the later request finds in the cache
        return plain(self, context, ids, taps, kept)

    monkeypatch.setattr(recording._Steps, "run", run)
    model = tiny_gguf.write(tmp_path / "tiny.gguf", kind="Q4_1")
    words = [str(model), "--prompt-ids", "5,9,3,17,40,22,8", "--max-new-tokens", "5"]
    code, said = tracekit("check", "--json", "--engine", "llama.cpp", "--", *words)
    found = json.loads(said)["findings"]
    assert code == 1 and {each["way"] for each in found if each["outcome"] == "fault"} == {"prefix_reused"}


def test_requests_one_after_the_other_are_sequences(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "tiny.gguf", kind="Q8_0")
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3, "requests": 2, "keep_prefix": 3}
    done = tracekit_llama_cpp.record(model, tmp_path / "t.h5", prompt=IDS, **options)
    assert done == tracekit_llama_cpp.generate(model, prompt=IDS, **options)
    with open(tmp_path / "t.h5") as trace:
        assert [list(each.tokens) for each in trace.sequences] == [list(done.tokens)] * 2
        ranges = [each.sites["model.layers.0"].ranges for each in trace.sequences]
    assert ranges == [((0, 10),), ((3, 10),)]


IDS = [5, 9, 3, 17, 40, 22, 8]


@dataclass(frozen=True)
class FewSites:
    """llama.cpp at a level that keeps the layers' outputs, with and without flash attention, and from a file with a
    fault."""

    model: Path
    faulty: Path
    base = "llama.cpp"
    settings = frozenset({"way"})
    values: Mapping[str, tuple[str, ...]] = ()  # type: ignore[assignment]

    def record(self, settings: Mapping[str, str], folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        way = settings.get("way", "as usual")
        file, attention = (self.faulty, "off") if way == "faulty" else (self.model, "off" if way == "off" else "on")
        out = folder / "run.h5"
        options = {"max_new_tokens": 5, "level": "layers", "flash_attention": attention}
        tracekit_llama_cpp.record(file, out, prompt=IDS, **options)
        return out


@pytest.mark.parametrize("tensor", ["blk.1.attn_output.weight", "blk.1.ffn_down.weight", "blk.1.attn_v.weight"])
def test_few_sites_are_judged_in_the_stated_arithmetic_and_a_fault_among_them_is_named(
    tensor: str, tmp_path: Path
) -> None:
    model = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.Sizes(layers=3), kind="Q4_1")
    faulty = tiny_gguf.scaled(model, tmp_path / "faulty.gguf", tensor, 1.01)
    program = FewSites(model, faulty, {"way": ("off", "faulty")})
    found = {each.variation.value: each for each in check(program, tmp_path / "runs", str(model)).findings}
    assert found["off"].outcome is Outcome.WITHIN_ROUNDING
    assert found[None].outcome is Outcome.WITHIN_ROUNDING  # against the checkpoint
    assert found["faulty"].outcome is Outcome.FAULT
    verdict = found["faulty"].verdict
    assert verdict is not None and verdict.finding is not None and verdict.cause is Cause.LAYER
    assert verdict.finding.site == "model.layers.1"


def test_few_sites_without_their_file_are_judged_in_the_unit_of_the_stated_arithmetic(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.Sizes(layers=3), kind="Q4_1")
    faulty = tiny_gguf.scaled(model, tmp_path / "faulty.gguf", "blk.1.ffn_down.weight", 3.0)
    program = FewSites(model, faulty)
    runs = {way: program.record({"way": way}, tmp_path / way) for way in ("as usual", "off", "faulty")}
    model.unlink()
    faulty.unlink()
    with open(runs["as usual"]) as base, open(runs["off"]) as off, open(runs["faulty"]) as wrong:
        sound = diff(base, off)
        assert sound.decision is Decision.PARITY and any(isinstance(note, InStatedUnits) for note in sound.notes)
        found = diff(base, wrong)
    assert found.cause is Cause.LAYER and found.finding is not None and found.finding.site == "model.layers.1"


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_layers_alone_are_recomputed_from_the_tokens(architecture: str, tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "tiny.gguf", kind="Q8_0", architecture=architecture)
    target = tmp_path / "t.h5"
    tracekit_llama_cpp.record(model, target, prompt=IDS, max_new_tokens=5, sites=r"layers\.\d+$")
    found = audit(target)
    assert not found.departs and found.clean >= {"model.layers.0", "model.layers.1"}
