"""The audits of a long trace against the float64 forward pass over the same positions, side by side in one run.

    python benchmarks/audit_speed.py --model .cache/smollm2-135m --native hooks/rust/target/release/tracekit-native

By recipes: both load the checkpoint anew; the forward pass is transformers', in float64, once over all positions.
By the reference program, which is loaded already: the replay alone, and the whole audit with its drawn roundings.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tracekit_torch.reference_program.audit import audit_by
from tracekit_torch.reference_program.loading import forward_of, load_reference
from tracekit_torch.reference_program.replay import Replay

import tracekit
from tracekit.auditing.audit import audit
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.trace import Trace

PROMPT = "The quick brown fox jumps over the lazy dog. Once upon a time"


def record(options: argparse.Namespace, archive: Path) -> None:
    words = ["--model", options.model, "--prompt", PROMPT, "--max-new-tokens", str(options.steps), "--seed", "0"]
    tracekit = [sys.executable, "-m", "tracekit_cli.main", "record", "-o", str(archive), "--", options.native]
    subprocess.run([*tracekit, *words], check=True, capture_output=True)


def forward_seconds(model: str, ids: list[int]) -> float:
    """Seconds to load the model in float64 and run it once over all positions."""
    from transformers import AutoModelForCausalLM

    begun = time.perf_counter()
    with torch.no_grad():
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)(torch.tensor([ids]))
    return time.perf_counter() - begun


@cache
def reference(model: str) -> nn.Module:
    return load_reference(model, "float32")


def reference_seconds(folder: str, trace: Trace) -> tuple[float, float, float]:
    """Seconds of the float64 forward pass, of the replay, and of the whole audit by the reference program."""
    model, sequence = reference(folder), trace.sequences[0]
    forward = forward_of(model, trace, sequence)
    replay = Replay(model, sequence, forward)
    begun = time.perf_counter()
    with torch.no_grad():
        forward()
    ran = time.perf_counter()
    replay.run(met=lambda site: None)
    replayed = time.perf_counter()
    audit_by(model, trace, Checkpoint(folder))
    return ran - begun, replayed - ran, time.perf_counter() - replayed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--native", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "run.h5"
        record(options, archive)
        with tracekit.open(archive) as trace:
            sequence = trace.sequences[0]
            assert sequence.prompt_ids is not None
            ids = [*sequence.prompt_ids.tolist(), *sequence.tokens.tolist()][: sequence.positions]
            ratios: dict[str, list[float]] = {"audit": [], "replay": [], "audit by the reference program": []}
            for _ in range(options.rounds):
                begun = time.perf_counter()
                found = audit(trace, Checkpoint(options.model))
                audited = time.perf_counter() - begun
                forward = forward_seconds(options.model, ids)
                ratios["audit"].append(audited / forward)
                said = f"audit {audited:.2f} s, float64 forward pass {forward:.2f} s: {ratios['audit'][-1]:.2f}x"
                print(f"  {len(ids)} positions, {len(found.clean)} sites: {said}", file=sys.stderr, flush=True)
            for _ in range(options.rounds):
                plain, replayed, audited = reference_seconds(options.model, trace)
                ratios["replay"].append(replayed / plain)
                ratios["audit by the reference program"].append(audited / plain)
                said = f"forward pass {plain:.2f} s, replay {replayed:.2f} s, audit {audited:.2f} s"
                print(f"  reference program: {said}", file=sys.stderr, flush=True)
    aims = {"audit": "aim 2", "replay": "aim 3", "audit by the reference program": "no aim"}
    for name, found_ratios in ratios.items():
        median = np.median(found_ratios)
        print(f"{name} / float64 forward pass: {median:.2f} (median of {options.rounds}; {aims[name]})")


if __name__ == "__main__":
    main()
