"""Do runs without a fault stay without an alarm? Runs drawn at random, each audited on both sides and diffed.

    python -m benchmarks.clean_runs --runs 300 --seed 0

Two thirds are SmolLM2 (half of them in float32, a quarter each in bfloat16 and float16), one third tiny models of
several families. A run draws its prompt, its sampling and how the candidate computes the same: the native engine, eager
attention, a prefill in chunks, a batch, two threads. An alarm is whatever the audit finds on either side, and whatever
the diff calls other than parity, with an oracle or without; a token that moved across a margin no larger than
the two sides' difference there is none, nor is a choice of precision of the engine's that changes no token. Exit code 1
if there is one; `--run N` repeats run N alone.
"""

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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tracekit_torch

import tracekit
from benchmarks.fault_bench import benign, inject_torch, models, native
from benchmarks.fault_bench.patching import Run
from benchmarks.fault_bench.setups import GREEDY, Setup
from benchmarks.fault_bench.studio import generate
from tracekit.auditing.audit import audit
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.mistakes.culprits import explained_audit
from tracekit.report.words import sentence
from tracekit.verdict.counterfactual.evidence import CutCrossed
from tracekit.verdict.decide import Verdict
from tracekit.verdict.ruling import Margins

assert benign  # registers the harmless injections

ROOT = Path(__file__).parent.parent
REAL = "smollm2"
TINY = ("llama", "qwen2", "qwen3", "mistral", "gemma", "phi3")
ENGINE = {
    REAL: (),
    "llama": ("fused-qkv", "online-softmax", "kv-repeat", "scale-queries", "rope-shift", "norm-order"),
    "qwen2": ("fused-qkv", "online-softmax", "kv-repeat", "scale-queries", "rope-shift", "norm-order"),
}
"""Models that the native engine runs, and the variants of its arithmetic that are drawn."""
EXTENDED = ("fused-qkv", "online-softmax", "kv-repeat", "scale-queries", "f64-rope-table", "norm-order")
LONGEST, LONGEST_TINY, TOKENS = 200, 120, 12
TEXT = """three ships left the harbour before dawn and a letter from mother said that winter would be long in every
village near rivers where old men mend nets while children count stars on cold nights of January 1847 because
numbers (like 3.14 or 2,718) never lie : "why not?" asked Anna ; def main ( ) return x + y [ 0 ] http example com
naïve café straße 東京 Москва"""
"""What prompts of words are drawn from."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Clean:
    """One run without a fault, and how its candidate computes the same."""

    index: int
    model: str
    dtype: str
    ids: tuple[int, ...]
    tokens: int
    settings: Json
    how: str
    words: tuple[str, ...] = ()
    """Of the engine's command line."""
    seed: int = 0

    @property
    def setup(self) -> Setup:
        return Setup(self.how, self.model, self.dtype, self.tokens, dict(self.settings), (self.ids,))

    def label(self) -> str:
        drawn = "greedy" if not self.settings["do_sample"] else " ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.model} {self.dtype} {len(self.ids)}+{self.tokens} {drawn} | {self.how} {' '.join(self.words)}"


@dataclass
class Outcome:
    """What was said of a run; `alarms` by kind."""

    run: Clean
    alarms: dict[str, str] = field(default_factory=dict)
    near_tie: bool = False
    precise: bool = False
    """The engine is off by a choice of precision alone, which is no alarm: candle's product of one row in float16."""
    sites: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Of processor time, by what was done: record, audit, diff."""

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the processor time of a block as spent on `what`."""
        began = time.process_time()
        try:
            yield
        finally:
            self.seconds[what] = round(self.seconds.get(what, 0.0) + time.process_time() - began, 2)


def main() -> None:
    options = parse_arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="clean-runs-") as scratch:
        bench = Bench(Path(scratch), options.model.resolve(), options.native.resolve())
        chosen = range(options.first, options.runs) if options.run is None else [options.run]
        done = {} if options.append is None else outcomes_in(options.append, options.seed)
        outcomes = [done[index] for index in chosen if index in done and wanted(options, index)]
        for index in chosen:
            if index not in done and wanted(options, index):
                outcomes.append(bench.outcome(drawn(options.seed, index, bench)))
                if options.append is not None:
                    append(options.append, options.seed, outcomes[-1])
    sys.exit(bool(report(outcomes, options.seed)))


def outcomes_in(path: Path, seed: int) -> dict[int, Outcome]:
    """The outcomes of this seed that a file holds, by index of their run."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [Outcome(Clean(**line["run"]), **line["outcome"]) for line in lines if line["seed"] == seed]
    return {outcome.run.index: outcome for outcome in found}


def append(path: Path, seed: int, outcome: Outcome) -> None:
    """Add an outcome as one line of JSON."""
    told = asdict(outcome)
    with path.open("a") as file:
        file.write(json.dumps({"seed": seed, "run": told.pop("run"), "outcome": told}) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="how many; default 300")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn; default 0")
    parser.add_argument("--run", type=int, help="this run alone")
    parser.add_argument("--first", type=int, default=0, help="begin with this run")
    parser.add_argument("--only", default="", metavar="REGEX", help="models and dtypes to run, as `llama float32`")
    parser.add_argument("--append", type=Path, metavar="FILE", help="add each outcome as a line; skip those in it")
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/smollm2-135m", help="SmolLM2's folder")
    parser.add_argument("--native", type=Path, default=ROOT / "hooks/rust/target/release/tracekit-native")
    return parser.parse_args()


def wanted(options: argparse.Namespace, index: int) -> bool:
    return re.search(options.only, " ".join(kind_of(index))) is not None


def kind_of(index: int) -> tuple[str, str]:
    """Model and dtype of run `index`: of twelve, four real ones in float32, two each in 16 bits, four tiny ones."""
    place, turn = index % 12, index // 12
    if place < 8:
        return REAL, ("float32", "bfloat16", "float32", "float16")[place % 4]
    which = turn * 4 + place - 8
    return TINY[which % len(TINY)], ("float32", "float32", "bfloat16", "float16")[which // len(TINY) % 4]


def drawn(seed: int, index: int, bench: Bench) -> Clean:
    """Run `index`: the same for the same seed."""
    dice = random.Random(f"clean/{seed}/{index}")
    model, dtype = kind_of(index)
    ids = prompt_of(dice, model, bench)
    settings = dict(GREEDY)
    if dice.random() < 0.75:
        settings = {"do_sample": True, "temperature": dice.choice((0.3, 0.8, 1.0, 1.5))}
        settings |= {"top_k": dice.choice((0, 5, 50)), "top_p": dice.choice((1.0, 0.9))}
    ways = ["engine"] * 3 if model in ENGINE else []
    ways += ["eager", "chunks", "threads"] + ([] if settings["do_sample"] else ["batch"])
    how = dice.choice(ways)
    words: list[str] = []
    if how == "engine":
        if dice.random() < 0.4:
            words += ["--variant", dice.choice(ENGINE[model] or EXTENDED)]
        if dice.random() < 0.25:
            words += ["--prefill-chunk", str(dice.randint(1, max(1, len(ids))))]
    elif how == "chunks":
        words += [str(dice.randint(1, max(1, len(ids) - 1)))]
    tokens = dice.randint(1, TOKENS)
    return Clean(index, model, dtype, tuple(ids), tokens, settings, how, tuple(words), dice.randrange(1 << 31))


def prompt_of(dice: random.Random, model: str, bench: Bench) -> list[int]:
    """Ids of 1 to 200 tokens, as often short as long: words of a text, or ids of no text at all."""
    longest = LONGEST if model == REAL else LONGEST_TINY
    length = round(longest ** dice.random())
    if model == REAL and dice.random() < 0.7:
        text = " ".join(dice.choice(TEXT.split()) for _ in range(length))
        return bench.encode(text)[:length]
    return [dice.randrange(3, models.VOCABULARY if model != REAL else 49152) for _ in range(length)]


class Bench:
    """Models, loaded once, and a scratch folder."""

    def __init__(self, scratch: Path, real: Path, engine: Path) -> None:
        self.scratch, self.real, self.engine = scratch, real, engine

    def folder(self, model: str) -> Path:
        folder = self.real if model == REAL else self.scratch / model
        if not folder.exists():
            models.make(model, folder)
        return folder

    def encode(self, text: str) -> list[int]:
        return list(_tokenizer(self.real)(text).input_ids)

    def outcome(self, run: Clean) -> Outcome:
        """Record both sides and the oracle, audit and diff them. What breaks is an alarm as well."""
        out = Outcome(run)
        print(f"run {run.index}: {run.label()}", file=sys.stderr, end="", flush=True)
        try:
            self._judge(out)
        except Exception as error:
            out.alarms["error"] = f"{type(error).__name__}: {error}"
        spent = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in out.seconds.items())
        print(f"  {spent}" + (" near-tie" if out.near_tie else ""), file=sys.stderr, flush=True)
        for kind, said in out.alarms.items():
            print(f"  ALARM  {kind}: {said}", file=sys.stderr, flush=True)
        return out

    def _judge(self, out: Outcome) -> None:
        run, folder = out.run, self.folder(out.run.model)
        paths = [self.scratch / f"{role}.tklog" for role in ("reference", "candidate", "oracle")]
        for path in paths:
            path.unlink(missing_ok=True)
        with out.timed("record"):
            self._torch(run, paths[0], "sdpa")
            native_side = run.how == "engine"
            (self._native if native_side else self._torch)(run, paths[1], run.how)
            self._torch(run, paths[2], "oracle", paths[0])
        checkpoint = Checkpoint(folder)
        with ExitStack() as stack:
            reference, candidate, oracle = (stack.enter_context(tracekit.open(path)) for path in paths)
            for side, trace in (("reference", reference), ("candidate", candidate)):
                with out.timed("audit"):
                    found = explained_audit(trace, checkpoint, audit(trace, checkpoint))
                out.sites += len(found.clean) + len(found.culprits)
                if found.exit_code:
                    said = [f"{c.site} at {c.position}: {sentence(c.evidence)}" for c in found.culprits]
                    out.alarms[f"audit, {side}"] = "; ".join([*said[:3], f"{len(said)} sites"]) or str(found)
            audited = not out.alarms
            with out.timed("diff"):
                for kind, truth in (("diff", None), ("diff, oracle", oracle)):
                    verdict = tracekit.diff(reference, candidate, truth, audited=False)
                    note(out, f"{kind}, not audited", verdict)
                    # Where the comparison finds nothing and the audit of neither side does, both together do not.
                    if verdict.verdict != "parity" or not audited:
                        note(out, kind, tracekit.diff(reference, candidate, truth, weights=str(folder)))

    def _native(self, run: Clean, path: Path, how: str) -> None:
        words = native.command(self.engine, self.folder(run.model), run.setup, list(run.ids), run.seed)
        native.record([*words, *run.words], path)

    def _torch(self, run: Clean, path: Path, how: str, follow: Path | None = None) -> None:
        """The PyTorch run: as it is, with one harmless change, or as the oracle of `follow`."""
        # An oracle converts its model, rotary table included, and does not undo it.
        model = _loaded(self.folder(run.model), run.dtype, oracle=follow is not None)
        settings, ids = dict(run.settings), [list(run.ids)]
        if how == "chunks":
            settings["prefill_chunk_size"] = int(run.words[0])
        if how == "batch":
            ids += [list(run.ids[: max(1, len(run.ids) // 2)]), list(run.ids)]
        options: Json = {}
        if follow is not None:
            options = {"follow": follow, "dtype": "float64" if run.dtype == "float32" else "float32"}
        injection = {"eager": "harmless: eager attention", "threads": "harmless: threads"}.get(how)
        with ExitStack() as stack:
            if injection is not None:
                given = {"count": 2} if how == "threads" else {}
                stack.enter_context(inject_torch.INJECTIONS[injection](model, Run(ids, settings, 0, 0), **given))
            with tracekit_torch.record(model, path, **options):
                torch.manual_seed(run.seed)
                generate(model, run.setup, Run(ids, settings, run.seed, run.tokens))


def note(out: Outcome, kind: str, verdict: Verdict) -> None:
    """What a diff says of a clean run."""
    if verdict.cause == "near-tie" and (margin_proves(verdict.margins) or cut_proves(verdict)):
        out.near_tie = True
        return
    if out.run.how == "engine" and verdict.cause == "precision" and verdict.verdict == "parity":
        out.precise = True
        return
    if verdict.verdict != "parity" or verdict.culprits:
        evidence = "; ".join(map(sentence, verdict.evidence))
        out.alarms[kind] = f"{verdict.verdict} {verdict.cause} at step {verdict.step}, {verdict.site}: {evidence}"


def margin_proves(margins: Margins) -> bool:
    """Whether the margin that was crossed is no larger than the difference of the two sides there."""
    token, cut, error = margins.token, margins.cut_distance, margins.logit_error
    if token is not None and token.margin <= token.error:
        return True
    return cut is not None and error is not None and cut <= error


def cut_proves(verdict: Verdict) -> bool:
    """Whether each side's own logits, which the diff found within rounding of each other, give its survivors and its
    token: then the token that the other side lacks crossed the cut with them."""
    return any(isinstance(each, CutCrossed) and each.follows for each in verdict.evidence)


def report(outcomes: list[Outcome], seed: int) -> int:
    """Print the counts; how many runs had an alarm."""
    kinds = Counter(kind for outcome in outcomes for kind in outcome.alarms)
    where = Counter(f"{outcome.run.model} {outcome.run.dtype}" for outcome in outcomes)
    print(", ".join(f"{name}: {count}" for name, count in sorted(where.items())))
    for outcome in outcomes:
        for kind, said in outcome.alarms.items():
            print(f"run {outcome.run.index} ({outcome.run.label()}): {kind}: {said}")
    said = ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))
    alarmed = sum(bool(outcome.alarms) for outcome in outcomes)
    print(
        f"seed {seed}: {len(outcomes)} clean runs, {sum(outcome.sites for outcome in outcomes):,} sites audited, "
        f"{alarmed} with an alarm ({said or 'none'}), "
        f"{sum(outcome.near_tie for outcome in outcomes)} with a near-tie, "
        f"{sum(outcome.precise for outcome in outcomes)} with a choice of precision; "
        f"{sum(sum(outcome.seconds.values()) for outcome in outcomes):.0f} s of processor time"
    )
    return alarmed


@cache
def _loaded(folder: Path, dtype: str, oracle: bool) -> Any:
    torch.set_num_threads(1)
    return models.load(folder, dtype)


@cache
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    main()
