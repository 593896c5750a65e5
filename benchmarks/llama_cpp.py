"""Do runs of llama.cpp without a fault stay without an alarm? Drawn at random, on three real GGUF files.

    python -m benchmarks.llama_cpp --runs 30 --seed 0 .cache/gguf/*.gguf

A run draws its prompt (1 to 150 ids, words of a text or ids of no text), its sampling, threads, batch and micro-batch,
flash attention, the format of the cache and whether weights are reordered. It is done twice, with no callback and
with every module recorded: tokens and logits must be equal bit for bit. The trace is audited against its file; an
alarm is whatever the audit finds. Exit code 1 if there is one; `--run N` repeats run N alone.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tracekit_llama_cpp as llama_cpp
from numpy.typing import NDArray
from tracekit_llama_cpp.options import Options
from tracekit_llama_cpp.recording import Model

import tracekit
from benchmarks.clean_runs import TEXT
from tracekit.align.rotary_order import in_order_of
from tracekit.auditing.audit import Audit, audit
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.gguf import GgufParameters
from tracekit.mistakes.culprits import explained_audit
from tracekit.report.words import sentence

LONGEST, TOKENS = 150, 10
Json = dict[str, Any]


@dataclass
class Outcome:
    """What came of a run: `alarms` by kind, sites within their bounds and beyond, sites that nothing judged."""

    model: str
    index: int
    prompt: tuple[int, ...]
    settings: Json
    alarms: dict[str, str] = field(default_factory=dict)
    within: int = 0
    beyond: int = 0
    unknown: dict[str, str] = field(default_factory=dict)
    peak: float = 0.0
    seconds: float = 0.0


class Kept(GgufParameters):
    """A file whose numbers are kept from one run to the next: most of an audit's time is making them."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._kept: dict[str, NDArray[Any]] = {}

    def numbers(self, name: str) -> NDArray[Any]:
        if name not in self._kept:
            self._kept[name] = super().numbers(name)
        return self._kept[name]


def main() -> None:
    options = parse_arguments()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="llama-cpp-runs-") as scratch:
        for path in options.models:
            checkpoint, model = Checkpoint(Kept(path)), Model(path, Options())
            for index in range(options.first, options.runs) if options.run is None else [options.run]:
                outcome = drawn(options.seed, index, path, model)
                judge(outcome, path, checkpoint, Path(scratch))
                outcomes.append(outcome)
                show(outcome)
                if options.append is not None:
                    with options.append.open("a") as file:
                        file.write(json.dumps(asdict(outcome)) + "\n")
            model.close()
    sys.exit(bool(report(outcomes)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--runs", type=int, default=30, help="of each model; default 30")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=int, help="this run alone")
    parser.add_argument("--first", type=int, default=0, help="begin with this run")
    parser.add_argument("--append", type=Path, metavar="FILE", help="add each outcome as a line of JSON")
    return parser.parse_args()


def drawn(seed: int, index: int, path: Path, model: Model) -> Outcome:
    """Run `index` of a model: the same for the same seed."""
    dice = random.Random(f"llama.cpp/{seed}/{path.stem}/{index}")
    length = round(LONGEST ** dice.random())
    if dice.random() < 0.6:
        words = " ".join(dice.choice(TEXT.split()) for _ in range(length))
        ids = model.ids(words)[:length]
    else:
        ids = [dice.randrange(model.tokens) for _ in range(length)]
    settings: Json = {"max_new_tokens": dice.randint(2, TOKENS), "threads": 2 if dice.random() < 0.1 else 1}
    if dice.random() < 0.7:
        settings |= {"temperature": dice.choice((0.3, 0.8, 1.0, 1.5)), "seed": dice.randrange(1 << 31)}
        settings |= {
            "top_k": dice.choice((0, 5, 40)),
            "top_p": dice.choice((1.0, 0.9)),
            "min_p": dice.choice((0, 0.05)),
        }
    if dice.random() < 0.5:
        settings["micro_batch"] = dice.choice((1, 2, 5, 16, 64))
    if dice.random() < 0.2:
        settings["batch"] = dice.choice((8, 32))
    settings["flash_attention"] = dice.choice(("auto", "auto", "on", "off"))
    settings["cache_type"] = dice.choice(("f16", "f16", "f32", "bf16"))
    if settings["flash_attention"] == "on" and dice.random() < 0.2:
        settings["cache_type"] = "q8_0"
    if dice.random() < 0.25:
        settings["repack"] = False
    return Outcome(path.stem, index, tuple(ids), settings)


def judge(outcome: Outcome, path: Path, checkpoint: Checkpoint, scratch: Path) -> None:
    """Run it twice, compare, audit. What breaks is an alarm as well."""
    began = time.process_time()
    try:
        plain, full = scratch / "plain.tklog", scratch / "full.tklog"
        free = llama_cpp.record(path, plain, prompt=outcome.prompt, level="logits", **outcome.settings)
        told = llama_cpp.record(path, full, prompt=outcome.prompt, **outcome.settings)
        if free != told:
            outcome.alarms["tokens"] = f"{told.tokens} recorded, {free.tokens} not recorded"
        elif not same_logits(plain, full, len(free.tokens)):
            outcome.alarms["logits"] = "differ between the two runs"
        found = audited(full, checkpoint)
        outcome.within, outcome.beyond = len(found.clean), len({culprit.site for culprit in found.culprits})
        outcome.unknown, outcome.peak = dict(found.unknown), round(float(found.peak), 3)
        if found.exit_code:
            said = [f"{c.site} at {c.position}: {sentence(c.evidence)}" for c in found.culprits]
            outcome.alarms["audit"] = "; ".join([*said[:3], f"{len(said)} sites"])
    except Exception as error:
        outcome.alarms["error"] = f"{type(error).__name__}: {error}"
    outcome.seconds = round(time.process_time() - began, 2)


def same_logits(one: Path, other: Path, steps: int) -> bool:
    with tracekit.open(one) as first, tracekit.open(other) as second:
        bits = [trace.sequences[0].logits(0, steps).view(np.uint32) for trace in (first, second)]
    return bool(np.array_equal(*bits))


def audited(path: Path, checkpoint: Checkpoint) -> Audit:
    """As `tracekit.audit`, against a checkpoint that is open already."""
    with tracekit.open(path) as trace:
        run, _ = in_order_of(checkpoint, trace)
        return explained_audit(run, checkpoint, audit(run, checkpoint))


def show(outcome: Outcome) -> None:
    said = " ".join(f"{name}={value}" for name, value in outcome.settings.items())
    judged = outcome.within + outcome.beyond
    print(f"{outcome.model} run {outcome.index}: {len(outcome.prompt)} ids, {said}", end=" | ")
    print(f"{outcome.within} of {judged} within, {len(outcome.unknown)} unknown, peak {outcome.peak}", end="")
    print(f", {outcome.seconds} s", flush=True)
    for kind, text in outcome.alarms.items():
        print(f"  ALARM  {kind}: {text}", flush=True)


def report(outcomes: list[Outcome]) -> int:
    """Print the counts of each model; how many runs had an alarm."""
    for model in dict.fromkeys(outcome.model for outcome in outcomes):
        of = [outcome for outcome in outcomes if outcome.model == model]
        judged, within = sum(o.within + o.beyond for o in of), sum(o.within for o in of)
        sites = judged + sum(len(o.unknown) for o in of)
        equal = sum(not {"tokens", "logits", "error"} & o.alarms.keys() for o in of)
        print(
            f"{model}: {len(of)} runs, {equal} with equal tokens and logits, {judged:,} of {sites:,} sites judged, "
            f"{within / max(judged, 1):.2%} within their bounds, peak {max(o.peak for o in of):.2f}, "
            f"{sum(bool(o.alarms) for o in of)} with an alarm"
        )
    return sum(bool(outcome.alarms) for outcome in outcomes)


if __name__ == "__main__":
    main()
