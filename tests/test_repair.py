"""`tracekit repair`: right values written into llama.cpp while it runs, and the tokens that come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tracekit_llama_cpp as llama_cpp
from tracekit_llama_cpp.plan import dense, scattered
from tracekit_llama_cpp.repair import repair
from tracekit_llama_cpp.writing import Placed, Written

import tracekit
from tests import tiny_gguf
from tests.speech_traces import tracekit as command
from tests.test_llama_cpp import PROMPT, in_pytorch
from tracekit.exit_codes import ExitCode
from tracekit.report.repair_text import repair_text
from tracekit.trace import TraceError

DRAWN = {"temperature": 1.0, "seed": 5}
STEPS = 12


def recorded(model: Path, out: Path, **settings: Any) -> Path:
    llama_cpp.record(model, out, **{"prompt": PROMPT, "max_new_tokens": STEPS, **settings})
    return out


def repaired(reference: Path, candidate: Path, **options: Any) -> Any:
    with tracekit.open(reference) as one, tracekit.open(candidate) as other:
        return repair(one, other, **options)


def planted(folder: Path, fault: str, *, architecture: str = "llama", kind: str = "Q4_1") -> tuple[Path, Path]:
    """The right file, and one with a fault."""
    wrong = tiny_gguf.Sizes(theta=200.0 if fault == "theta" else 10000.0)
    made = [
        tiny_gguf.write(folder / f"{name}.gguf", sizes, kind=kind, architecture=architecture)
        for name, sizes in (("right", tiny_gguf.Sizes()), ("wrong", wrong))
    ]
    tiny_gguf.damage(made[1], fault)
    return made[0], made[1]


SITES = {
    "theta": tuple(f"model.layers.{layer}.self_attn.o_proj:in" for layer in (0, 1)),
    "heads swapped": ("model.layers.0.self_attn.q_proj",),
    "another layer's tensor": ("model.layers.1.mlp.down_proj",),
}
WAYS = {
    "drawn": {**DRAWN},
    "top-k": {**DRAWN, "temperature": 3.0, "top_k": 40, "top_p": 0.99},
    "micro-batches": {**DRAWN, "micro_batch": 5},
    "batches": {**DRAWN, "batch": 8, "micro_batch": 3},
    "no flash attention": {**DRAWN, "flash_attention": "off"},
    "cache in float32": {**DRAWN, "cache_type": "f32", "flash_attention": "off"},
    "not repacked": {**DRAWN, "repack": False},
    "a large context": {**DRAWN, "context": 512},
}


@pytest.mark.parametrize(("fault", "way"), [*((fault, "drawn") for fault in SITES), *(("theta", way) for way in WAYS)])
def test_the_reference_s_tokens_come_out(fault: str, way: str, tmp_path: Path) -> None:
    right, wrong = planted(tmp_path, fault)
    reference = recorded(right, tmp_path / "right.h5", **WAYS[way])
    candidate = recorded(wrong, tmp_path / "wrong.h5", **WAYS[way])
    found = repaired(reference, candidate)
    assert found.sites == SITES[fault] and {culprit.site for culprit in found.culprits} == set(SITES[fault])
    assert found.repeated and found.exit_code is ExitCode.AGREE
    assert found.before.same < found.after.same == STEPS
    assert found.after.error < 0.1 * found.before.error
    assert all(row.reference == row.mended for row in found.tokens)
    assert found.texts[0] == found.texts[1] != found.texts[2]


def test_queries_and_keys_that_are_in_no_pairs_are_written_as_they_are(tmp_path: Path) -> None:
    right, wrong = planted(tmp_path, "theta", architecture="qwen2", kind="Q8_0")
    found = repaired(recorded(right, tmp_path / "right.h5", **DRAWN), recorded(wrong, tmp_path / "wrong.h5", **DRAWN))
    assert found.sites == SITES["theta"] and found.after.whole and not found.before.whole


def test_a_clean_run_is_left_alone(tmp_path: Path) -> None:
    right, _ = planted(tmp_path, "")
    one, other = (recorded(right, tmp_path / f"{name}.h5", **DRAWN) for name in ("one", "other"))
    found = repaired(one, other)
    assert not found.sites and not found.culprits and found.exit_code is ExitCode.AGREE
    assert found.repeated and found.after.error == 0.0  # logits, bit for bit
    code, said = command("repair", str(one), str(other))
    assert code == 0 and "NOTHING TO REPAIR  all 29 audited sites are within" in said


def test_another_site_repairs_nothing_and_it_is_said(tmp_path: Path) -> None:
    right, wrong = planted(tmp_path, "another layer's tensor")
    reference, candidate = (str(recorded(model, tmp_path / f"{model.stem}.h5", **DRAWN)) for model in (right, wrong))
    code, said = command("repair", reference, candidate, "--site", "model.layers.0.mlp.down_proj")
    assert code == 1 and "NOT REPAIRED" in said, said
    assert "written while llama.cpp ran: model.layers.0.mlp.down_proj" in said
    assert "left as they were: model.layers.1.mlp.down_proj" in said and "rounding is left" not in said
    code, said = command("repair", reference, candidate, "--json")
    told = json.loads(said)
    assert code == 0 and told["repaired"] and told["sites"] == ["model.layers.1.mlp.down_proj"]
    assert told["after"]["same"] == STEPS and told["culprits"][0]["site"] == told["sites"][0]


def test_right_values_at_every_site_of_a_clean_run_move_it_by_rounding(tmp_path: Path) -> None:
    right = tiny_gguf.write(tmp_path / "right.gguf")
    run = recorded(right, tmp_path / "run.h5", micro_batch=5, cache_type="f32", flash_attention="off")
    sites = sorted(tracekit.audit(run).clean)
    found = repaired(run, run, sites=sites)
    assert sorted(found.sites) == sites and len(sites) == 29
    assert found.after.whole and 0.0 < found.after.error < 1e-5


TENSORS = {
    "token_embd.weight": ("model.embed_tokens", "logits"),  # the head is tied to it
    "output_norm.weight": ("model.norm",),
    "blk.1.ffn_norm.weight": ("model.layers.1.post_attention_layernorm",),
    "blk.0.attn_v.weight": ("model.layers.0.self_attn.v_proj",),
}


@pytest.mark.parametrize("tensor", TENSORS)
def test_nodes_of_every_kind_are_written(tensor: str, tmp_path: Path) -> None:
    right, wrong = (tiny_gguf.write(tmp_path / f"{name}.gguf") for name in ("right", "wrong"))
    reader = gguf.GGUFReader(str(wrong), "r+")
    values = next(each for each in reader.tensors if each.name == tensor).data
    values[:] = np.roll(values, 1, axis=0)
    reader.data.flush()
    found = repaired(recorded(right, tmp_path / "right.h5", **DRAWN), recorded(wrong, tmp_path / "wrong.h5", **DRAWN))
    assert found.sites == TENSORS[tensor] and found.after.whole and not found.before.whole


def test_a_run_that_was_forced_is_run_freely(tmp_path: Path) -> None:
    right, wrong = planted(tmp_path, "another layer's tensor")
    reference = recorded(right, tmp_path / "right.h5", **DRAWN)
    candidate = recorded(wrong, tmp_path / "wrong.h5", follow=str(reference), **DRAWN)
    found = repaired(reference, candidate)
    assert found.after.whole and not found.before.whole and found.repeated


def test_against_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    right, wrong = planted(tmp_path, "another layer's tensor")
    candidate = recorded(wrong, tmp_path / "wrong.h5")
    with tracekit.open(candidate) as trace:
        prompt = tuple(int(token) for token in trace.sequences[0].prompt_ids)
    reference = in_pytorch(right, tmp_path / "py.h5", prompt, STEPS)
    found = repaired(reference, candidate, weights=str(right))
    assert found.sites == SITES["another layer's tensor"]
    assert found.after.error < 0.1 * found.before.error and found.after.same > found.before.same
    assert ("rounding is left" in repair_text(found)) is not found.after.whole


def test_a_node_that_holds_another_site_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = planted(tmp_path, "theta")
    reference, candidate = (recorded(model, tmp_path / f"{model.stem}.h5") for model in (right, wrong))
    monkeypatch.setattr(Written, "_due", lambda *_: None)
    with pytest.raises(TraceError, match=r"o_proj:in: is not where it was in llama\.cpp's graph"):
        repaired(reference, candidate)


def test_graphs_of_a_size_that_no_first_run_had_have_the_same_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate that stopped at once has shown the prompt's graph alone."""
    right, wrong = planted(tmp_path, "theta")
    reference, candidate = (recorded(model, tmp_path / f"{model.stem}.h5", **DRAWN) for model in (right, wrong))
    made = Written.__init__

    def with_one(self: Any, *given: Any, places: Any, **more: Any) -> None:
        made(self, *given, places={key: held for key, held in places.items() if key[0] > 1}, **more)

    monkeypatch.setattr(Written, "__init__", with_one)
    assert repaired(reference, candidate).after.whole


def test_strided_tensors_are_written_where_they_are_read() -> None:
    sides, steps = [4, 2, 3, 1], [4, 48, 16, 96]
    data, values = np.zeros(96, np.uint8), np.arange(24, dtype=np.float32).reshape(3, 8)
    scattered(data, values, sides, steps)
    assert np.array_equal(dense(data, sides, steps, 4).view(np.float32).reshape(3, 8), values)
    assert not np.array_equal(data.view(np.float32).reshape(3, 8), values)


def test_the_run_that_places_is_the_run(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "m.gguf", kind="Q4_1", bias=True)
    for way in WAYS.values():
        free = llama_cpp.generate(model, prompt=PROMPT, max_new_tokens=STEPS, **way)
        assert (
            llama_cpp.record(model, tmp_path / "t.h5", prompt=PROMPT, max_new_tokens=STEPS, taps=Placed, **way) == free
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    right, wrong = planted(folder, "heads swapped")
    made = {
        "right": recorded(right, folder / "right.h5"),
        "wrong": recorded(wrong, folder / "wrong.h5"),
        "drawn": recorded(right, folder / "drawn.h5", **DRAWN),
        "other": recorded(right, folder / "other.h5", prompt="abc"),
        "twice": recorded(right, folder / "twice.h5", requests=2),
    }
    gone = folder / "gone.gguf"
    gone.write_bytes(right.read_bytes())
    made |= {"lost": recorded(gone, folder / "lost.h5"), "model": right, "bad": folder / "bad.gguf"}
    gone.unlink()
    made["bad"].write_bytes(b"GGUF")
    return {name: str(path) for name, path in made.items()}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["{right}", "missing.h5"], "missing.h5"),
        (["{other}", "{wrong}"], "prompts differ"),
        (["{drawn}", "{wrong}"], "different generators or seeds"),
        (["{right}", "{twice}"], "no recording of one generation"),
        (["{right}", "{lost}"], "the file that it ran with is not here; give it: --model"),
        (["{right}", "{wrong}", "--model", "{bad}"], "bad.gguf"),
        (["{right}", "{wrong}", "--site", "model.layers.9"], "--site model.layers.9: is no site of this run"),
        (["{right}", "{wrong}", "--weights", "{bad}"], "bad.gguf"),
    ],
)
def test_bad_input_is_one_line(words: list[str], line: str, runs: dict[str, str]) -> None:
    code, said = command("repair", *(word.format(**runs) for word in words))
    assert code == 2 and line in said and len(said.strip().splitlines()) == 1, said


def test_a_file_with_which_other_tokens_come_out_is_refused(tmp_path: Path) -> None:
    right, wrong = planted(tmp_path, "another layer's tensor")
    reference = recorded(right, tmp_path / "right.h5", **DRAWN)
    with pytest.raises(TraceError, match=r"llama\.cpp gives other tokens with"):
        repaired(reference, reference, model=str(wrong))


def test_an_engine_that_cannot_be_written_into_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    right, _ = planted(tmp_path, "")
    run = in_pytorch(right, tmp_path / "py.h5", (1, 2, 3), 1)
    code, said = command("repair", str(run), str(run))
    assert code == 2 and "cannot be written into while it runs; give a run of llama.cpp" in said
