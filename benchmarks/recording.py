"""What recording costs: the same generation untraced, recorded, and under hooks that only clone, side by side.

    python benchmarks/recording.py --model .cache/smollm2-135m --native hooks/rust/target/release/tracekit-native

The runs alternate, so that a machine that slows down slows all of them; ratios of medians are printed.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "The history of Rome began when"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--native", required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report("PyTorch", torch_runs(options, Path(folder)), options.rounds)
        report("native", native_runs(options, Path(folder)), options.rounds)


def report(side: str, runs: dict[str, Callable[[], float]], rounds: int) -> None:
    """Alternate the runs and print each one's median and its ratio to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warm-up
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    base = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{side:8} {name:32} {median * 1e3:8.1f} ms   ratio {median / base:5.2f}", flush=True)


def torch_runs(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], float]]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import tracekit_torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(options.model)
    inputs: Any = AutoTokenizer.from_pretrained(options.model)(PROMPT, return_tensors="pt")

    def generate() -> float:
        torch.manual_seed(0)
        began = time.perf_counter()
        model.generate(**inputs, do_sample=True, max_new_tokens=options.tokens, top_k=50, temperature=0.8)
        return time.perf_counter() - began

    def recorded(level: str) -> Callable[[], float]:
        def run() -> float:
            # A log, as it is written while the program runs; turning it into an archive comes after the run.
            with tracekit_torch.record(model, folder / f"{level}.tklog", level=level):
                return generate()

        return run

    def cloned() -> float:
        kept: list[Any] = []

        def keep(_: Any, __: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, torch.Tensor):
                kept.append(value.detach().clone())

        handles = [module.register_forward_hook(keep) for _, module in model.named_modules()]
        seconds = generate()
        for handle in handles:
            handle.remove()
        return seconds

    return {
        "untraced": generate,
        "recorded, level all": recorded("all"),
        "recorded, level layers": recorded("layers"),
        "recorded, level tokens": recorded("tokens"),
        "hooks that clone, nothing written": cloned,
    }


def native_runs(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], float]]:
    words = [options.native, "--model", options.model, "--prompt", PROMPT, "--max-new-tokens", str(options.tokens)]

    def run(environment: dict[str, str]) -> Callable[[], float]:
        def generate() -> float:
            told = subprocess.run(
                [*words, "--seed", "0", "--temperature", "0.8"],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, **environment},
            ).stderr
            # The engine times its own generation: loading the weights is the same with and without recording.
            match = re.search(r"prefill ([\d.]+) ms, then (\d+) tokens at ([\d.]+) ms", told)
            if match is None:
                raise SystemExit(f"the engine did not say how long it took: {told}")
            return (float(match[1]) + int(match[2]) * float(match[3])) / 1e3

        return generate

    log = str(folder / "native.tklog")
    return {
        "untraced": run({}),
        "recorded, level all": run({"TRACEKIT_LOG": log}),
        "recorded, level layers": run({"TRACEKIT_LOG": log, "TRACEKIT_LEVEL": "layers"}),
    }


if __name__ == "__main__":
    main()
