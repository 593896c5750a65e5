"""A postmortem of CosyVoice3 over many seeds: are its groups those that were planted, and what does it cost?

    python benchmarks/postmortem_cost.py --model .cache/cosyvoice3 --native hooks/rust/target/release/tracekit-native

The native program has a rotary table in float16 where the seed is a multiple of 7, stops early of 11, draws from a
cumulative sum of 13 (`scripts/native_with_faults.sh`). The cost is that of the postmortem, report and all, over that of
running both programs once a seed, one after the other, without recording: a sample of the seeds, half of it before the
postmortem and half behind it. Exit code 1 where the groups are others.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLE = "hooks/torch/examples/cosyvoice3_example.py"
FAULTS = "scripts/native_with_faults.sh"
PLANTED = {"layer": 7, "stop": 11, "sampler": 13}
"""Cause -> the seeds that have it are multiples of this."""
ORDER = ("layer", "sampler", "stop")
"""Of two faults in one seed, the first is the one that a step computes first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--native", required=True)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--plain", type=int, default=20, help="seeds that are run without recording")
    parser.add_argument("--jobs", type=int, default=2, help="programs of the postmortem that run at a time")
    parser.add_argument("--out", type=Path, default=Path("out/postmortem"))
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    reference = f"{sys.executable} {EXAMPLE} --model {options.model} --seed {{seed}}"
    candidate = f"sh {FAULTS} --native {options.native} --seed {{seed}} --model {options.model}"
    sample = range(0, options.seeds, max(1, options.seeds // options.plain))
    halves = sample[::2], sample[1::2]
    plain = timed_plain((reference, candidate), halves[0])
    whole = timed_postmortem(reference, candidate, options.seeds, options.out, options.jobs)
    plain += timed_plain((reference, candidate), halves[1])
    found = json.loads((options.out / "postmortem.json").read_text())
    right = print_groups(found, options.seeds)
    share = len(sample) / options.seeds
    for unit, measured, sampled in zip(("wall", "CPU"), (whole.wall, whole.cpu), (plain.wall, plain.cpu), strict=True):
        each, ratio = sampled / len(sample), measured * share / sampled
        print(
            f"{measured:.0f} s {unit}; both programs without recording {each:.2f} s a seed: {ratio:.2f} times as long"
        )
    sys.exit(0 if right else 1)


@dataclass(frozen=True)
class Seconds:
    """Of a stretch of time, and of the CPU in it."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Seconds:
        """Of this process and those that it has waited for."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used))

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)


def timed_plain(commands: tuple[str, str], seeds: Iterable[int]) -> Seconds:
    """Of both programs over some seeds."""
    began = Seconds.now()
    for seed in seeds:
        for command in commands:
            subprocess.run(shlex.split(command.replace("{seed}", str(seed))), check=True, capture_output=True)
    return Seconds.now() - began


def timed_postmortem(reference: str, candidate: str, seeds: int, out: Path, jobs: int) -> Seconds:
    """Of the postmortem. What it says is printed as it goes."""
    words = [sys.executable, "-m", "tracekit_cli.main", "postmortem", "--seeds", f"0:{seeds}", "--fail", "values"]
    words += ["--ref", reference, "--cand", candidate, "-o", str(out), "--jobs", str(jobs), "--keep", "all"]
    began = Seconds.now()
    code = subprocess.run(words, check=False).returncode
    if code not in (0, 1):
        sys.exit(code)
    return Seconds.now() - began


def print_groups(found: dict[str, Any], seeds: int) -> bool:
    """Each group beside what was planted; whether there are no others."""
    planted = {cause: {seed for seed in range(seeds) if seed % every == 0} for cause, every in PLANTED.items()}
    right = {group["cause"] for group in found["groups"]} == set(planted) and len(found["groups"]) == len(planted)
    for group in found["groups"]:
        cause = group["cause"]
        earlier = set().union(*(planted[other] for other in ORDER[: ORDER.index(cause)])) if cause in ORDER else set()
        own = planted.get(cause, set()) - earlier
        also = {seed for numbers in group["overlaps"].values() for seed in numbers}
        same = set(group["seeds"]) == own and also == planted.get(cause, set()) & earlier
        right = right and same
        print(
            f"{group['name']}: {len(own)} planted, {len(group['seeds'])} found, {len(also)} more behind another fault"
        )
    print("groups as planted" if right else "GROUPS OTHER THAN PLANTED")
    return right


if __name__ == "__main__":
    main()
