"""Mutants of transformers' logits processors: does `diff` name the filter that was changed?

    python -m benchmarks.sampler_mutants --seed 0 --each 30

The class of one processor is changed at a random place of its syntax tree (`mutants.edits`) and takes the place of the
right one while a tiny model samples. Truth is what the processors left: a mutant that leaves the same scores at every
step of the run is left out as equivalent.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import random
import tempfile
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import tracekit_torch
import transformers.generation.logits_process as processors
import transformers.generation.utils as generation
from tabulate import tabulate

import tracekit
from benchmarks.mutants.edits import Point, points
from tests import tiny_families

FILTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "TemperatureLogitsWarper": ("temperature", {"temperature": 0.7}),
    "TopKLogitsWarper": ("top_k", {"top_k": 12}),
    "TopPLogitsWarper": ("top_p", {"top_p": 0.8}),
    "MinPLogitsWarper": ("min_p", {"min_p": 0.1}),
    "TypicalLogitsWarper": ("typical", {"typical_p": 0.8}),
    "EpsilonLogitsWarper": ("epsilon", {"epsilon_cutoff": 0.02}),
    "EtaLogitsWarper": ("eta", {"eta_cutoff": 0.02}),
    "RepetitionPenaltyLogitsProcessor": ("repetition", {"repetition_penalty": 1.5}),
    "NoRepeatNGramLogitsProcessor": ("no_repeat", {"no_repeat_ngram_size": 2}),
    "MinNewTokensLengthLogitsProcessor": ("min_new_tokens", {"min_new_tokens": 12, "eos_token_id": [2, 7]}),
}
"""Class -> a part of the name of its setting, and settings with which it acts."""
STEPS = 16
ALWAYS: dict[str, Any] = {"do_sample": True, "max_new_tokens": STEPS, "temperature": 0.9, "top_k": 40, "top_p": 0.97}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=30, help="mutants of each processor; default 30")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)
    tree = ast.parse(Path(processors.__file__).read_text(encoding="utf-8"))
    rows, misses = [], []
    with tempfile.TemporaryDirectory(prefix="samplers-") as scratch:
        model = tiny_families.load(tiny_families.make("llama", Path(scratch) / "model"))
        for name, (word, settings) in FILTERS.items():
            made = [point for point in points(tree) if point.function == f"{name}.__call__"]
            drawn = random.Random(f"{options.seed}/{name}").sample(made, min(options.each, len(made)))
            counts: Counter[str] = Counter()
            right = _run(model, ALWAYS | settings, Path(scratch) / "right.h5")
            for point in drawn:
                state, said = _tried(model, tree, point, name, word, ALWAYS | settings, right, Path(scratch))
                counts[state] += 1
                if state not in ("named", "equivalent", "crashes"):
                    misses.append(f"{state.upper()}  {name} line {point.line}: {point.words()}: {said}")
            rows.append([name, len(drawn), *(counts[state] for state in STATES)])
    rows.append(["all", *(sum(row[place] for row in rows) for place in range(1, len(STATES) + 2))])
    print(tabulate(rows, headers=["processor", "mutants", *STATES], tablefmt="github"))
    print("\n".join(misses))


STATES = ("crashes", "equivalent", "named", "filter, not named", "other filter", "other cause", "not seen")


def _tried(
    model: Any,
    tree: ast.Module,
    point: Point,
    name: str,
    word: str,
    settings: dict[str, Any],
    right: Any,
    scratch: Path,
) -> tuple[str, str]:
    old = point.old
    point.put(point.new)
    try:
        code = compile(ast.fix_missing_locations(tree), "<mutant>", "exec")
    finally:
        point.put(old)
    module = types.ModuleType("transformers.generation.logits_process_mutant")
    module.__package__ = processors.__package__
    try:
        exec(code, module.__dict__)
        with _in_place(name, getattr(module, name)):
            wrong = _run(model, settings, scratch / "wrong.h5")
    except (
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        KeyError,
        NameError,
        AssertionError,
    ) as error:
        return "crashes", str(error)[:80]
    if wrong[1] == right[1]:
        return "equivalent", ""
    verdict = tracekit.diff(right[0], wrong[0])
    said = json.dumps(verdict.to_json()).lower()
    if verdict.verdict == "parity":
        return "not seen", ""
    if str(verdict.cause) not in ("filter", "sampler"):
        return "other cause", f"{verdict.verdict} {verdict.cause}"
    explanation = verdict.explanation
    if explanation is None:
        return ("filter, not named" if name.lower() not in said else "named"), verdict.text.splitlines()[2]
    about = f"{explanation.mistake.id} {json.dumps(dict(explanation.values), default=str)}".lower()
    about += " ".join(other.mistake.id for other in explanation.also)
    return ("named" if word in about else "other filter"), about[:160]


@contextlib.contextmanager
def _in_place(name: str, made: type) -> Iterator[None]:
    kept = getattr(generation, name)
    setattr(generation, name, type(name, (made,), {}))
    try:
        yield
    finally:
        setattr(generation, name, kept)


def _run(model: Any, settings: dict[str, Any], out: Path) -> tuple[Any, list[bytes]]:
    """The trace of a run with fixed seed, and what the processors left at each step."""
    out.unlink(missing_ok=True)
    torch.manual_seed(3)
    with tracekit_torch.record(model, out, level="logits"):
        made = model.generate(
            torch.tensor(tiny_families.PROMPT), output_scores=True, return_dict_in_generate=True, **settings
        )
    return tracekit.open(out), [score.numpy().tobytes() for score in made.scores]


if __name__ == "__main__":
    main()
