"""What recording every module costs, beside other recorders of the registry, in one interleaved run of calls.

    pip install nnsight torchlens
    python -m benchmarks.peers --model .cache/smollm2-135m

tracekit copies and writes to disk, with inputs that no output holds, the logits and the digests of all weights; the
others keep outputs in memory, nnsight without copying them, and torchlens every operation, not every module alone. A
recorder that is not installed is left out. CPU seconds and their ratios to the calls by themselves, medians of all
rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import tracekit_torch
from transformers import AutoModelForCausalLM

from benchmarks.recording import cloning

Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--calls", type=int, default=4, help="of one recording, 1 with torchlens")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    ids = torch.arange(1, 1 + options.prompt_tokens)[None]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        recorders = runs(model, ids, options.calls, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in recorders}
        for run in recorders.values():
            run()  # warm-up
        for _ in range(options.rounds):
            for name, run in recorders.items():
                began = time.process_time()
                run()
                seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    base = next(iter(medians.values()))
    for name, cpu in medians.items():
        print(f"{name:34} {cpu * 1e3:9.1f} ms CPU  ratio {cpu / base:7.3f}")


def runs(model: Any, ids: torch.Tensor, calls: int, folder: Path) -> dict[str, Run]:
    """The calls by themselves first, then with each recorder that is installed."""
    order = modules_as_they_end(model, ids)

    def called() -> None:
        for _ in range(calls):
            model(ids)

    def cloned() -> None:
        with cloning(model):
            called()

    def recorded() -> None:
        with tracekit_torch.record(model, folder / "peer.tklog"):
            called()

    return {
        "the calls by themselves": called,
        "hooks that clone, nothing written": cloned,
        "tracekit, to a log": recorded,
        **others(model, ids, calls, order),
    }


def others(model: Any, ids: torch.Tensor, calls: int, order: list[str]) -> dict[str, Run]:
    """The calls under the other recorders that are installed."""
    found: dict[str, Run] = {}
    if find_spec("nnsight"):
        from nnsight import NNsight

        watched = NNsight(model)

        def traced() -> None:
            for _ in range(calls):
                with watched.trace(ids):
                    for name in order:
                        watched.get(name).output.save()

        found["nnsight, in memory"] = traced
    if find_spec("torchlens"):
        import torchlens

        found["torchlens, one call, in memory"] = lambda: torchlens.trace(model, ids)
    return found


def modules_as_they_end(model: Any, ids: torch.Tensor) -> list[str]:
    """Names of the modules that run below the root, in the order in which their calls end: nnsight asks for it."""
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if name
    ]
    model(ids)
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(order))


if __name__ == "__main__":
    main()
