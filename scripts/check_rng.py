"""torch's CPU random numbers against numpy (`tracekit.torch_rng.generator`) and Rust (`TorchRng`), bit for bit.

    cargo build --release -p tracekit --example rng_stream   (in hooks/rust)
    python scripts/check_rng.py [--seeds 1000] [--sizes 1 10 25 200 6761 49152 151936]

Prints the mismatches of each op; exit code 1 if there is one. Normals in float64 are compared to the last bit but one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from rich.progress import track
from tabulate import tabulate

from tracekit.torch_rng.generator import TorchGenerator

SIZES = [1, 10, 25, 200, 6761, 49152, 151936]
STREAM = Path(__file__).resolve().parent.parent / "hooks/rust/target/release/examples/rng_stream"
NUMPY_ONLY = ("normal_f64",)
RUST_ONLY = ("rand_f16", "rand_bf16")
"""One word an element."""


def probabilities(size: int) -> np.ndarray:
    """Made alike in every language: thousandths, in a scattered order."""
    return ((np.arange(size, dtype=np.uint64) * 2_654_435_761 % 1000 + 1).astype(np.float32) / np.float32(1000)).copy()


def torch_ops(size: int, generator: torch.Generator) -> dict[str, Any]:
    """op -> how torch draws it."""
    g: dict[str, Any] = {"generator": generator}
    p = torch.from_numpy(probabilities(size))
    ops = {
        "rand_f32": lambda: torch.empty(size).uniform_(**g),
        "rand_f64": lambda: torch.rand(size, dtype=torch.float64, **g),
        "exponential_f32": lambda: torch.empty(size).exponential_(1.0, **g),
        "bernoulli": lambda: torch.empty(size, dtype=torch.uint8).bernoulli_(0.3, **g),
        "bernoulli_each": lambda: torch.bernoulli(p, **g).to(torch.uint8),
        "randint_1000": lambda: torch.randint(1000, (size,), **g),
        "randint_2_40": lambda: torch.randint(2**40, (size,), **g),
        "randperm": lambda: torch.randperm(size, **g),
        "multinomial": lambda: torch.multinomial(p, 1, **g),
        "randn_f32": lambda: torch.randn(size, **g),
        "uniform_f32": lambda: torch.empty(size).uniform_(-1.5, 2.7, **g),
        "uniform_far": lambda: torch.empty(size).uniform_(1000, 1001, **g),
        "rand_f16": lambda: torch.rand(size, dtype=torch.float16, **g).float(),
        "rand_bf16": lambda: torch.rand(size, dtype=torch.bfloat16, **g).view(torch.int16),
    }
    if size > 4:
        ops["multinomial_4"] = lambda: torch.multinomial(p, 4, **g)
        ops["multinomial_4_replacement"] = lambda: torch.multinomial(p, 4, replacement=True, **g)
    if size >= 16:
        ops["normal_f64"] = lambda: torch.randn(size, dtype=torch.float64, **g)
    return ops


def numpy_op(op: str, size: int, ours: TorchGenerator) -> np.ndarray:
    p = probabilities(size)
    ops = {
        "rand_f32": lambda: ours.rand(size),
        "rand_f64": lambda: ours.rand(size, "float64"),
        "exponential_f32": lambda: ours.exponential(size).astype(np.float32),
        "bernoulli": lambda: ours.bernoulli(size, 0.3).astype(np.uint8),
        "bernoulli_each": lambda: ours.bernoulli_each(p).astype(np.uint8),
        "randint_1000": lambda: ours.randint(size, 1000),
        "randint_2_40": lambda: ours.randint(size, 2**40),
        "randperm": lambda: ours.randperm(size),
        "multinomial": lambda: ours.multinomial(p),
        "randn_f32": lambda: ours.normal(size),
        "uniform_f32": lambda: ours.uniform(size, -1.5, 2.7),
        "uniform_far": lambda: ours.uniform(size, 1000, 1001),
        "multinomial_4": lambda: ours.multinomial(p, 4),
        "multinomial_4_replacement": lambda: ours.multinomial(p, 4, replacement=True),
        "normal_f64": lambda: ours.normal_double(size),
    }
    return ops[op]()


class Rust:
    """The Rust side, one line a draw."""

    def __init__(self) -> None:
        if not STREAM.exists():
            sys.exit(f"{STREAM} is missing; build it: cargo build --release -p tracekit --example rng_stream")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([STREAM], text=True, **pipes)

    def draw(self, op: str, seed: int, size: int) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{op} {seed} {size}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def agrees(op: str, want: np.ndarray, got: np.ndarray) -> bool:
    if op == "normal_f64":
        # log, sin and cos of float64 are the platform's: numpy's may round the last bit otherwise than torch's.
        return bool(np.all(np.abs(want - got) <= 4 * np.spacing(np.abs(want)) + 1e-16))
    return want.dtype == got.dtype and want.tobytes() == got.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    rust = Rust()
    runs: dict[str, list[int]] = {}
    # Seeds spread over all 64 bits, the first few small.
    seeds = [seed if seed < 10 else seed * 0x9E3779B97F4A7C15 % 2**63 for seed in range(options.seeds)]
    for seed in track(seeds, description="seeds"):
        for size in options.sizes:
            check(runs, rust, seed, size)
    rows = [[op, *counts] for op, counts in runs.items()]
    print(tabulate(rows, headers=["op", "draws", "numpy differs", "Rust draws", "Rust differs"]))
    wrong = sum(row[2] + row[4] for row in rows)
    print(f"torch {torch.__version__}: {len(seeds)} seeds x sizes {options.sizes}: {wrong} mismatches")
    sys.exit(bool(wrong))


def check(runs: dict[str, list[int]], rust: Rust, seed: int, size: int) -> None:
    generator = torch.Generator()
    for op, draw in torch_ops(size, generator).items():
        generator.manual_seed(seed)
        want = draw().numpy()
        ours = TorchGenerator(seed)
        counts = runs.setdefault(op, [0, 0, 0, 0])
        if op in RUST_ONLY:
            ours.words(size)
        else:
            counts[0] += 1
            counts[1] += not agrees(op, want, numpy_op(op, size, ours))
        counts[1] += ours.words(1)[0] != following_word(generator)
        if op not in NUMPY_ONLY:
            counts[2] += 1
            told = f"{xxhash.xxh3_64_hexdigest(want.tobytes())} {ours.offset - 1 if ours.offset else 0}"
            counts[3] += rust.draw(op, seed, size) != told


def following_word(generator: torch.Generator) -> int:
    """The word that torch draws next: the states have gone equally far where it is the same."""
    return int(TorchGenerator.resume(generator.get_state().numpy().tobytes()).words(1)[0])


if __name__ == "__main__":
    main()
