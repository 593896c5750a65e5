"""What recording costs: the same generation untraced, recorded, and under hooks that only clone, side by side.

    python benchmarks/recording.py --model .cache/smollm2-135m --native hooks/rust/target/release/tracekit-native

The runs alternate, so that a machine that slows down slows all of them; medians and their ratios are printed, of CPU
time, which is what counts on a machine that others use, and of wall time. A prefill: `--prompt-tokens 1000 --tokens 1`;
a batch: `--batch 8`; in 16 bits: `--dtype bfloat16`.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Run = Callable[[], tuple[float, float]]
"""Seconds of CPU and of wall time of one generation."""
PROMPT = "The history of Rome began when"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--native", required=True)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--prompt-tokens", type=int, help="of a prompt that repeats itself, in PyTorch")
    parser.add_argument("--batch", type=int, default=1, help="rows of the batch, in PyTorch")
    parser.add_argument("--dtype", default="float32", help="in PyTorch")
    parser.add_argument("--only", choices=("torch", "native"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "native":
            report("PyTorch", torch_runs(options, Path(folder)), options.rounds)
        if options.only != "torch":
            report("native", native_runs(options, Path(folder)), options.rounds)


def report(side: str, runs: dict[str, Run], rounds: int) -> None:
    """Alternate the runs and print each one's medians and their ratios to the first."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warm-up
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in seconds.items()
    }
    base = next(iter(medians.values()))
    for name, (cpu, wall) in medians.items():
        told = (
            f"{cpu * 1e3:8.1f} ms CPU ratio {cpu / base[0]:6.3f}  {wall * 1e3:8.1f} ms wall ratio {wall / base[1]:6.3f}"
        )
        print(f"{side:8} {name:34} {told}", flush=True)


@contextmanager
def cloning(model: Any) -> Iterator[None]:
    """Inside the block, every module's output is cloned and kept, and nothing is written: the least of a recorder."""
    import torch

    kept: list[Any] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, torch.Tensor):
            kept.append(value.detach().clone())

    handles = [module.register_forward_hook(keep) for _, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def torch_runs(options: argparse.Namespace, folder: Path) -> dict[str, Run]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import tracekit_torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    if options.prompt_tokens is not None:
        ids = ids.repeat(1, -(-options.prompt_tokens // ids.shape[1]))[:, : options.prompt_tokens]
    ids = ids.repeat(options.batch, 1)
    length = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}

    def generate() -> tuple[float, float]:
        torch.manual_seed(0)
        began = time.process_time(), time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=50, temperature=0.8, **length)
        return time.process_time() - began[0], time.perf_counter() - began[1]

    def recorded(level: str) -> Run:
        def run() -> tuple[float, float]:
            # A log, as it is written while the program runs; turning it into an archive comes after the run.
            with tracekit_torch.record(model, folder / f"{level}.tklog", level=level):
                return generate()

        return run

    def cloned() -> tuple[float, float]:
        with cloning(model):
            return generate()

    return {
        "untraced": generate,
        "recorded, level all": recorded("all"),
        "recorded, level layers": recorded("layers"),
        "recorded, level tokens": recorded("tokens"),
        "hooks that clone, nothing written": cloned,
    }


def native_runs(options: argparse.Namespace, folder: Path) -> dict[str, Run]:
    words = [options.native, "--model", options.model, "--prompt", PROMPT, "--max-new-tokens", str(options.tokens)]

    def run(environment: dict[str, str]) -> Run:
        def generate() -> tuple[float, float]:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            told = subprocess.run(
                [*words, "--seed", "0", "--temperature", "0.8"],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, **environment},
            ).stderr
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # loading the weights included
            # The engine times its own generation: loading the weights is the same with and without recording.
            match = re.search(r"prefill ([\d.]+) ms, then (\d+) tokens at ([\d.]+) ms", told)
            if match is None:
                raise SystemExit(f"the engine did not say how long it took: {told}")
            return cpu, (float(match[1]) + int(match[2]) * float(match[3])) / 1e3

        return generate

    log = str(folder / "native.tklog")
    return {
        "untraced": run({}),
        "recorded, level all": run({"TRACEKIT_LOG": log}),
        "recorded, level layers": run({"TRACEKIT_LOG": log, "TRACEKIT_LEVEL": "layers"}),
    }


if __name__ == "__main__":
    main()
