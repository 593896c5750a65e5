"""Does the audit by the reference program stay without an alarm on runs without a fault, of any family?

    python -m benchmarks.clean_families --runs 1000 --seed 0

A run draws its family (tiny random models of transformers), its dtype, how it is computed (attention as eager code or
as one operation, a prefill in chunks, a padded batch), its prompt and its sampling. It is recorded and audited by the
same model in float64. An alarm is whatever the audit finds. All tests of a trace together are held to one rate of false
alarms, `FALSE_ALARMS`. Exit code 1 if there is an alarm; `--run N` repeats run N alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tracekit_torch
from tabulate import tabulate
from tracekit_torch.reference_program.loading import load_reference

import tracekit
from tests import tiny_families
from tracekit.auditing.own_error import FALSE_ALARMS

DTYPES = ("float32", "bfloat16", "float16")
WAYS = ("eager", "sdpa", "chunked", "batched")
LONGEST, TOKENS, VOCABULARY = 80, 6, 160


@dataclass(frozen=True)
class Run:
    """A run without a fault."""

    index: int
    family: str
    dtype: str
    how: str
    prompts: tuple[tuple[int, ...], ...]
    tokens: int
    chunk: int
    sampled: bool
    seed: int

    def label(self) -> str:
        lengths = "+".join(str(len(prompt)) for prompt in self.prompts)
        return f"{self.family} {self.dtype} {self.how} {lengths} positions, {self.tokens} tokens"


@dataclass
class Outcome:
    """What the audit said of a run."""

    index: int
    family: str
    dtype: str
    how: str
    label: str
    alarms: list[dict[str, Any]] = field(default_factory=list)
    """Site, statistic and how far over its limit; or what broke."""
    sites: int = 0
    unknown: int = 0
    tests: int = 0
    seconds: float = 0.0


def main() -> None:
    options = parse_arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    if options.table:
        outcomes = [Outcome(**json.loads(line)) for line in options.table.read_text(encoding="utf-8").splitlines()]
    else:
        with tempfile.TemporaryDirectory(prefix="clean-families-") as scratch:
            chosen = range(options.first, options.runs) if options.run is None else [options.run]
            for index in chosen:
                outcomes.append(outcome(drawn(options.seed, index), Path(scratch)))
                if options.json:
                    with options.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(outcomes[-1])) + "\n")
    print(report(outcomes))
    sys.exit(any(one.alarms for one in outcomes))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="how many; default 1000")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn; default 0")
    parser.add_argument("--run", type=int, help="this run alone")
    parser.add_argument("--first", type=int, default=0, help="begin with this run")
    parser.add_argument("--json", type=Path, help="append every outcome to this file, a line each")
    parser.add_argument("--table", type=Path, help="print the tables of such a file, and run nothing")
    return parser.parse_args()


def drawn(seed: int, index: int) -> Run:
    """Run `index`: the same for the same seed. Families, dtypes and ways come in turn."""
    dice = random.Random(f"clean families/{seed}/{index}")
    families = sorted(tiny_families.FAMILIES)
    family, dtype = families[index % len(families)], DTYPES[index // len(families) % len(DTYPES)]
    how = dice.choice(WAYS)
    count = dice.choice((2, 3)) if how == "batched" else 1
    lengths = [max(2, round(LONGEST ** dice.random())) for _ in range(count)]
    prompts = tuple(tuple(dice.randrange(3, VOCABULARY) for _ in range(length)) for length in lengths)
    chunk = dice.randint(1, max(1, lengths[0] - 1))
    return Run(index, family, dtype, how, prompts, dice.randint(1, TOKENS), chunk, dice.random() < 0.5, index)


def outcome(run: Run, scratch: Path) -> Outcome:
    """Record a run and audit it. What breaks is an alarm as well."""
    began = time.process_time()
    out = Outcome(run.index, run.family, run.dtype, run.how, run.label())
    try:
        _judge(out, run, scratch)
    except Exception as error:
        out.alarms.append({"site": "", "statistic": type(error).__name__, "over": 0.0, "said": str(error)[:200]})
    out.seconds = time.process_time() - began
    for alarm in out.alarms:
        print(f"run {run.index}: {run.label()}: ALARM {alarm}", file=sys.stderr, flush=True)
    return out


def _judge(out: Outcome, run: Run, scratch: Path) -> None:
    folder, path = _folder(run.family, scratch), scratch / "run.tklog"
    path.unlink(missing_ok=True)
    model = _model(folder, run.dtype, "eager" if run.how == "eager" else None)
    longest = max(map(len, run.prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in run.prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in run.prompts])
    settings: dict[str, Any] = {"do_sample": run.sampled}
    if run.how == "chunked":
        settings["prefill_chunk_size"] = run.chunk
    torch.manual_seed(run.seed)
    with warnings.catch_warnings(), tracekit_torch.record(model, path):
        warnings.simplefilter("ignore")
        model.generate(ids, attention_mask=mask, max_new_tokens=run.tokens, eos_token_id=None, **settings)
    with tracekit.open(path) as trace:
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(_reference(folder, run.dtype)))
    out.sites, out.unknown, out.tests = len(found.clean) + len(found.culprits), len(found.unknown), found.tests
    for culprit in found.culprits:
        over = culprit.own.over
        worst = max(over, key=lambda kind: over[kind])
        out.alarms.append({"site": culprit.site, "statistic": worst.name, "over": over[worst]})
    if not found.culprits and found.exit_code:
        out.alarms.append({"site": "", "statistic": f"exit code {found.exit_code}", "over": 0.0})


def report(outcomes: Sequence[Outcome]) -> str:
    """Alarms by family and dtype, by way, by statistic, and the rate."""
    rows = []
    for family in sorted({one.family for one in outcomes}):
        cells: list[Any] = [family]
        for dtype in DTYPES:
            ours = [one for one in outcomes if (one.family, one.dtype) == (family, dtype)]
            cells.append(f"{sum(bool(one.alarms) for one in ours)} of {len(ours)}")
        rows.append(cells)
    ways = Counter(one.how for one in outcomes)
    alarmed = [one for one in outcomes if one.alarms]
    kinds = Counter(one.alarms[0]["statistic"] for one in alarmed)
    lines = [
        tabulate(rows, headers=["family", *DTYPES], tablefmt="github"),
        "",
        ", ".join(f"{how}: {count}" for how, count in sorted(ways.items())),
        *(f"run {one.index} ({one.label}): {one.alarms[:2]}" for one in alarmed),
        f"{len(outcomes)} clean traces of {len({one.family for one in outcomes})} families, "
        f"{sum(one.sites for one in outcomes):,} sites audited, {sum(one.unknown for one in outcomes)} not, "
        f"{sum(one.tests for one in outcomes):,} tests: {len(alarmed)} traces with an alarm"
        f" ({', '.join(f'{kind}: {count}' for kind, count in sorted(kinds.items())) or 'none'}); "
        f"{FALSE_ALARMS:g} a trace expected at most; {sum(one.seconds for one in outcomes):.0f} s of CPU",
    ]
    return "\n".join(lines)


def _folder(family: str, scratch: Path) -> Path:
    folder = scratch / family
    if not folder.exists():
        tiny_families.make(family, folder)
    return folder


@cache
def _model(folder: Path, dtype: str, attention: str | None) -> Any:
    """`attention`: None is the family's default, sdpa where it has it."""
    return tiny_families.load(folder, attention=attention, dtype=dtype)


@cache
def _reference(folder: Path, dtype: str) -> Any:
    return load_reference(str(folder), dtype)


if __name__ == "__main__":
    main()
