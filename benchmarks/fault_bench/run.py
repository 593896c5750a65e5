"""The benchmark: draw faults, record, diff, judge, and say how many were named."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tabulate import tabulate

import tracekit
from benchmarks.fault_bench import benign, kinds_native, kinds_torch, models, museum, museum_page
from benchmarks.fault_bench.explained import explained_otherwise
from benchmarks.fault_bench.fault import Fault, Json
from benchmarks.fault_bench.judge import explanation_of, judge, margin_of, misplaced, mistake_of
from benchmarks.fault_bench.kinds import SLOTS, Dice
from benchmarks.fault_bench.native import Refused
from benchmarks.fault_bench.setups import SETUPS
from benchmarks.fault_bench.studio import Studio
from benchmarks.fault_bench.truth import Change, first_change
from tracekit.trace import Trace

assert kinds_torch and kinds_native  # register their kinds

ROOT = Path(__file__).parent.parent.parent
ATTEMPTS = 6
"""A kind is drawn anew this often, where what was drawn cannot show."""


def main() -> None:
    options = parse_arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fault-bench-") as scratch:
        studio = Studio(Path(scratch), options.model.resolve(), options.native.resolve(), options.seed)
        faults, controls = measure(studio, options)
    report(faults, controls, options, time.monotonic() - began)
    if options.museum:
        options.museum.write_text(museum_page.page(faults, controls))
    if options.json:
        figures = {"seed": options.seed, "faults": faults, "benign": controls, "summary": summary(faults, controls)}
        options.json.write_text(json.dumps(figures, indent=2, default=str))
    sys.exit(any(not row["ok"] for row in [*faults, *controls]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fault_bench", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the faults and of the sampled runs; default 0")
    parser.add_argument("--faults", type=int, default=66, help="how many; default 66")
    parser.add_argument("--only", metavar="REGEX", default="", help="kinds of faults and harmless rewrites to run")
    parser.add_argument("--jobs", type=int, default=2, help="processes; default 2")
    parser.add_argument("--museum", type=Path, metavar="PAGE", help="stage the reported faults instead, and write PAGE")
    parser.add_argument("--json", type=Path, help="write every verdict here")
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/smollm2-135m", help="SmolLM2's folder")
    parser.add_argument("--native", type=Path, default=ROOT / "hooks/rust/target/release/tracekit-native")
    return parser.parse_args()


def measure(studio: Studio, options: argparse.Namespace) -> tuple[list[Json], list[Json]]:
    """Run everything; rows for faults, and for harmless rewrites."""
    tasks: list[Task] = []
    if options.museum:
        chosen = [item for item in museum.EXHIBITS if re.search(options.only, f"{item.thread} {item.words}")]
        tasks = [Task(item.setup, try_exhibit, (museum.EXHIBITS.index(item),)) for item in chosen]
    else:
        plan = [
            item for item in enumerate(plan_of(options.seed, options.faults)) if re.search(options.only, item[1][0])
        ]
        tasks = [Task(setup, try_fault, (name, setup, f"{options.seed}/{index}")) for index, (name, setup) in plan]
    false_alarms = [name for name, rewrite in benign.REWRITES.items() if rewrite.thread or not options.museum]
    controls = [name for name in false_alarms if re.search(options.only, name)]
    tasks += [Task(benign.REWRITES[name].setup, try_rewrite, (name,)) for name in controls]
    rows = run_all(studio, tasks, options.jobs)
    return [row for row in rows if row["what"] == "fault"], [row for row in rows if row["what"] == "benign"]


@dataclass(frozen=True)
class Task:
    """One candidate to record and to diff."""

    setup: str
    run: Callable[..., Json]
    arguments: tuple[Any, ...]


def run_all(studio: Studio, tasks: list[Task], jobs: int) -> list[Json]:
    """The tasks' rows, in their order. Models, references and oracles are made first, once for all."""
    setups = sorted({task.setup for task in tasks} | {also for task in tasks for also in _others(task)})
    _one_thread()
    for key in sorted({SETUPS[name].model for name in setups} - {"smollm2"}):
        models.make(key, studio.folder(key))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        list(pool.map(studio.prepare, setups, [SETUPS[name].native for name in setups]))
        futures = {pool.submit(task.run, studio, *task.arguments): index for index, task in enumerate(tasks)}
        rows = dict(_shown(futures))
    return [rows[index] for index in sorted(rows)]


def _others(task: Task) -> tuple[str, ...]:
    """Runs that a kind is planted in when it cannot show in the first."""
    return SLOTS[task.arguments[0]].setups if task.run is try_fault else ()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _shown(tasks: dict[Future[Json], int]) -> Iterator[tuple[int, Json]]:
    for done in as_completed(tasks):
        row = done.result()
        mark = "ok  " if row["ok"] else "MISS"
        print(
            f"{mark} {row['seconds']:5.1f} s  {row['setup']:14} {row['name']}: {row['said']}",
            file=sys.stderr,
            flush=True,
        )
        yield tasks[done], row


def plan_of(seed: int, count: int) -> list[tuple[str, str]]:
    """Kinds and their runs: each kind once before any comes twice, at least 25 in the engine."""
    rng = random.Random(seed)
    native = [name for name, slot in SLOTS.items() if slot.side == "native"]
    torch_side = [name for name, slot in SLOTS.items() if slot.side == "torch"]
    share = max(min(25, count), round(count * len(native) / len(SLOTS)))
    names = [*_dealt(rng, native, share), *_dealt(rng, torch_side, count - share)]
    return [(name, rng.choice(SLOTS[name].setups)) for name in names]


def _dealt(rng: random.Random, names: list[str], count: int) -> Iterable[str]:
    pack: list[str] = []
    for _ in range(count):
        if not pack:
            pack = rng.sample(names, len(names))
        yield pack.pop()


def try_fault(studio: Studio, name: str, setup: str, stream: str) -> Json:
    """Draw faults of a kind until one shows; record it, diff it, judge it."""
    began = time.monotonic()
    redrawn: list[str] = []
    slot = SLOTS[name]
    for attempt in range(ATTEMPTS):
        rng = random.Random(f"{stream}/{attempt}")
        setup = setup if attempt < ATTEMPTS // 2 else rng.choice(slot.setups)
        fault = slot.draw(Dice(rng, studio, setup))
        row = plant(studio, fault, stream.replace("/", "-"))
        if "hidden" not in row:
            break
        redrawn.append(f"{fault.label}: {row['hidden']}")
    else:
        row = {
            "name": f"{name}: none of {ATTEMPTS} could show",
            "setup": setup,
            "side": slot.side,
            "ok": True,
            "none": True,
        }
        row |= {"what": "fault", "said": "; ".join(redrawn), "expected": None, "found": None}
    return row | {"kind": name, "redrawn": redrawn, "seconds": time.monotonic() - began}


def try_exhibit(studio: Studio, index: int) -> Json:
    """Stage one row of the museum."""
    began = time.monotonic()
    item = museum.EXHIBITS[index]
    try:
        fault = item.fault(Dice(random.Random(index), studio, item.setup))
        row = plant(studio, fault, f"museum-{index}")
    except Exception as error:
        row = {"what": "fault", "said": f"{type(error).__name__}: {error}", "ok": False, "found": "", "expected": ""}
    if "hidden" in row:
        row |= {"what": "fault", "said": row["hidden"], "ok": False, "found": f"cannot show: {row['hidden']}"}
    named = {"name": item.words, "thread": item.thread, "setup": item.setup, "side": row.get("side", "")}
    return row | named | {"redrawn": [], "seconds": time.monotonic() - began}


def plant(studio: Studio, fault: Fault, scratch: str) -> Json:
    """Record a fault and judge the verdict on it; `hidden` says why it cannot show."""
    path, twin = (studio.scratch / f"{scratch}.{role}.tklog" for role in ("faulty", "twin"))
    try:
        return _plant(studio, fault, path, twin)
    except Refused as refused:
        return {"hidden": f"refused: {refused}"}
    except Exception as error:  # one that breaks is counted as missed, and does not end the run
        return _broken(fault, error)
    finally:
        path.unlink(missing_ok=True)
        twin.unlink(missing_ok=True)


def _broken(fault: Fault, error: Exception) -> Json:
    said = f"{type(error).__name__}: {error}"
    row = {"what": "fault", "name": fault.label, "setup": fault.setup, "side": fault.side, "thread": fault.thread}
    return row | {"expected": str(fault.expected), "found": said, "said": said, "why": said, "ok": False}


def _plant(studio: Studio, fault: Fault, path: Path, twin: Path) -> Json:
    studio.faulty(fault, path)
    healthy = studio.healthy(fault, twin)
    with tracekit.open(healthy) as one, tracekit.open(path) as other:
        change = first_change(one, other)
    if change is None:
        return {"hidden": "equal to the healthy run, bit for bit"}
    if change.rounds_away:
        return {"hidden": f"rounds away ({change.units:.2g} units of roundoff)"}
    with (
        tracekit.open(studio.trace(fault.setup, "reference")) as reference,
        tracekit.open(path) as candidate,
        tracekit.open(studio.trace(fault.setup, "oracle")) as oracle,
    ):
        parted = _parted_before(reference, healthy, oracle, change)
        if parted is not None:
            return {"hidden": f"without it, rounding parts the two programs' tokens at step {parted} already"}
        verdict = tracekit.diff(reference, candidate, oracle)
        ok, why = judge(fault, change, verdict, reference)
        doubt = misplaced(fault, change, reference)
    return _row(fault, change, verdict, ok and not doubt, why, doubt)


def _parted_before(reference: Trace, healthy: Path, oracle: Trace, change: Change) -> int | None:
    """The step before a fault's own at which the reference and the healthy program choose other tokens, by a near-tie;
    None where they do not. After it both work on other inputs, and nothing more is compared."""
    with tracekit.open(healthy) as clean:
        ours, theirs = (trace.sequences[change.sequence].tokens[: change.step] for trace in (reference, clean))
        if list(ours) == list(theirs):
            return None
        verdict = tracekit.diff(reference, clean, oracle)
        near = verdict.cause == tracekit.Cause.NEAR_TIE and verdict.sequence == change.sequence
        return verdict.step if near else None


def _row(fault: Fault, change: Change, verdict: tracekit.Verdict, ok: bool, why: str, doubt: str) -> Json:
    expected = fault.expected
    step = change.step if expected.step is None else expected.step
    position = f", position {change.position}" if expected.at_position else ""
    site = expected.sites[0] if expected.sites else change.site
    said = "parity" if verdict.verdict != "divergence" else f"{verdict.cause} at step {verdict.step}, {verdict.site}"
    explanation = explanation_of(verdict)
    return {
        "what": "fault",
        "name": fault.label,
        "setup": fault.setup,
        "side": fault.side,
        "thread": fault.thread,
        "expected": f"{'/'.join(expected.causes)} at step {step}{position}, {site}",
        "found": said,
        "said": said + (f"  [{why}]" if why else "") + (f"  [benchmark: {doubt}]" if doubt else ""),
        "explanation": explanation,
        "otherwise": explained_otherwise(fault, mistake_of(verdict)),
        "margin": margin_of(verdict),
        "change": asdict(change),
        "verdict": verdict.to_json(),
        "why": why,
        "doubt": doubt,
        "ok": ok,
    }


def try_rewrite(studio: Studio, name: str) -> Json:
    """Record a harmless rewrite; it must be parity, or tokens that flip must be shown to be a near-tie."""
    began = time.monotonic()
    rewrite = benign.REWRITES[name]
    path = studio.scratch / f"benign-{list(benign.REWRITES).index(name)}.tklog"
    try:
        verdict = rewrite.verdict(studio, path)
    except Exception as error:  # as in `plant`
        said = f"{type(error).__name__}: {error}"
        row = {"what": "benign", "name": name, "setup": rewrite.setup, "said": said, "found": said, "ok": False}
        row["thread"] = rewrite.thread
        return row | {"margin": "", "verdict": None, "seconds": time.monotonic() - began}
    finally:
        path.unlink(missing_ok=True)
    ok = verdict.verdict == "parity" or verdict.cause == "near-tie"
    said = "parity" if verdict.verdict == "parity" else f"{verdict.cause} at step {verdict.step}, {verdict.site}"
    return {
        "what": "benign",
        "name": name,
        "thread": rewrite.thread,
        "setup": rewrite.setup,
        "said": f"{said}: {margin_of(verdict)}",
        "found": said,
        "margin": margin_of(verdict),
        "verdict": verdict.to_json(),
        "ok": ok,
        "seconds": time.monotonic() - began,
    }


def summary(faults: list[Json], controls: list[Json]) -> Json:
    """The figures of the last lines."""
    shown = [row for row in faults if not row.get("none")]
    return {
        "faults": len(shown),
        "named": sum(row["ok"] for row in shown),
        "in the engine": sum(row["side"] == "native" for row in shown),
        "explained": sum(bool(row.get("explanation")) for row in shown),
        "explained otherwise": sum(bool(row.get("otherwise")) for row in shown),
        "redrawn": sum(len(row["redrawn"]) for row in faults),
        "kinds that could not show": sum(bool(row.get("none")) for row in faults),
        "harmless": len(controls),
        "called harmless": sum(row["ok"] for row in controls),
    }


def report(faults: list[Json], controls: list[Json], options: argparse.Namespace, seconds: float) -> None:
    """Print both tables and the figures."""
    print(table(faults, ["setup", "name", "expected", "found", "explanation", "margin", "ok"]))
    print()
    print(table(controls, ["setup", "name", "found", "margin", "ok"]))
    print()
    missed = Counter(row.get("kind", row["name"]) for row in faults if not row["ok"])
    for name, count in missed.items():
        print(f"missed: {name}" + (f" ({count} times)" if count > 1 else ""))
    for row in faults:
        if row.get("otherwise"):
            print(f"explained otherwise than planted: {row['name']}: {row['explanation']}")
    figures = summary(faults, controls)
    print(
        f"seed {options.seed}: {figures['named']} of {figures['faults']} faults named "
        f"({figures['in the engine']} in the engine, {figures['explained']} explained, "
        f"{figures['explained otherwise']} of them otherwise than planted, {figures['redrawn']} redrawn "
        f"because they could not show); {figures['called harmless']} of {figures['harmless']} harmless rewrites called "
        f"parity or near-tie; {seconds:.0f} s"
    )


def table(rows: list[Json], columns: list[str]) -> str:
    """The rows as text; a miss says MISSED."""

    def show(value: Any) -> str:
        return str({True: "yes", False: "MISSED", None: ""}.get(value, value))

    cells = [[show(row.get(name)) for name in columns] for row in rows]
    return tabulate(cells, headers=columns, disable_numparse=True)
