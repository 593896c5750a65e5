"""The audit by the reference program over many families: how much of a trace it judges, how near its limits, how long.

    python -m benchmarks.families_audit --write docs/audit.md

Tiny random models of transformers, without a line of code for any: decoders, recurrent ones, encoder-decoders. Each
generates in float32 and is audited by itself in float64; then once more with what one module is given, in the middle of
the model, 1.0001 times as large, which is a wrong formula between two modules.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tracekit_torch
from tabulate import tabulate
from torch import nn
from tracekit_torch.reference_program.audit import Judge
from tracekit_torch.reference_program.loading import prepared

import tracekit
from tests import test_recorded_families as families
from tracekit.auditing.own_error import ONE_SITE, Own
from tracekit.dtypes import UNIT_ROUNDOFF, is_float
from tracekit.trace import INPUT_SUFFIX, LOGITS, Trace

GAIN = 1.0001
FLOAT32 = UNIT_ROUNDOFF["float32"]


@dataclass(frozen=True)
class Row:
    """One family."""

    family: str
    judged: int
    recorded: int
    missed: dict[str, str]
    median: float
    """Root mean square of the clean error over what rounding makes of it: the median of all sites."""
    largest: float
    over: float
    """The largest statistic over its limit."""
    seconds: float
    planted: str
    found: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", help="these alone; may be given more than once")
    parser.add_argument("--write", type=Path, help="put the table into this page, between its marks")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    all_families = [*families.DECODERS, *families.RECURRENT, *families.ENCODER_DECODERS]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for family in options.family or all_families:
            rows.append(row(family, Path(scratch)))
            print(rows[-1], file=sys.stderr, flush=True)
    said = report(rows)
    print(said)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        marked = re.compile(r"(<!-- families -->\n).*(\n<!-- end of families -->)", re.DOTALL)
        options.write.write_text(marked.sub(lambda found: f"{found[1]}\n{said}\n{found[2]}", page), encoding="utf-8")


def row(family: str, scratch: Path) -> Row:
    """Judge a clean run of a family, and one with a fault."""
    model = families.made(family)
    reference = prepared(copy.deepcopy(model), "float32")
    began = time.process_time()
    with recorded(model, family, scratch / "clean.tklog") as trace:
        owns, missed = judged(reference, trace)
        seconds = time.process_time() - began
        sequence = trace.sequences[0]
        held = [name for name, data in sequence.sites.items() if is_float(data.dtype)]
        held += [LOGITS] if sequence.logits_dtype else []
        inputs = [name for name in held if name.endswith(INPUT_SUFFIX) and name in owns and "#" not in name]
    planted = inputs[len(inputs) // 2]
    module = model.get_submodule(planted.removesuffix(INPUT_SUFFIX))
    handle = module.register_forward_pre_hook(lambda module, args: (args[0] * GAIN, *args[1:]))
    with recorded(model, family, scratch / "faulty.tklog") as trace:
        wrong = [name for name, own in judged(reference, trace)[0].items() if own.wrong]
    handle.remove()
    sizes = [own.statistics.size for own in owns.values()]
    over = max(max(own.over.values()) for own in owns.values())
    middle, largest = float(np.median(sizes)), max(sizes)
    return Row(family, len(owns), len(held), missed, middle, largest, over, seconds, planted, tuple(wrong))


def recorded(model: Any, family: str, path: Path) -> Trace:
    path.unlink(missing_ok=True)
    run: Callable[[], Any] = families.generating(model, family, 1)
    with tracekit_torch.record(model, path):
        run()
    return tracekit.open(path)


def judged(reference: nn.Module, trace: Trace) -> tuple[dict[str, Own], dict[str, str]]:
    """Own errors by site, and the sites that were not judged, with the reason."""
    judge = Judge(reference, trace, trace.sequences[0], FLOAT32, ONE_SITE)
    return {own.recipe.site: own for own in judge.owns()}, judge.replay.missed


def report(rows: list[Row]) -> str:
    """The table, and the shares over all families."""
    cells = [
        (
            one.family,
            f"{one.judged} of {one.recorded}",
            f"{one.median:.2f}, {one.largest:.2f}",
            f"{one.over:.2f}",
            f"{one.seconds:.1f}",
            f"`{one.planted}`",
            "there alone" if one.found == (one.planted,) else ", ".join(one.found) or "nothing",
        )
        for one in rows
    ]
    heads = ("family", "sites judged", "clean error: median, largest", "over its limit", "s", "fault at", "found")
    done, of = sum(one.judged for one in rows), sum(one.recorded for one in rows)
    right = sum(one.planted in one.found for one in rows)
    alone = sum(one.found == (one.planted,) for one in rows)
    lines = [
        f"{len(rows)} families: {done} of {of} recorded sites judged ({100 * done / of:.1f} %), "
        f"{sum(one.over > 1.0 for one in rows)} alarms, {right} faults found at their site, "
        f"{alone} of them there alone.",
        "",
        tabulate(cells, headers=heads, tablefmt="github", disable_numparse=True),
        *(f"- {one.family}: {name}: {why}" for one in rows for name, why in one.missed.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
