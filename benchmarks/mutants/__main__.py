"""Draw mutants, judge them, print the tables."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from benchmarks.mutants.edits import Point
from benchmarks.mutants.score import report, written
from benchmarks.mutants.subject import FAMILIES, Subject, drawn, subject
from benchmarks.mutants.trial import UNMUTATED, Outcome, tried, twin

TWIN_EVERY = 20
"""Mutants after which other tokens are drawn, and the unmutated twin is audited on them."""


def main() -> None:
    options = parse_arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)
    if options.table:
        outcomes, twins = written_before(options.table)
        print(report(outcomes, twins))
        if options.write:
            written(options.write, outcomes, twins)
        return
    names = options.families.split(",") if options.families else FAMILIES
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        outcomes, twins = swept(names, options.seed, options.each, options.only, Path(scratch), options.json)
    print(report(outcomes, twins))
    wrong = [outcome for outcome in outcomes if outcome.judged and not outcome.site_right]
    sys.exit(bool(wrong) or any(one.found for one in twins))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; default 0")
    parser.add_argument("--each", type=int, default=60, help="mutants drawn of each family; default 60")
    parser.add_argument("--families", default="", help="names with commas between; default all of them")
    parser.add_argument("--only", type=int, help="this mutant alone")
    parser.add_argument(
        "--json", type=Path, help="append every outcome to this file, a line each; what it has is not run again"
    )
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of such files, and run nothing")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="with --table: put them into docs/audit.md")
    return parser.parse_args()


def written_before(paths: Sequence[Path]) -> tuple[list[Outcome], list[Outcome]]:
    """Mutants and unmutated twins of files, of each the outcome that was written last."""
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    read = [Outcome(**json.loads(line)) for line in lines]
    last = {(one.family, one.seed, one.index, one.kind == UNMUTATED): one for one in read}.values()
    return [one for one in last if one.kind != UNMUTATED], [one for one in last if one.kind == UNMUTATED]


def swept(
    names: Sequence[str], seed: int, count: int, only: int | None, scratch: Path, out: Path | None = None
) -> tuple[list[Outcome], list[Outcome]]:
    """Mutants of the families, one of each in turn, and the unmutated twins. What `out` has of them is not run."""
    before = written_before([out]) if out is not None and out.exists() else ([], [])
    outcomes, twins = ([one for one in held if one.seed == seed and one.family in names] for held in before)
    done = {(one.family, one.index) for one in outcomes}
    subjects: dict[str, tuple[Subject, list[Point]]] = {}
    for index in range(count):
        for name in names:
            if (name, index) in done or only not in (None, index):
                continue
            if name not in subjects:
                made = subject(name, scratch)
                subjects[name] = made, list(islice(drawn(made, random.Random(f"{seed}/{name}")), count))
            made, points = subjects[name]
            if index >= len(points):
                continue
            new = [(twins, twin(made, seed, index, scratch))] if index % TWIN_EVERY == 0 else []
            new.append((outcomes, tried(made, points[index], seed, index, scratch)))
            for kept, outcome in new:
                kept.append(outcome)
                if out is not None:
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(outcome.to_json()) + "\n")
    return outcomes, twins


if __name__ == "__main__":
    main()
