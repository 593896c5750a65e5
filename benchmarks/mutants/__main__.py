"""Draw mutants, judge them, print the tables."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from itertools import islice
from pathlib import Path

import torch

from benchmarks.mutants.score import report, written
from benchmarks.mutants.subject import FAMILIES, drawn, subject
from benchmarks.mutants.trial import Outcome, tried, twin

TWIN_EVERY = 20
"""Mutants after which other tokens are drawn, and the unmutated twin is audited on them."""


def main() -> None:
    options = parse_arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    twins: list[Outcome] = []
    if options.table:
        for line in (line for path in options.table for line in path.read_text(encoding="utf-8").splitlines()):
            outcome = Outcome(**json.loads(line))
            (twins if outcome.kind == "unmutated" else outcomes).append(outcome)
        print(report(outcomes, twins))
        if options.write:
            written(options.write, outcomes, twins)
        return
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        for name in options.families.split(",") if options.families else FAMILIES:
            one, other = sweep(name, options.seed, options.each, options.only, Path(scratch), options.json)
            outcomes, twins = outcomes + one, twins + other
    print(report(outcomes, twins))
    wrong = [outcome for outcome in outcomes if outcome.judged and not outcome.site_right]
    sys.exit(bool(wrong) or any(one.found for one in twins))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; default 0")
    parser.add_argument("--each", type=int, default=60, help="mutants drawn of each family; default 60")
    parser.add_argument("--families", default="", help="names with commas between; default all of them")
    parser.add_argument("--only", type=int, help="this mutant alone")
    parser.add_argument("--json", type=Path, help="append every outcome to this file, a line each")
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of such files, and run nothing")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="with --table: put them into docs/audit.md")
    return parser.parse_args()


def sweep(
    name: str, seed: int, count: int, only: int | None, scratch: Path, out: Path | None = None
) -> tuple[list[Outcome], list[Outcome]]:
    """Mutants of one family, and the unmutated twins."""
    made = subject(name, scratch)
    outcomes: list[Outcome] = []
    twins: list[Outcome] = []
    for index, point in enumerate(islice(drawn(made, random.Random(f"{seed}/{name}")), count)):
        if only is not None and index != only:
            continue
        new = [(twins, twin(made, seed, index, scratch))] if index % TWIN_EVERY == 0 else []
        new.append((outcomes, tried(made, point, seed, index, scratch)))
        for kept, outcome in new:
            kept.append(outcome)
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(outcome.to_json()) + "\n")
    judged = sum(outcome.judged for outcome in outcomes)
    right = sum(outcome.site_right for outcome in outcomes if outcome.judged)
    print(f"{name}: {len(outcomes)} mutants, {judged} judged, site right {right}", file=sys.stderr, flush=True)
    return outcomes, twins


if __name__ == "__main__":
    main()
