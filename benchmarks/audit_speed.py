"""The audit of a long trace against the float64 forward pass over the same positions, side by side in one run.

    python benchmarks/audit_speed.py --model .cache/smollm2-135m --native hooks/rust/target/release/tracekit-native

Both load the checkpoint anew; the forward pass is transformers', in float64, once over all positions.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import tracekit
from tracekit.auditing.audit import audit
from tracekit.checkpoints.checkpoint import Checkpoint

PROMPT = "The quick brown fox jumps over the lazy dog. Once upon a time"


def record(options: argparse.Namespace, archive: Path) -> None:
    words = ["--model", options.model, "--prompt", PROMPT, "--max-new-tokens", str(options.steps), "--seed", "0"]
    tracekit = [sys.executable, "-m", "tracekit_cli.main", "record", "-o", str(archive), "--", options.native]
    subprocess.run([*tracekit, *words], check=True, capture_output=True)


def forward_seconds(model: str, ids: list[int]) -> float:
    """Seconds to load the model in float64 and run it once over all positions."""
    import torch
    from transformers import AutoModelForCausalLM

    begun = time.perf_counter()
    with torch.no_grad():
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)(torch.tensor([ids]))
    return time.perf_counter() - begun


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
            ratios = []
            for _ in range(options.rounds):
                begun = time.perf_counter()
                found = audit(trace, Checkpoint(options.model))
                audited = time.perf_counter() - begun
                forward = forward_seconds(options.model, ids)
                ratios.append(audited / forward)
                said = f"audit {audited:.2f} s, float64 forward pass {forward:.2f} s: {ratios[-1]:.2f}x"
                print(f"  {len(ids)} positions, {len(found.clean)} sites: {said}", file=sys.stderr, flush=True)
    print(f"audit / float64 forward pass: {np.median(ratios):.2f} (median of {options.rounds}; aim 2)")


if __name__ == "__main__":
    main()
