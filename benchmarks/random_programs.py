"""Is a program recorded right, whatever order it does things in? Programs drawn at random, of operations on one model.

    python -m benchmarks.random_programs --programs 200 --seed 0

A program is a model (`drawn_programs/models.py`: decoders, experts, states, an encoder and a decoder, ports; in float32
or 16 bits) and up to five operations (`drawn_programs/operations.py`), drawn with their numbers: generations (greedy or
sampled, a batch, padding, several returned, embeddings given, a cache that a call before it filled, in a thread, one
that fails), loops of its own (with a cache, without, in chunks), plain calls (with labels and gradients), calls of
parts, beam search. What an operation raises by itself it has to raise when it is recorded. Each program runs by itself,
twice recorded, and once more with a fault: what one of its modules gives is multiplied, always, in calls of one token
alone, or in the last row of a batch alone.

A finding is: other results than those of the run by itself; an archive that is not complete; a generation whose tokens
stand in no sequence, and are not said to be lost; a culprit in the audit of a clean run; of the two clean recordings,
any verdict but parity or withheld; of a clean and the faulty one, parity; an audit of the faulty one that does not name
the fault. Exit code 1 if there is one; `--run N` repeats program N alone, and keeps its traces.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tracekit_torch
import transformers

import tracekit
from benchmarks.drawn_programs.models import Subject, subject
from benchmarks.drawn_programs.operations import OPERATIONS, Run


@dataclass(frozen=True)
class Result:
    """What an operation came to in a run of the program."""

    tokens: tuple[tuple[int, ...], ...]
    """Of each generation that it made."""
    raised: str = ""
    """The class of what it raised, and which the program caught."""


@dataclass(frozen=True)
class Program:
    """A program that was drawn."""

    subject: Subject
    operations: tuple[str, ...]
    fault: random.Random
    run: Callable[[Any], list[Result]]
    """Runs all operations, whatever one of them raises."""

    def __str__(self) -> str:
        return f"{self.subject}: {', '.join(self.operations)}"


def program(number: int, seed: int, only: str) -> Program:
    """The program of a number, of a subject whose name holds `only`."""
    draw = random.Random(f"{seed} {number}")
    drawn = next(each for each in iter(lambda: subject(draw), None) if re.search(only, f"{each.kind.value} {each}"))
    chosen = [draw.choice(OPERATIONS[drawn.kind]) for _ in range(draw.randrange(1, 6))]
    runs = [each(draw, drawn) for each in chosen]

    def run(model: Any) -> list[Result]:
        torch.manual_seed(number)
        return [_result(each, model) for each in runs]

    return Program(drawn, tuple(each.__name__ for each in chosen), draw, run)


def _result(run: Run, model: Any) -> Result:
    try:
        return Result(tuple(map(tuple, run(model))))
    except Exception as error:
        return Result((), f"{type(error).__name__}: {str(error)[:60]}")


@dataclass
class Judged:
    """What a program is and came to."""

    what: str
    raised: list[str] = field(default_factory=list)
    """What its operations raise without a recorder."""
    wrong: list[str] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)


@dataclass
class Planted:
    """A fault in a model: what it does, where, and how often it did."""

    what: str
    site: str
    times: int = 0


def _spoil(model: Any, draw: random.Random) -> Planted:
    """Multiply what one module gives: always, in calls of one token alone, or in the last row of a batch alone."""
    judged = (torch.nn.Linear, torch.nn.LayerNorm)
    modules = [(path, module) for path, module in model.named_modules() if isinstance(module, judged)]
    path, module = draw.choice(modules)
    fault = Planted(draw.choice(["always", "always", "one token", "last row"]), path)

    def hook(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor | None:
        if output.dim() < 3:
            if fault.what != "always":
                return None
        elif fault.what == "one token" and output.shape[1] != 1:
            return None
        elif fault.what == "last row":
            fault.times += 1
            return torch.cat([output[:-1], output[-1:] * 1.25])
        fault.times += 1
        return output * 1.25

    module.register_forward_hook(hook)
    return fault


def findings(number: int, seed: int, only: str, folders: Path) -> Judged:
    """What a program is, what is wrong with its recordings, and what was withheld of their audit and comparison."""
    drawn = program(number, seed, only)
    folder = drawn.subject.checkpoint(folders)
    plain = drawn.run(drawn.subject.model(folders))
    out = Judged(f"{number}: {drawn}", [each.raised for each in plain if each.raised])
    first, second, faulty = (folders / f"{number}.{name}.h5" for name in ("first", "second", "faulty"))
    said = ""
    for path in (first, second):
        results, said = _recorded(drawn.subject.model(folders), drawn, path)
        if results != plain:
            out.wrong.append(f"other results: {results} for {plain}")
        if "Traceback" in said:
            out.wrong.append(f"the recorder: {said[-600:]}")
    if not first.exists():
        out.wrong += [f"nothing recorded: {said[-300:]}"] * any(each.tokens for each in plain)
        return out
    trace = tracekit.open(first)
    verdict = tracekit.diff(first, second)
    out.wrong += _of_trace(trace, plain, said=verdict.verdict == "withheld")
    by = drawn.subject.reference(folders)
    _audit_clean(out, trace, folder, by)
    if verdict.verdict == "withheld":
        out.withheld.append(f"diff: {verdict.text}")
    elif verdict.verdict != "parity":
        out.wrong.append(f"diff: {verdict.text}")
    if any(sequence.sites for sequence in trace.sequences):
        model = drawn.subject.model(folders)
        fault = _spoil(model, drawn.fault)
        _recorded(model, drawn, faulty)
        if fault.times:
            out.wrong += _of_fault(first, faulty, folder, fault, by)
    return out


def _recorded(model: Any, drawn: Program, path: Path) -> tuple[list[Result], str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), tracekit_torch.record(model, path):
        results = drawn.run(model)
    return results, said.getvalue()


def _of_trace(trace: tracekit.Trace, plain: list[Result], *, said: bool) -> list[str]:
    """`said`: a verdict on it is withheld, as of a prompt whose last chunk is one token, which may be a step's."""
    found = [] if trace.status == "complete" else [f"{trace.status}: {trace.status_detail}"]
    held = [sequence.tokens.tolist() for sequence in trace.sequences if sequence.step_count]
    missing = [tokens for each in plain for tokens in each.tokens if tokens and not _taken(held, list(tokens))]
    if missing and not (said or trace.config.get("lost")):
        found.append(f"tokens in no sequence, and not a word: {missing}; held {held}")
    return found


def _audit_clean(out: Judged, trace: tracekit.Trace, folder: Path, by: Any) -> None:
    """What audits of a clean run find is wrong."""
    options: dict[str, dict[str, Any]] = {"recipes": {}, "reference": {"by": by}}
    for name, given in options.items():
        try:
            audit = tracekit.audit(trace, folder, **given)
        except tracekit.TraceError as error:
            out.withheld.append(f"audit by {name}: {error}")
            continue
        if audit.culprits:
            out.wrong.append(f"audit by {name}: {audit.text}")
        elif audit.exit_code:
            out.withheld.append(f"audit by {name}: {audit.text}")


def _of_fault(clean: Path, faulty: Path, folder: Path, fault: Planted, by: Any) -> list[str]:
    where = f"a fault at {fault.site} ({fault.what}, {fault.times} times)"
    verdict = tracekit.diff(clean, faulty)
    found = [f"{where} is parity: {verdict.text}"] if verdict.verdict == "parity" else []
    with tracekit.open(faulty) as trace:
        recorded = any(fault.site in sequence.sites for sequence in trace.sequences)
        if not recorded and trace.config.get("lost"):
            return found
    try:
        audit = tracekit.audit(faulty, folder, by=by)
    except tracekit.TraceError as error:
        return [*found, f"{where}: {error}"]
    named = {culprit.site for culprit in audit.culprits}
    if fault.site not in named and not (fault.site.endswith(("lm_head", "embed_out", "head")) and "logits" in named):
        found.append(f"{where} is not named: {audit.text}")
    return found


def _taken(held: list[list[int]], tokens: list[int]) -> bool:
    if tokens in held:
        held.remove(tokens)
        return True
    return False


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first program")
    parser.add_argument("--only", default="", help="models whose kind and name this regular expression is found in")
    parser.add_argument("--run", type=int, help="repeat this program alone")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    counts: Counter[str] = Counter()
    folders = Path(tempfile.mkdtemp(prefix="random_programs."))
    numbers = range(options.first, options.first + options.programs) if options.run is None else [options.run]
    raised: Counter[str] = Counter()
    for number in numbers:
        try:
            judged = findings(number, options.seed, options.only, folders)
        except Exception:
            judged = Judged(str(number), wrong=[traceback.format_exc()])
        counts["wrong" if judged.wrong else "withheld" if judged.withheld else "whole"] += 1
        raised.update(judged.raised)
        for text in judged.wrong:
            print(f"WRONG {judged.what}\n  {text}", flush=True)
        for text in judged.withheld:
            print(f"withheld {judged.what}\n  {text}", flush=True)
        if options.run is None:
            for path in folders.glob(f"{number}.*"):
                path.unlink()
    for what, count in raised.most_common():
        print(f"raised by {count} operations: {what}")
    print(f"{len(numbers)} programs of seed {options.seed}: {dict(counts)}; {folders}")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
