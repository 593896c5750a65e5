"""The rules by which others compare two runs, and tracekit, on the same mutants and the same harmless variations.

    python -m benchmarks.shootout --seed 0 --each 40 --json out/shootout.jsonl
    python -m benchmarks.shootout --table out/shootout.jsonl --write docs/shootout.md

Each rule gives a trace one number, of which a threshold makes an alarm. Mutants (`benchmarks.mutants`, those that the
bits prove to be wrong) should raise it; the clean program computed in another way (attention as one operation, a batch,
a prefill in chunks) should not. The threshold is swept: what share of the mutants is found at what share of false
alarms. Every rule sees the same recorded sites of reference, candidate and a run in float64.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tracekit_torch
from numpy.typing import NDArray
from tabulate import tabulate
from tracekit_torch import precision

import tracekit
from benchmarks.mutants.edits import Kind, Point
from benchmarks.mutants.subject import FAMILIES, Subject, drawn, forward, loaded, mutated, subject, tokens
from benchmarks.mutants.trial import TooLong, no_longer_than, record, recorded_rows
from benchmarks.mutants.truth import truth
from tracekit.auditing.recipe import order_of
from tracekit.dtypes import to_float
from tracekit.trace import Trace

Floats = NDArray[np.float64]
Values = Mapping[str, Floats]
"""Rows of each site, [positions, width], in the order of the computation; `logits` last."""
DTYPES = ("float32", "bfloat16")
RATES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of false alarms that the table gives."""
TOKENS_EVERY = 5
"""Mutants after which other tokens are drawn, and the clean variations are run on them."""


@dataclass(frozen=True)
class Rule:
    """One way to compare a site, [positions, width], of two runs with that of a run in float64."""

    words: str
    usual: Mapping[str, float]
    """The threshold that its users take, by dtype."""
    score: Callable[[Floats, Floats, Floats], float]
    """Of reference, candidate, float64."""
    sites: Callable[[str], bool] = lambda site: True


def _tolerance(reference: Floats, candidate: Floats, _: Floats) -> float:
    return float(np.max(np.abs(candidate - reference) / (1.0 + np.abs(reference))))


def _unlike(reference: Floats, candidate: Floats, _: Floats) -> float:
    whole = float(np.square(reference).sum() + np.square(candidate).sum())
    return 1.0 - 2.0 * float((reference * candidate).sum()) / whole if whole else 0.0


def _ratio(reference: Floats, candidate: Floats, exact: Floats) -> float:
    right, wrong = float(np.linalg.norm(reference - exact)), float(np.linalg.norm(candidate - exact))
    return wrong / right if right else math.inf if wrong else 0.0


def _angle(reference: Floats, candidate: Floats, _: Floats) -> float:
    lengths = float(np.linalg.norm(reference) * np.linalg.norm(candidate))
    return 1.0 - float((reference * candidate).sum()) / lengths if lengths else 0.0


def _square_error(reference: Floats, candidate: Floats, _: Floats) -> float:
    power = float(np.square(reference).sum())
    return float(np.square(candidate - reference).sum()) / power if power else 0.0


def _both(value: float) -> dict[str, float]:
    return dict.fromkeys(DTYPES, value)


RULES = {
    "tolerance": Rule(
        "fixed tolerance of the logits, as transformers' tests: largest abs(c - r) / (1 + abs(r))",
        {"float32": 1e-4, "bfloat16": 1e-2},
        _tolerance,
        lambda site: site == "logits",
    ),
    "relative": Rule("SGLang's comparator: 1 - 2 r·c / (r·r + c·c), the worst site", _both(1e-3), _unlike),
    "ratio": Rule("three-way ratio: norm(c - f64) / norm(r - f64), the worst site", _both(1.2), _ratio),
    "cosine": Rule("1 - cosine similarity, the worst site", _both(1e-2), _angle),
    "nmse": Rule("normalised mean square error, the worst site", _both(1e-4), _square_error),
}
OURS = "tracekit"


@dataclass
class Scored:
    """One candidate: what each rule says of it."""

    family: str
    dtype: str
    mutant: bool
    what: str
    first: str = ""
    """The first site that is wrong."""
    records: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """By rule: sites whose score is above that of every site before, with it."""

    def score(self, rule: str) -> float:
        return max((value for _, value in self.records[rule]), default=0.0)

    def site(self, rule: str, threshold: float) -> str | None:
        """The first site above a threshold."""
        return next((site for site, value in self.records[rule] if value > threshold), None)


def main() -> None:
    options = parse_arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)
    scored: list[Scored] = []
    if options.table:
        scored = [Scored(**json.loads(line)) for line in options.table.read_text(encoding="utf-8").splitlines()]
    else:
        with tempfile.TemporaryDirectory(prefix="shootout-") as scratch:
            for name in options.families.split(",") if options.families else FAMILIES:
                for dtype in DTYPES:
                    for one in compared(subject(name, Path(scratch), dtype), options.seed, options.each, Path(scratch)):
                        scored.append(one)
                        if options.json:
                            with options.json.open("a", encoding="utf-8") as file:
                                file.write(json.dumps(asdict(one)) + "\n")
    print(tables(scored))
    if options.write:
        written(options.write, scored)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; default 0")
    parser.add_argument("--each", type=int, default=40, help="mutants drawn of each family and dtype; default 40")
    parser.add_argument("--families", default="", help="names with commas between; default those of the mutants")
    parser.add_argument("--json", type=Path, help="append every score to this file, a line each")
    parser.add_argument("--table", type=Path, help="print the tables of such a file, and run nothing")
    parser.add_argument("--write", type=Path, help="put tables and picture into this page")
    return parser.parse_args()


# ---------------------------------------------------------------- runs


def compared(subject: Subject, seed: int, count: int, scratch: Path) -> Iterator[Scored]:
    """Clean variations and mutants of a subject, scored: `count` of all kinds, and half as many small gains."""
    dice = random.Random(f"{seed}/{subject.name}")
    gains = subject.points.get(Kind.GAIN, [])
    points = [*islice(drawn(subject, dice), count), *dice.sample(gains, min(len(gains), count // 2))]
    reference: Values = {}
    exact: Values = {}
    for index, point in enumerate(points):
        ids = tokens(seed * 1000 + index // TOKENS_EVERY)
        if index % TOKENS_EVERY == 0:
            reference, exact = _run(subject.model, ids, scratch), _run(subject.exact, ids, scratch)
            yield from _variations(subject, ids, reference, exact, scratch)
        scored = _mutant(subject, point, ids, reference, exact, scratch)
        if scored is not None:
            yield scored


def _variations(
    subject: Subject, ids: torch.Tensor, reference: Values, exact: Values, scratch: Path
) -> Iterator[Scored]:
    other = torch.cat([ids, ids.flip(1)])
    ways: dict[str, tuple[str | None, torch.Tensor, dict[str, Any]]] = {
        "sdpa": (None, ids, {}),
        "batch": ("eager", other, {}),
        "chunked": ("eager", ids, {"prefill_chunk_size": 11}),
    }
    for what, (attention, given, settings) in ways.items():
        path = scratch / "variation.tklog"
        path.unlink(missing_ok=True)
        model = loaded(subject.folder, subject.dtype, attention)
        with tracekit_torch.record(model, path):
            forward(model, given, **settings)
        with tracekit.open(path) as trace:
            out = Scored(subject.name, subject.dtype, False, what)
            out.records = _records(subject, trace, reference, exact)
            yield out


def _mutant(
    subject: Subject, point: Point, ids: torch.Tensor, reference: Values, exact: Values, scratch: Path
) -> Scored | None:
    """A mutant's scores; None where it does not run, or is not proved to be wrong."""
    try:
        with no_longer_than(30), mutated(subject, point) as build:
            forward(build(), ids)
            recorded = record(build(), ids, scratch / "mutant.tklog")
            lifted = build()
            precision.run_in(lifted, "float64")
            with tracekit.open(recorded.path) as trace:
                found = truth(subject.model, subject.exact, lifted, ids, recorded.values, recorded_rows(trace))
                if found.first is None:
                    return None
                out = Scored(subject.name, subject.dtype, True, f"{point.kind.value}: {point.words()}")
                out.first, out.records = found.first.site, _records(subject, trace, reference, exact)
                return out
    except (Exception, TooLong):
        return None


def _run(model: Any, ids: torch.Tensor, scratch: Path) -> Values:
    path = scratch / "reference.tklog"
    record(model, ids, path)
    with tracekit.open(path) as trace:
        return _values(trace)


def _values(trace: Trace) -> Values:
    """What a trace's first sequence holds."""
    sequence = trace.sequences[0]
    out: dict[str, Floats] = {}
    for name in sorted(sequence.sites, key=lambda name: order_of(trace, name)):
        data = sequence.sites[name]
        parts = [to_float(sequence.read(name, first, stop), data.dtype) for first, stop in data.ranges]
        out[name] = np.concatenate(parts).astype(np.float64)
    logits = sequence.logits(0, sequence.step_count)
    if logits is not None:
        out["logits"] = to_float(logits, sequence.logits_dtype or "float32").astype(np.float64)
    return out


def _records(subject: Subject, trace: Trace, reference: Values, exact: Values) -> dict[str, list[tuple[str, float]]]:
    values = _values(trace)
    out = {name: list(_highs(_scores(rule, values, reference, exact))) for name, rule in RULES.items()}
    audit = tracekit.audit(trace, subject.folder, by=tracekit_torch.by_reference(subject.reference))
    culprits = sorted(audit.culprits, key=lambda one: (one.sequence, one.step, one.order))
    ours = [(one.site, max(one.own.over.values())) for one in culprits]
    if audit.non_finite is not None and not ours:
        ours = [(audit.non_finite.site, math.inf)]
    out[OURS] = list(_highs(iter(ours))) or [("", audit.peak)]
    return out


def _scores(rule: Rule, values: Values, reference: Values, exact: Values) -> Iterator[tuple[str, float]]:
    for site, candidate in values.items():
        right, best = reference.get(site), exact.get(site)
        if not rule.sites(site) or right is None or best is None or right.shape != candidate.shape:
            continue
        with np.errstate(all="ignore"):
            score = rule.score(right, candidate, best)
        yield site, score if math.isfinite(score) else math.inf


def _highs(scores: Iterator[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    highest = -math.inf
    for site, value in scores:
        if value > highest:
            highest = value
            yield site, value


# ---------------------------------------------------------------- tables


def threshold(scored: Sequence[Scored], rule: str, rate: float) -> float:
    """The smallest threshold that no more than a share `rate` of the clean runs exceeds."""
    clean = sorted((one.score(rule) for one in scored if not one.mutant), reverse=True)
    return clean[min(int(rate * len(clean)), len(clean) - 1)] if clean else 0.0


def detection(scored: Sequence[Scored], rule: str, limit: float) -> float:
    """Share of the mutants above a threshold."""
    mutants = [one for one in scored if one.mutant]
    return sum(one.score(rule) > limit for one in mutants) / max(len(mutants), 1)


def localised(scored: Sequence[Scored], rule: str, limit: float) -> float:
    """Share of the mutants whose first site above a threshold is the first that is wrong."""
    mutants = [one for one in scored if one.mutant]
    return sum(one.site(rule, limit) == one.first for one in mutants) / max(len(mutants), 1)


def tables(scored: Sequence[Scored]) -> str:
    """Detection at shares of false alarms, by dtype, of all mutants and of small gains; each rule at its usual
    threshold."""
    parts = []
    for dtype in DTYPES:
        ours = [one for one in scored if one.dtype == dtype]
        gains = [one for one in ours if not one.mutant or one.what.startswith(Kind.GAIN.value)]
        for words, chosen in (("all mutants", ours), ("gains of 1.1 to 1.0001", gains)):
            mutants = sum(one.mutant for one in chosen)
            families = len({one.family for one in chosen})
            if mutants:
                parts += [
                    f"### {dtype}, {words}: {mutants} mutants, {len(chosen) - mutants} clean runs, {families} families",
                    "Share of the mutants that is found, by the share of clean runs that is called faulty:",
                    _swept(chosen),
                    "Each rule at the threshold that its users take (tracekit: its limit):",
                    _usual(chosen, dtype),
                ]
    return "\n\n".join(parts)


def _swept(scored: Sequence[Scored]) -> str:
    rows = []
    for name in (OURS, *RULES):
        found = [_share(detection(scored, name, threshold(scored, name, rate))) for rate in RATES]
        where = "-" if name == "tolerance" else _share(localised(scored, name, threshold(scored, name, 0.0)))
        rows.append([name, *found, where])
    heads = ["rule", *(f"{100 * rate:g} %" for rate in RATES), "first site, at 0 %"]
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)


def _usual(scored: Sequence[Scored], dtype: str) -> str:
    rows = []
    clean = [one for one in scored if not one.mutant]
    for name in (OURS, *RULES):
        limit = RULES[name].usual[dtype] if name in RULES else 1.0
        alarms = sum(one.score(name) > limit for one in clean)
        where = "-" if name == "tolerance" else _share(localised(scored, name, limit))
        rows.append([name, f"{limit:g}", _share(detection(scored, name, limit)), where, f"{alarms} of {len(clean)}"])
    heads = ["rule", "threshold", "found", "first site right", "false alarms"]
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)


def _share(value: float) -> str:
    return f"{100.0 * value:.1f} %"


def picture(scored: Sequence[Scored], path: Path) -> None:
    """The curves, as one SVG of two panels: detection over false alarms, the latter on a square-root axis."""
    colours = dict(zip([OURS, *RULES], ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b"), strict=True))
    wide, high, left, top = 300, 220, 50, 30
    box = f"0 0 {2 * (wide + left) + 20} {high + 90}"
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif" font-size="11">']
    for panel, dtype in enumerate(DTYPES):
        ours = [one for one in scored if one.dtype == dtype]
        x0 = left + panel * (wide + left)
        floor = min((detection(ours, name, threshold(ours, name, 0.0)) for name in colours), default=0.0)
        low = max(0.0, math.floor(floor * 10.0 - 0.5) / 10.0)

        def place(rate: float, share: float, x0: int = x0, low: float = low) -> str:
            return f"{x0 + wide * math.sqrt(rate):.1f},{top + high * (1.0 - (max(share, low) - low) / (1.0 - low)):.1f}"

        parts.append(f'<text x="{x0 + wide / 2}" y="18" text-anchor="middle">{dtype}</text>')
        parts.append(f'<rect x="{x0}" y="{top}" width="{wide}" height="{high}" fill="white" stroke="#888"/>')
        for rate in (0.0, 0.01, 0.05, 0.2, 0.5, 1.0):
            x = x0 + wide * math.sqrt(rate)
            parts.append(f'<text x="{x:.1f}" y="{top + high + 14}" text-anchor="middle">{100 * rate:g} %</text>')
        for share in np.linspace(low, 1.0, 6):
            y = top + high * (1.0 - (share - low) / (1.0 - low)) + 4
            parts.append(f'<text x="{x0 - 4}" y="{y:.1f}" text-anchor="end">{100 * share:.0f} %</text>')
        for name, colour in colours.items():
            rates = [step / 100.0 for step in range(101)]
            line = [
                place(rate, 1.0 if rate == 1.0 else detection(ours, name, threshold(ours, name, rate)))
                for rate in rates
            ]
            parts.append(f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(
            f'<text x="{x0 + wide / 2}" y="{top + high + 30}" text-anchor="middle">clean runs called faulty</text>'
        )
    for index, (name, colour) in enumerate(colours.items()):
        x = left + index * 105
        parts.append(
            f'<line x1="{x}" y1="{high + 76}" x2="{x + 20}" y2="{high + 76}" stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(f'<text x="{x + 25}" y="{high + 80}">{name}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


START, END = "<!-- tables -->", "<!-- end of tables -->"


def written(page: Path, scored: Sequence[Scored]) -> None:
    """Put the tables into a page, between its two marks, and the picture beside it."""
    text = page.read_text(encoding="utf-8")
    head, tail = text[: text.index(START) + len(START)], text[text.index(END) :]
    rules = "\n".join(f"- `{name}`: {rule.words}" for name, rule in RULES.items())
    page.write_text(f"{head}\n\n{rules}\n\n{tables(scored)}\n\n{tail}", encoding="utf-8")
    picture(scored, page.with_suffix(".svg"))


if __name__ == "__main__":
    main()
