"""Harmless rewrites: what a verdict must not call a divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import tracekit
from benchmarks.fault_bench.fault import Json
from benchmarks.fault_bench.setups import SETUPS
from benchmarks.fault_bench.studio import Studio


@dataclass(frozen=True)
class Rewrite:
    """A candidate that computes the same as the reference of `setup`, in another way."""

    setup: str
    record: Callable[[Studio, Path, Rewrite], None]
    parameters: Json = field(default_factory=dict)

    def verdict(self, studio: Studio, path: Path) -> tracekit.Verdict:
        """Record it and diff it against the reference."""
        self.record(studio, path, self)
        with (
            tracekit.open(studio.trace(self.setup, "reference")) as reference,
            tracekit.open(path) as candidate,
            tracekit.open(studio.trace(self.setup, "oracle")) as oracle,
        ):
            return tracekit.diff(reference, candidate, oracle)


def engine(studio: Studio, path: Path, rewrite: Rewrite) -> None:
    """The Rust engine, with more words on its command line."""
    studio.native(SETUPS[rewrite.setup], path, [], *rewrite.parameters.get("words", ()))


def pytorch(studio: Studio, path: Path, rewrite: Rewrite) -> None:
    """The PyTorch model with injections that change nothing but the order of operations."""
    setup = SETUPS[rewrite.setup]
    setup = replace(setup, settings={**setup.settings, **rewrite.parameters.get("settings", {})})
    studio.torch_run(setup, path, list(rewrite.parameters.get("injections", ())))


def _variants(setup: str, *names: str) -> dict[str, Rewrite]:
    return {f"{setup}: native, {name}": Rewrite(setup, engine, {"words": ("--variant", name)}) for name in names}


REWRITES: dict[str, Rewrite] = {
    "native against PyTorch": Rewrite("smollm2", engine),
    "native against PyTorch, greedy": Rewrite("smollm2-greedy", engine),
    "native against PyTorch, bfloat16": Rewrite("smollm2-bf16", engine),
    "native against PyTorch, biases": Rewrite("qwen2", engine),
    "native against PyTorch, repetition penalty": Rewrite("qwen2-penalty", engine),
    "native, prefill in chunks of 3": Rewrite("smollm2", engine, {"words": ("--prefill-chunk", "3")}),
    "native, token by token": Rewrite("smollm2", engine, {"words": ("--prefill-chunk", "1")}),
    "PyTorch, prefill in chunks of 3": Rewrite("smollm2", pytorch, {"settings": {"prefill_chunk_size": 3}}),
    "PyTorch, token by token": Rewrite("smollm2", pytorch, {"settings": {"prefill_chunk_size": 1}}),
    "PyTorch, attention written out": Rewrite("smollm2", pytorch, {"injections": [("core", {})]}),
    "PyTorch, online softmax": Rewrite("smollm2", pytorch, {"injections": [("core", {"online": 4})]}),
}
