"""A tiny model of a family, the source of its program, and mutants of it: compiled in memory, with its weights."""

from __future__ import annotations

import ast
import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tracekit_torch import precision
from tracekit_torch.reference_program.loading import load_reference
from transformers import LogitsProcessor

from benchmarks.mutants.covered import lines_run
from benchmarks.mutants.edits import Kind, Point, points
from tests import tiny_families

FAMILIES = (
    "llama", "qwen3next", "gemma2", "deepseekv3", "gpt2", "gptoss", "falcon", "mixtral", "cohere", "bloom", "phi3",
    "olmo2", "gemma3", "granite", "qwen3moe", "gptneox", "opt", "stablelm", *tiny_families.UNTUNED,
)  # fmt: skip
PROMPT, STEPS = 36, 4
"""Positions of the prefill, and of the calls of one position after it, with the cache."""
VOCABULARY = 160


@dataclass
class Subject:
    """A model, its program's source and what can be changed in it."""

    name: str
    folder: Path
    model: nn.Module
    reference: nn.Module
    """The same in float64, as the audit runs it."""
    exact: nn.Module
    """Another one in float64, for the truth."""
    module: types.ModuleType
    tree: ast.Module
    dtype: str
    points: dict[Kind, list[Point]] = field(default_factory=dict)


def subject(name: str, scratch: Path, dtype: str = "float32") -> Subject:
    """The subject of a family, computing in `dtype`; its checkpoint is made in `scratch`."""
    folder = scratch / name
    if not folder.exists():
        tiny_families.make(name, folder)
    model = loaded(folder, dtype)
    module = sys.modules[type(model).__module__]
    path = str(module.__file__)
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    reference, exact = load_reference(str(folder), dtype), loaded(folder, dtype)
    made = Subject(name, folder, model, reference, exact, module, tree, dtype)
    precision.run_in(made.exact, "float64")
    run = lines_run(path, lambda: forward(model, tokens(0)))
    for point in points(tree):
        if point.line in run or point.statement.lineno in run:
            made.points.setdefault(point.kind, []).append(point)
    return made


def loaded(folder: Path, dtype: str, attention: str | None = "eager") -> Any:
    """A model of a checkpoint, its experts one after the other."""
    model = tiny_families.load(folder, attention, dtype)
    for value in model.parameters():
        value.data = value.data.clone()  # aligned as a mutant's are: products of one row round by where they lie
    experts = getattr(model, "set_experts_implementation", None)
    if experts is not None:
        experts("eager")
    return model


def tokens(seed: int) -> torch.Tensor:
    """i64 [1, PROMPT + STEPS]"""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (1, PROMPT + STEPS), generator=made)


def forward(model: Any, ids: torch.Tensor, **settings: Any) -> None:
    """Generate given tokens, i64 [batch, PROMPT + STEPS]: a prefill, then position by position with the cache.
    `settings`: of `generate`. Raises ValueError where the model gives logits of another shape."""
    settings |= {"max_new_tokens": STEPS + 1, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        model.generate(ids[:, :PROMPT], logits_processor=[Forced(ids[:, PROMPT:])], **settings)


class Forced(LogitsProcessor):
    """Leaves one token at each step: the mutant and the clean program are given the same."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if scores.shape != (len(self._tokens), VOCABULARY):
            raise ValueError(f"logits of the shape {list(scores.shape)}")
        step = min(input_ids.shape[1] - PROMPT, STEPS - 1)
        forced: Any = torch.full_like(scores, -torch.inf)
        return forced.scatter_(1, self._tokens[:, step : step + 1], 0.0)  # type: ignore[no-any-return]


def drawn(subject: Subject, dice: random.Random) -> Iterator[Point]:
    """The points of a subject in random order, each once: the kind first, so that rare kinds come as often."""
    left = {kind: dice.sample(found, len(found)) for kind, found in subject.points.items()}
    while left:
        kind = dice.choice(sorted(left, key=lambda each: each.value))
        yield left[kind].pop()
        if not left[kind]:
            del left[kind]


@contextmanager
def mutated(subject: Subject, point: Point | None) -> Iterator[Callable[[], nn.Module]]:
    """What makes models of the changed program, with the clean checkpoint's weights; None makes it of the unchanged
    source. Raises whatever a program raises that does not load."""
    name = f"{subject.module.__name__}_mutant"
    made = types.ModuleType(name)
    made.__package__, made.__file__ = subject.module.__package__, subject.module.__file__
    sys.modules[name] = made
    try:
        exec(_compiled(subject, point), made.__dict__)
        yield lambda: _model(subject, getattr(made, type(subject.model).__name__))
    finally:
        del sys.modules[name]


def _compiled(subject: Subject, point: Point | None) -> types.CodeType:
    path = f"<mutant of {subject.name}>"
    if point is None:
        return compile(subject.tree, path, "exec")
    old = point.old
    point.put(point.new)
    try:
        return compile(ast.fix_missing_locations(subject.tree), path, "exec")
    finally:
        point.put(old)


def _model(subject: Subject, kind: type[nn.Module]) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, subject.dtype))  # as transformers does while it loads a model
    try:
        model: Any = kind(subject.model.config)
    finally:
        torch.set_default_dtype(before)
    model.load_state_dict(subject.model.state_dict())
    return model.eval()  # type: ignore[no-any-return]
