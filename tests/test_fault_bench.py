"""The fault benchmark on the small model alone: what is planted shows where it must, and is judged for what it is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tracekit
from benchmarks.fault_bench import benign, inject_torch, kinds_native, kinds_torch, models, museum, museum_page, run
from benchmarks.fault_bench.explained import explained_otherwise
from benchmarks.fault_bench.fault import Fault, layer
from benchmarks.fault_bench.judge import judge, misplaced
from benchmarks.fault_bench.kinds import SLOTS, Dice
from benchmarks.fault_bench.patching import Run
from benchmarks.fault_bench.studio import Studio
from benchmarks.fault_bench.truth import first_change

assert kinds_native and kinds_torch
SETUP = "qwen2"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    scratch = tmp_path_factory.mktemp("bench")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    studio = Studio(scratch, Path("no/smollm2"), Path("no/engine"), seed=3)
    models.make("qwen2", studio.folder("qwen2"))
    studio.prepare(SETUP, with_native=False)
    yield studio
    torch.set_num_threads(threads)


def gain(site: str, factor: float) -> Fault:
    return Fault("torch", SETUP, "gain", {"site": site, "factor": factor}, layer(site))


def test_a_planted_gain_is_named(studio: Studio) -> None:
    row = run.plant(studio, gain("model.layers.1.mlp.up_proj", 1.01), "named")
    assert row["ok"], row["said"]
    assert row["change"]["site"] == "model.layers.1.mlp.up_proj"


def test_the_right_verdict_on_another_place_is_a_miss(studio: Studio) -> None:
    elsewhere = Fault(
        "torch", SETUP, "gain", {"site": "model.layers.1.mlp.up_proj", "factor": 1.01}, layer("model.layers.2")
    )
    row = run.plant(studio, elsewhere, "elsewhere")
    assert not row["ok"]
    assert "site model.layers.1.mlp.up_proj" in row["why"]
    assert "first part at model.layers.1.mlp.up_proj" in row["doubt"]


def test_what_cannot_show_is_noticed(studio: Studio) -> None:
    assert run.plant(studio, gain("model.layers.1.mlp.up_proj", 1.0), "none")["hidden"].startswith("equal")
    assert run.plant(studio, gain("model.layers.1.mlp.up_proj", 1 + 2e-8), "tiny")["hidden"].startswith("equal")
    hardly = Fault("torch", SETUP, "eps", {"site": "model.norm", "value": 1.1e-5}, layer("model.norm"))
    assert run.plant(studio, hardly, "hardly")["hidden"].startswith("rounds away")


def test_faults_are_put_back(studio: Studio) -> None:
    """After each kind of the PyTorch side the model gives what it gave before, bit for bit."""
    model = models.load(studio.folder("qwen2"), "float32")
    ids = torch.tensor(studio.run(run.SETUPS[SETUP]).ids)
    seen = set()
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for index, (name, slot) in enumerate(SLOTS.items()):
            if slot.side == "torch" and SETUP in slot.setups:
                fault = slot.draw(Dice(random.Random(index), studio, SETUP))
                given = studio.run(run.SETUPS[SETUP])
                with inject_torch.INJECTIONS[fault.kind](model, given, **fault.parameters):
                    changed = model(input_ids=ids).logits
                assert torch.equal(model(input_ids=ids).logits, before), name
                seen.add(torch.equal(changed, before))
    assert seen == {True, False}  # those of the sampler change no logits


def test_every_injection_that_a_kind_names_exists(studio: Studio) -> None:
    for name, slot in SLOTS.items():
        if slot.side == "torch" and SETUP in slot.setups:
            fault = slot.draw(Dice(random.Random(1), studio, SETUP))
            assert fault.kind in inject_torch.INJECTIONS, name


def test_the_plan_depends_on_the_seed_alone() -> None:
    assert run.plan_of(5, 66) == run.plan_of(5, 66) != run.plan_of(6, 66)
    sides = [SLOTS[name].side for name, _ in run.plan_of(5, 66)]
    assert sides.count("native") >= 25


def test_a_late_step_is_part_of_what_is_judged(studio: Studio, tmp_path: Path) -> None:
    where = {"layer": 1, "step": 7}
    fault = Fault("torch", SETUP, "cache-stale", where, layer("model.layers.1.self_attn.o_proj:in", step=7))
    path = tmp_path / "stale.tklog"
    studio.faulty(fault, path)
    with tracekit.open(studio.trace(SETUP, "reference")) as reference, tracekit.open(path) as candidate:
        change = first_change(reference, candidate)
        verdict = tracekit.diff(reference, candidate)
        assert change is not None
        assert change.step == 7
        assert judge(fault, change, verdict, reference) == (True, "")
        early = Fault("torch", SETUP, "cache-stale", where, layer("model.layers.1.self_attn.o_proj:in", step=2))
        assert judge(early, change, verdict, reference) == (False, "step 7, not 2")
        assert misplaced(early, change, reference) == "the runs first part at step 7"


def test_rewrites_name_runs_that_exist() -> None:
    assert all(rewrite.setup in run.SETUPS for rewrite in benign.REWRITES.values())


def test_a_run_starts_from_its_own_copy(studio: Studio) -> None:
    first: Run = studio.run(run.SETUPS[SETUP])
    first.ids[0].append(1)
    first.settings["top_k"] = 1
    assert studio.run(run.SETUPS[SETUP]).ids != first.ids
    assert studio.run(run.SETUPS[SETUP]).settings != first.settings


def test_the_museum_names_what_exists() -> None:
    threads = [item.thread for item in museum.EXHIBITS]
    assert len(threads) == len(set(threads)) >= 50
    assert not set(threads) & set(museum.ABSENT)
    assert {item.setup for item in museum.EXHIBITS} <= set(run.SETUPS)
    assert all(thread.count("/") == 1 and "#" in thread for thread in [*threads, *museum.ABSENT])


def test_the_museums_page_has_every_thread(studio: Studio) -> None:
    index = next(at for at, item in enumerate(museum.EXHIBITS) if item.setup == SETUP and "prompt" in str(item.stage))
    row = run.try_exhibit(studio, index)
    assert row["ok"], row["said"]
    text = museum_page.page([row], [])
    assert museum.EXHIBITS[index].thread in text
    assert "**1 of 1**" in text
    assert all(thread in text for thread in museum.ABSENT)


@pytest.mark.parametrize(
    ("kind", "said", "otherwise"),
    [
        ("cache-stale", "stale_cache_row", False),
        ("cache-stale", "rotary_angles_rounded", True),
        ("stale-cache-row:4:2", "rotary_angles_rounded", True),
        ("cache-stale", "", False),
        ("core", "kv_head_map", False),  # its options may mean many things
    ],
)
def test_a_wrong_explanation_is_noticed(kind: str, said: str, otherwise: bool) -> None:
    assert explained_otherwise(Fault("torch", SETUP, kind, {}, layer("x")), said) is otherwise
