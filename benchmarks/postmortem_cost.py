"""A postmortem of CosyVoice3 over many seeds: are its groups those that were planted, and what does it cost?

    python benchmarks/postmortem_cost.py --model .cache/cosyvoice3 --native hooks/rust/target/release/tracekit-native

The native program has a rotary table in float16 where the seed is a multiple of 7, stops early of 11, draws from a
cumulative sum of 13 (`scripts/native_with_faults.sh`). The cost is that of the postmortem, report and all, over that of
running both programs once a seed without recording. Exit code 1 where the groups are others.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
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
    parser.add_argument("--plain", type=int, default=10, help="seeds that are run without recording")
    parser.add_argument("--out", type=Path, default=Path("out/postmortem"))
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    reference = f"{sys.executable} {EXAMPLE} --model {options.model} --seed {{seed}}"
    candidate = f"sh {FAULTS} --native {options.native} --seed {{seed}} --model {options.model}"
    plain = timed_plain((reference, candidate), options.plain) / options.plain
    seconds = timed_postmortem(reference, candidate, options.seeds, options.out)
    found = json.loads((options.out / "postmortem.json").read_text())
    right = print_groups(found, options.seeds)
    ratio = seconds / (plain * options.seeds)
    print(f"{seconds:.0f} s; both programs without recording {plain:.2f} s a seed: {ratio:.2f} times as long")
    sys.exit(0 if right else 1)


def timed_plain(commands: tuple[str, str], seeds: int) -> float:
    """Seconds of both programs over some seeds."""
    began = time.perf_counter()
    for seed in range(seeds):
        for command in commands:
            subprocess.run(shlex.split(command.replace("{seed}", str(seed))), check=True, capture_output=True)
    return time.perf_counter() - began


def timed_postmortem(reference: str, candidate: str, seeds: int, out: Path) -> float:
    """Seconds of the postmortem. What it says is printed as it goes."""
    words = [sys.executable, "-m", "tracekit_cli.main", "postmortem", "--seeds", f"0:{seeds}", "--fail", "values"]
    words += ["--ref", reference, "--cand", candidate, "-o", str(out), "--jobs", "1", "--keep", "all"]
    began = time.perf_counter()
    code = subprocess.run(words, check=False).returncode
    if code not in (0, 1):
        sys.exit(code)
    return time.perf_counter() - began


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
