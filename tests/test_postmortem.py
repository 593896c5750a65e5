"""`tracekit postmortem` on real programs: the native engine with faults that depend on the seed."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.forked import Forks
from tracekit.align.pair import Side
from tracekit.compare.findings import LogitsWrong
from tracekit.mistakes.explanation import Explanation, Mistake
from tracekit.postmortem import margins, program
from tracekit.postmortem.failure import Facts, rule
from tracekit.postmortem.groups import conclude
from tracekit.postmortem.plan import Plan, checked, parse_seeds
from tracekit.postmortem.store import open_store, read_as, read_json, write_json
from tracekit.programs import child as child_program
from tracekit.report.json import record_of
from tracekit.trace import TraceError
from tracekit.verdict.cause import Cause
from tracekit.verdict.decision import Decision
from tracekit.verdict.outcome import Run, Seed, SeenFault, State
from tracekit.verdict.record import VerdictRecord
from tracekit.verdict.verdict import Verdict

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "tests/fixtures/seeded_program.sh"
NATIVE = os.environ.get("TRACEKIT_NATIVE", str(ROOT / "hooks/rust/target/release/tracekit-native"))


@dataclass(frozen=True)
class Scene:
    """A model, and a file in which the programs note that they were run."""

    model: Path
    notes: Path

    def command(self, role: str, *faults: str) -> str:
        return shlex.join(["sh", str(PROGRAM), NATIVE, str(self.model), str(self.notes), role, "{seed}", *faults])

    def runs(self) -> list[str]:
        """`ROLE SEED LEVEL` of each run so far."""
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def arguments(self, out: Path | str, seeds: str, *faults: str) -> list[str]:
        words = ["postmortem", "--seeds", seeds, "--ref", self.command("ref"), "--cand", self.command("cand", *faults)]
        return [*words, "-o", str(out), "--jobs", "2", "--fail", "values"]


@pytest.fixture
def scene(tiny_llama: Path, tmp_path: Path) -> Scene:
    return Scene(tiny_llama, tmp_path / "notes.txt")


def tracekit_words(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "tracekit_cli.main", *arguments]


def run(arguments: list[str], code: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(tracekit_words(arguments), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def found_in(out: Path) -> dict[str, Any]:
    return json.loads((out / "postmortem.json").read_text())


def groups_of(found: dict[str, Any]) -> dict[str, list[int]]:
    return {f"{group['cause']} {group['mechanism']}": group["seeds"] for group in found["groups"]}


@pytest.mark.slow
def test_seeds_are_grouped_by_what_is_wrong_with_them(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    faults = ("5:inverse-cdf", "7:rope-f16", "11:stop-early")
    done = run([*scene.arguments(out, "1:36", *faults), "--keep", "all"], code=1)
    found = found_in(out)
    grouped = groups_of(found)
    assert grouped["layer rotary_table_rounded"] == [7, 14, 21, 28, 35]
    assert grouped["sampler inverse_cdf"] == [5, 10, 15, 20, 25, 30]
    assert grouped["stop stopped_on_other_token"] == [11, 22, 33]
    assert len(grouped) == 3
    sampler = next(group for group in found["groups"] if group["cause"] == "sampler")
    assert list(sampler["overlaps"].values()) == [[35]]  # rotary and inverse CDF
    layer = next(group for group in found["groups"] if group["cause"] == "layer")
    assert layer["rate"]["count"] == 5 and layer["rate"]["of"] == 35
    assert layer["rate"]["low"] < 5 / 35 < layer["rate"]["high"]
    assert "PARITY" in found["control_text"]
    assert "rotary table rounded to float16" in done.stdout
    assert (out / "report.html").stat().st_size > 1_000_000
    assert {path.name for path in (out / "repro").iterdir()} == {group["name"] for group in found["groups"]}


def test_the_second_run_is_of_failing_seeds_alone(scene: Scene, tmp_path: Path) -> None:
    run([*scene.arguments(tmp_path / "out", "0:20", "7:rope-f16"), "--no-repro"], code=1)
    runs = scene.runs()
    assert sum(line.endswith("tokens") for line in runs) == 40
    again = {int(line.split()[1]) for line in runs if line.endswith("all")}
    assert {0, 7, 14} <= again and len(again) == 4  # and one that passes, to see that its layers do


def test_a_seed_that_crashes_hangs_or_floods_does_not_take_the_others_along(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    faults = ("5:CRASH", "6:HANG", "7:SILENT")
    done = run([*scene.arguments(out, "1:8", *faults), "--timeout", "3"], code=1)
    states = {seed["seed"]: seed["state"] for seed in found_in(out)["seeds"]}
    assert states == {1: "pass", 2: "pass", 3: "pass", 4: "pass", 5: "crash", 6: "timeout", 7: "trouble"}
    assert "out of cheese" in done.stdout and "3 seconds" in done.stdout and "nothing was recorded" in done.stdout


def test_a_program_may_fill_half_of_the_free_space(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=8 << 20)
    monkeypatch.setattr(program.shutil, "disk_usage", lambda path: free)
    plan = Plan(scene.command("ref"), scene.command("cand", "1:FLOOD"), str(ROOT))
    ran, _ = program.record(plan, Side.CANDIDATE, 1, "tokens", tmp_path)
    assert ran.trouble is not None and ran.exit_code
    assert all(path.stat().st_size <= 4 << 20 for path in tmp_path.iterdir())


def test_the_limit_of_a_program_holds_before_its_first_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent may be late as long as it likes: here it waits until the program is done."""
    started = child_program.subprocess.Popen

    class Late(started):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.wait()

    monkeypatch.setattr(child_program.subprocess, "Popen", Late)
    flood = ["sh", "-c", "dd if=/dev/zero of=flood bs=64k count=64; true"]  # a child of a child
    with (tmp_path / "output").open("wb") as output:
        child_program.start(flood, str(tmp_path), os.environ, output, largest_file=1 << 20).wait()
    assert (tmp_path / "flood").stat().st_size == 1 << 20


@pytest.mark.parametrize(("name", "why"), [("no-such-program", "No such file"), ("./plain.txt", "Permission denied")])
def test_a_program_that_cannot_be_started_is_said(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "plain.txt").write_text("no program")
    ended = program.run([name], str(tmp_path), dict(os.environ), None, tmp_path)
    assert ended.code == 127 and ended.trouble is not None
    assert ended.trouble.startswith(f"{name}: cannot be started: {why}")


@pytest.mark.parametrize(("jobs", "policy"), [(1, "unset"), (2, "PASSIVE")])
def test_programs_that_run_side_by_side_do_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, policy: str
) -> None:
    """A program that has the machine for itself is run just as it is without a postmortem."""
    slots = program.Slots()
    slots.limit(jobs)
    monkeypatch.setattr(program, "SLOTS", slots)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    says = shlex.join(["sh", "-c", f"echo ${{OMP_WAIT_POLICY:-unset}} > {tmp_path}/policy", "{seed}"])
    program.record(Plan(says, says, str(ROOT)), Side.CANDIDATE, 1, "tokens", tmp_path)
    assert (tmp_path / "policy").read_text().strip() == policy
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    program.record(Plan(says, says, str(ROOT)), Side.CANDIDATE, 1, "tokens", tmp_path)
    assert (tmp_path / "policy").read_text().strip() == "ACTIVE"


def test_no_more_programs_run_at_a_time_than_there_are_slots() -> None:
    slots, running, most = program.Slots(), [], []
    slots.limit(2)

    def work() -> None:
        with slots.one():
            running.append(1)
            most.append(len(running))
            time.sleep(0.02)
            running.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 6 and max(most) == 2


@pytest.mark.slow
def test_killed_at_random_it_goes_on_and_ends_with_the_same_report(scene: Scene, tmp_path: Path) -> None:
    faults = ("5:inverse-cdf", "7:rope-f16")
    run([*scene.arguments(tmp_path / "whole" / "out", "0:24", *faults), "--no-repro"], code=1)
    scene.notes.unlink()
    out = tmp_path / "killed" / "out"
    arguments = [*scene.arguments(out, "0:24", *faults), "--no-repro"]
    rng, kills = random.Random(5), 0
    recorded: set[str] = set()
    for _ in range(60):
        seen = len(scene.runs())
        process = subprocess.Popen(tracekit_words(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=0.5 + 0.4 * rng.random() if kills < 10 else 120)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        time.sleep(0.3)  # a program that was running ends by itself
        new = scene.runs()[seen:]
        assert not recorded & set(new), "a run that was recorded was run again"
        recorded |= _recorded(out)
    assert kills >= 3  # of a fast machine; the rest of the time it ran through
    assert (out / "report.html").read_bytes() == (tmp_path / "whole" / "out" / "report.html").read_bytes()
    assert (out / "postmortem.json").read_bytes() == (tmp_path / "whole" / "out" / "postmortem.json").read_bytes()
    before = scene.runs()
    run(arguments, code=1)
    assert scene.runs() == before  # what is done is not done again


def _recorded(out: Path) -> set[str]:
    """Runs whose outcome is on disk, as the programs note them."""
    names = {"reference": "ref", "candidate": "cand"}
    found = set()
    for path in out.glob("seeds/*/*.json"):
        side, _, level = path.stem.partition(".")
        if side in names:
            found.add(f"{names[side]} {path.parent.name} {'all' if level else 'tokens'}")
    return found


@pytest.mark.slow
def test_a_cluster_finds_what_one_machine_finds(scene: Scene, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    arguments = scene.arguments(tmp_path / "local", "0:16", "5:inverse-cdf", "7:rope-f16")
    run([*arguments, "--no-repro"], code=1)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        again = scene.arguments(tmp_path / "cluster", "0:16", "5:inverse-cdf", "7:rope-f16")
        without_jobs = [word for word in again if word not in ("--jobs", "2")]
        run([*without_jobs, "--no-repro", "--scheduler", address], code=1)
    for name in ("report.html", "postmortem.json"):
        assert (tmp_path / "cluster" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def test_results_may_go_to_any_place_that_fsspec_reaches(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "far"
    run([*scene.arguments(f"file://{out}", "0:6", "5:inverse-cdf"), "--no-repro"], code=1)
    assert groups_of(found_in(out)) == {"sampler inverse_cdf": [0, 5]}


def test_traces_that_exist_are_paired_by_seed(reading: Forks, scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    for seed in range(4):
        for role, faults in (("reference", ()), ("candidate", ("2:top-p",))):
            words = shlex.split(scene.command(role, *faults).replace("{seed}", str(seed)))
            out = str(folder / f"{role}-{seed}.h5")
            assert reading.tracekit("record", "-o", out, "--", *words, cwd=tmp_path).code == 0
    run(["postmortem", str(folder), "-o", str(tmp_path / "out"), "--fail", "values"], code=1)
    found = found_in(tmp_path / "out")
    assert [group["cause"] for group in found["groups"]] == ["filter"]
    assert found["groups"][0]["seeds"] == [0, 2]
    assert not any(path.is_dir() for path in (tmp_path / "out").iterdir())  # nothing was run, nothing is cut


def test_tokens_may_agree_where_values_do_not(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run([*scene.arguments(out, "1:8", "4:rope-f16"), "--no-repro", "--fail", "tokens"], code=0)
    found = found_in(out)
    assert {seed["seed"]: seed["state"] for seed in found["seeds"]}[4] == "latent"
    assert [group["latent"] for group in found["groups"]] == [[4]]
    assert not found["groups"][0]["failing"]


def test_all_seeds_pass(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(scene.arguments(out, "0:4"), code=0)
    assert "0 of 4 seeds fail" in done.stdout and "PARITY" in done.stdout
    assert not list(out.glob("seeds/*/*.h5")) and not list(out.glob("seeds/*/*.tklog"))  # --keep failing


TRUE = ("--seeds", "0:2", "--ref", "true", "--cand", "true")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0:4", "--ref", "true"], "give --seeds, --ref and --cand"),
        (["--seeds", "ten", "--ref", "true", "--cand", "true"], "write 0:100 or 1,4,9"),
        (["--seeds", "4:4", "--ref", "true", "--cand", "true"], "no seed is in it"),
        (["--seeds", "0:2", "--ref", "./nothing-here", "--cand", "true"], "there is no such program"),
        (["--seeds", "0:2", "--ref", "python nothing.py", "--cand", "true"], "there is no such script"),
        (["--seeds", "0:2", "--ref", "'", "--cand", "true"], "cannot be split into words"),
        (["--seeds", "0:2", "--ref", "true", "--cand", "true", "--fail", "import os"], "use tokens, length, exit"),
        (["--seeds", "0:2", "--ref", "true", "--cand", "true", "--level", "tokens"], "use one of logits, layers, all"),
        (
            ["--seeds", "0:2", "--ref", "true", "--cand", "true", "--scheduler", "tcp://127.0.0.1:1"],
            "cannot be reached",
        ),
        (["nowhere"], "is no folder"),
        (["."], "holds no traces"),
    ],
)
def test_bad_calls_get_one_line(reading: Forks, arguments: list[str], said: str, tmp_path: Path) -> None:
    done = reading.tracekit("postmortem", *arguments, "-o", str(tmp_path / "out"), cwd=tmp_path)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err


def test_another_plan_does_not_go_on_with_these_results(scene: Scene, tmp_path: Path) -> None:
    run([*scene.arguments(tmp_path / "out", "0:2"), "--no-repro"], code=0)
    done = run([*scene.arguments(tmp_path / "out", "0:2", "5:CRASH"), "--no-repro"], code=2)
    assert re.search("another candidate.*another folder with -o", done.stderr)


# -------------------------------------------------------------------- the parts


def test_seeds_as_they_are_written() -> None:
    assert parse_seeds("0:3") == (0, 1, 2)
    assert parse_seeds("0:20:7, 9") == (0, 7, 14, 9)
    assert parse_seeds("5") == (5,)
    with pytest.raises(TraceError):
        parse_seeds("0:9999999999")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokens", True),
        ("length", True),
        ("exit", False),
        ("values", False),
        ("abs(ref.tokens - cand.tokens) > 5", True),
        ("exit or first_difference < 3", False),
        ("cand.fallbacks > ref.fallbacks", True),
    ],
)
def test_rules_of_failure(text: str, expected: bool) -> None:
    facts = Facts(1, Run(0, 20, ("stop",), fallbacks=1), Run(0, 9, ("stop",), fallbacks=2), 4, False)
    assert rule(text)(facts) is expected


def test_an_expression_cannot_reach_the_machine() -> None:
    for text in ("__import__('os').system('true')", "().__class__", "open('/etc/passwd')", "9**9**9**9"):
        with pytest.raises(TraceError):
            rule(text)


def test_python_commands_are_told_from_others(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("")
    plan = checked(Plan("python run.py --seed {seed}", "sh -c 'exit {seed}'", str(tmp_path)))
    assert plan.words(Side.REFERENCE, 7) == ["python", "run.py", "--seed", "7"]
    assert plan.words(Side.CANDIDATE, 7) == ["sh", "-c", "exit 7"]
    assert plan.identity()["programs"]["reference"] != plan.identity()["programs"]["candidate"]


def test_luck_is_small_where_errors_are_large() -> None:
    rows = [[0.5, 2.0, 0.01], [1.0, 3.0]]
    chances = [margins.pass_probability(rows, error) for error in (1e-6, 1e-2, 1.0, 100.0)]
    assert chances[0] == pytest.approx(1.0) and chances == sorted(chances, reverse=True) and chances[-1] < 0.3


def test_rates_have_wilson_intervals() -> None:
    rate = margins.rate(15, 100)  # Wilson (1927): 0.0931 to 0.2328
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.0931, 0.2328)
    assert margins.rate(0, 0).high == 1.0


def told(cause: Cause, site: str, step: int, explanation: Explanation | None = None) -> VerdictRecord:
    """A divergence at a site."""
    found = LogitsWrong(sequence=0, step=step, position=None, site=site, ratio=9.0, error=1e-3)
    return record_of(Verdict(Decision.DIVERGENCE, cause, found, (found,), "uncalibrated", explanation))


def test_near_ties_are_no_failures() -> None:
    verdict = told(Cause.NEAR_TIE, "token", 3)
    tie = Seed(2, State.NEAR_TIE, Run(0, 5), Run(0, 5), 0, 3, verdict)
    found = conclude("a", "b", [Seed(1, State.PASS, Run(0, 5), Run(0, 5)), tie], asked=2)
    assert found.failing.count == 0
    assert [(group.cause, group.failing, group.seeds) for group in found.groups] == [("near-tie", False, (2,))]


def test_groups_of_one_mistake_at_two_sites_have_names_of_their_own() -> None:
    def failing(number: int, site: str, *also: SeenFault) -> Seed:
        verdict = told(Cause.LAYER, site, 1, Explanation(Mistake("gain", "gain 2")))
        return Seed(number, State.FAIL, Run(0, 5), Run(0, 5), 0, 1, verdict, also=also)

    other = SeenFault(Cause.LAYER, "down", "gain", 1, "gain 2")
    found = conclude("a", "b", [failing(1, "up"), failing(2, "down"), failing(3, "up", other)], asked=3)
    assert {group.site: group.name for group in found.groups} == {"up": "layer-gain-up", "down": "layer-gain-down"}
    assert {group.site: dict(group.overlaps) for group in found.groups} == {"up": {}, "down": {"layer-gain-up": (3,)}}


def test_a_seed_is_read_back_as_it_was_written() -> None:
    also = (SeenFault(Cause.STOP, "stop", None, 4, "stops on 7"),)
    seed = Seed(1, State.FAIL, Run(0, 5), Run(0, 5), verdict=told(Cause.LAYER, "up", 1), also=also)
    assert Seed.from_json(json.loads(json.dumps(seed.to_json()))) == seed


@pytest.mark.parametrize("remote", [False, True])
def test_a_store_has_files_whole_or_not_at_all(tmp_path: Path, remote: bool) -> None:
    store = open_store(f"file://{tmp_path}/kept" if remote else str(tmp_path / "kept"))
    write_json(store, "seeds/3/a.json", {"x": 1})
    (tmp_path / "trace").write_bytes(b"123")
    store.deliver(tmp_path / "trace", "seeds/3/run.h5")
    assert read_json(store, "seeds/3/a.json") == {"x": 1}
    assert read_as(store, "seeds/3/a.json", Seed.from_json) is None
    assert read_json(store, "seeds/4/a.json") is None
    with store.local("seeds/3/run.h5") as path:
        assert path.read_bytes() == b"123"
    store.remove("seeds/3")
    assert not store.exists("seeds/3/run.h5")
