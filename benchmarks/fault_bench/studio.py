"""Records runs. One process keeps its models loaded; traces of healthy runs lie in a scratch folder for all to read."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tracekit_torch

from benchmarks.fault_bench import inject_sampler, inject_torch, models, native
from benchmarks.fault_bench.fault import Fault, Json
from benchmarks.fault_bench.patching import Run
from benchmarks.fault_bench.setups import ENCODERS, SETUPS, Setup

assert inject_sampler  # registers its injections


@dataclass(frozen=True)
class Studio:
    """Where things are, and the seed of the sampled runs."""

    scratch: Path
    smollm2: Path
    engine: Path
    seed: int

    def folder(self, key: str) -> Path:
        """The checkpoint of a model."""
        return self.smollm2 if key == "smollm2" else self.scratch / "models" / key

    def trace(self, setup: str, role: str) -> Path:
        """A trace of a healthy run: `reference`, `oracle` or `native`."""
        return self.scratch / f"{setup}.{role}.h5"

    # ---------------------------------------------------------------- healthy runs

    def prepare(self, setup: str, with_native: bool) -> None:
        """Record the reference, its oracle and, where faults of the engine are compared with it, the healthy engine."""
        which = SETUPS[setup]
        reference = self.trace(setup, "reference")
        self.torch_run(which, reference, [])
        model = models.load(self.folder(which.model), which.dtype)
        dtype = "float64" if which.dtype == "float32" else "float32"
        run = self.run(which)
        torch.manual_seed(run.seed)
        with tracekit_torch.record(model, self.trace(setup, "oracle"), follow=reference, dtype=dtype):
            generate(model, which, run)
        if with_native:
            self.native(which, self.trace(setup, "native").with_suffix(".tklog"), [])

    # ---------------------------------------------------------------- faulty runs

    def faulty(self, fault: Fault, path: Path) -> None:
        """Record the run that a fault spoils."""
        setup = SETUPS[fault.setup]
        if fault.side == "native":
            self.native(setup, path, [fault.kind], *fault.parameters.get("words", ()))
        else:
            self.torch_run(setup, path, [(fault.kind, fault.parameters)])

    def healthy(self, fault: Fault, path: Path) -> Path:
        """The trace that the faulty one is compared with bit by bit."""
        if fault.side == "native":
            return self.trace(fault.setup, "native").with_suffix(".tklog")
        if fault.twin is None:
            return self.trace(fault.setup, "reference")
        self.torch_run(SETUPS[fault.setup], path, [(fault.kind, fault.twin)])
        return path

    def native(self, setup: Setup, path: Path, faults: list[str], *more: str, folder: str | None = None) -> None:
        """A run of the engine. `folder`: another layout of the same weights."""
        prompt = self.run(setup).ids[0]
        words = native.command(self.engine, self.folder(folder or setup.model), setup, prompt, self.seed)
        native.record([*words, *more, *(word for fault in faults for word in ("--fault", fault))], path)

    def torch_run(
        self,
        setup: Setup,
        path: Path,
        injections: list[tuple[str, Json]],
        folder: str | None = None,
        **options: Any,
    ) -> None:
        """A run of the PyTorch model with injections, harmful or not."""
        model = _loaded(self.folder(folder or setup.model), setup.dtype)
        run = self.run(setup)
        with ExitStack() as stack:
            for kind, parameters in injections:
                stack.enter_context(inject_torch.INJECTIONS[kind](model, run, **parameters))
            with tracekit_torch.record(model, path, **options), ExitStack() as inside:
                torch.manual_seed(run.seed)
                for enter in run.inside:
                    inside.enter_context(enter())
                generate(model, setup, run)

    def run(self, setup: Setup) -> Run:
        """What a run begins with."""
        ids = [list(row) for row in setup.prompts] or [_encoded(self.folder(setup.model), setup.prompt)[:]]
        ids = ids * setup.copies + ([list(setup.beside)] if setup.beside else [])
        settings = dict(setup.settings)
        if setup.stop_at is not None:
            settings["eos_token_id"] = [318, self.stop_token(setup)]
        return Run(ids, settings, self.seed, setup.tokens)

    def encode(self, text: str, **options: Any) -> list[int]:
        """Token ids of SmolLM2's tokenizer."""
        return _encoded(self.smollm2, text, **options)[:]

    def stop_token(self, setup: Setup) -> int:
        """The token that is to stop a run with `stop_at`: read off the run without stop ids and minimum length."""
        model = _loaded(self.folder(setup.model), setup.dtype)
        settings = {name: value for name, value in setup.settings.items() if name != "min_new_tokens"}
        prompt = list(setup.prompts[0])
        torch.manual_seed(self.seed)
        with torch.no_grad():
            given = {"max_new_tokens": setup.tokens, "pad_token_id": 0, "eos_token_id": None, **settings}
            tokens = model.generate(input_ids=torch.tensor([prompt]), **given)[0, len(prompt) :].tolist()
        first = setup.stop_at or 0
        return int(next(tokens[step] for step in range(first, len(tokens)) if tokens[step] not in tokens[:step]))


def generate(model: Any, setup: Setup, run: Run) -> None:
    """The run itself, on a generator that is seeded already."""
    ids = torch.tensor(_padded(run.ids))
    with torch.no_grad():
        if setup.model in ENCODERS:
            model(input_ids=ids)
            return
        given = {"max_new_tokens": run.tokens, "pad_token_id": 0, **run.settings}
        mask = torch.tensor([[0] * (ids.shape[1] - len(row)) + [1] * len(row) for row in run.ids])
        model.generate(input_ids=ids, attention_mask=mask, **given)


def _padded(rows: list[list[int]]) -> list[list[int]]:
    """Padding on the left, as batches are generated."""
    longest = max(map(len, rows))
    return [[0] * (longest - len(row)) + row for row in rows]


@cache
def _loaded(folder: Path, dtype: str) -> Any:
    torch.set_num_threads(1)
    return models.load(folder, dtype)


@cache
def _encoded(folder: Path, text: str, **options: Any) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(folder)(text, **options).input_ids)
