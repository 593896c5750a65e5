"""Runs of the Rust engine, `tracekit-native`, which records itself and injects its own faults."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from benchmarks.fault_bench.setups import Setup

WORDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class Refused(Exception):
    """The engine has no such fault, or it means nothing in this run; its own words."""


def command(engine: Path, folder: Path, setup: Setup, prompt: list[int], seed: int) -> list[str]:
    """The engine's command line for a run."""
    words = [str(engine), "--model", str(folder), "--prompt-ids", ",".join(map(str, prompt))]
    words += ["--max-new-tokens", str(setup.tokens), "--dtype", WORDS[setup.dtype], "--threads", "1"]
    settings = setup.settings
    if not settings["do_sample"]:
        return [*words, "--greedy"]
    words += ["--seed", str(seed)]
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        if name in settings:
            words += [f"--{name.replace('_', '-')}", str(settings[name])]
    return words


def record(words: list[str], log: Path) -> None:
    """Run the engine with its log at `log`. Raises Refused where it does not succeed."""
    log.unlink(missing_ok=True)
    environment = os.environ | {"TRACEKIT_LOG": str(log)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}")
