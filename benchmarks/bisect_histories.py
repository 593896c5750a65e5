"""Planted histories: ten builds of the native engine, a fault from one of them on, and harmless changes among them.

    python -m benchmarks.bisect_histories --native hooks/rust/target/release/tracekit-native [--histories 20]

Each is a git repository whose builds choose the engine's options: rewrites that change rounding alone come and go,
some builds do not compile, some do not run. A bisection must name the build that brought the fault, or say that it
cannot be told and have it among the builds that are left.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tracekit.bisect.revisions import Revisions
from tracekit.bisect.search import Bisected, bisect

BUILDS = 10
FAULTS = (
    "rope-theta:500000",
    "norm-eps:1e-3",
    "gain:model.layers.1.mlp.up_proj:1.01",
    "attention-scale:1.01",
    "stale-cache-row",
    "cache-hole",
    "mask-future",
    "gelu-tanh",
    "residual-f16",
    "top-p-drops-crossing",
    "extra-draw:2",
    "weights-bf16:model.layers.0.mlp.down_proj",
)
VARIANTS = ("fused-qkv", "online-softmax", "kv-repeat", "norm-order", "f64-rope-table", "scale-queries")
"""Rewrites that change rounding alone."""
SAMPLED = ("--temperature", "0.8", "--top-k", "50", "--top-p", "0.9", "--seed", "5")


@dataclass(frozen=True)
class Planted:
    """A history: options of each build, the first build with the fault, builds that cannot be made or run."""

    options: tuple[str, ...]
    fault: str
    first: int
    broken: frozenset[int]


def planted(seed: int) -> Planted:
    """History number `seed`."""
    rng = random.Random(seed)
    fault, first = FAULTS[seed % len(FAULTS)], rng.randrange(1, BUILDS)
    variant = ""
    options = []
    for build in range(BUILDS):
        if rng.random() < 0.4:
            variant = rng.choice(("", *(f"--variant {name}" for name in VARIANTS)))
        options.append(" ".join([variant, f"--fault {fault}" if build >= first else ""]).strip())
    among = [build for build in range(1, BUILDS - 1)]
    broken = frozenset(rng.sample(among, rng.choice([0, 0, 1, 2, 3])))
    return Planted(tuple(options), fault, first, broken)


def repository(history: Planted, folder: Path, native: Path, model: Path) -> Path:
    """The git repository of a history. `make.sh` builds, `run.sh` runs the engine with the build's options."""

    def git(*words: str) -> None:
        said = ("-c", "user.name=history", "-c", "user.email=history@localhost", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(folder), *said, *words], check=True, capture_output=True)

    folder.mkdir(parents=True)
    git("init", "-q")
    program = f"{native.resolve()} --model {model.resolve()} --prompt-ids 72,101,50,290,280,12,270 --max-new-tokens 8"
    for build, options in enumerate(history.options):
        text = f"exec {program} {' '.join(SAMPLED)} {options}\n"
        broken = build in history.broken
        (folder / "make.sh").write_text(f"# build {build}\nexit {int(broken and build % 2 == 0)}\n")
        (folder / "run.sh").write_text("exit 3\n" if broken and build % 2 else text)
        git("add", "."), git("commit", "-q", "-m", f"build {build}"), git("tag", f"b{build}")
    return folder


def found(repo: Path, scratch: Path) -> Bisected:
    """What a bisection says of a history."""
    history = Revisions(repo, "b0", f"b{BUILDS - 1}", ("sh", "run.sh"), "sh make.sh")
    return bisect(history, scratch, timeout=120)


def judged(history: Planted, answer: Bisected) -> str:
    """`right`, `cannot tell` or `wrong`."""
    if answer.certain:
        return "right" if answer.bad == history.first else "wrong"
    return "cannot tell" if answer.good < history.first <= answer.bad else "wrong"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--native", type=Path, default=Path("hooks/rust/target/release/tracekit-native"))
    parser.add_argument("--model", type=Path, help="a checkpoint; without one a tiny model is made")
    parser.add_argument("--histories", type=int, default=20)
    options = parser.parse_args()
    counts = dict.fromkeys(("right", "cannot tell", "wrong"), 0)
    tried = 0
    with tempfile.TemporaryDirectory(prefix="tracekit-histories-") as name:
        model = options.model or _tiny(Path(name) / "model")
        for seed in range(options.histories):
            history = planted(seed)
            repo = repository(history, Path(name) / str(seed) / "repo", options.native, model)
            answer = found(repo, Path(name) / str(seed) / "builds")
            said = judged(history, answer)
            counts[said] += 1
            tried += len(answer.steps)
            builds = f"{answer.good + 1} to {answer.bad}" if not answer.certain else str(answer.bad)
            print(f"{seed:3d}  {said:12} {history.fault}: from {history.first} on, answer {builds}", flush=True)
    print(f"{', '.join(f'{count} {word}' for word, count in counts.items())}; {tried} builds tried")
    return 1 if counts["wrong"] else 0


def _tiny(folder: Path) -> Path:
    subprocess.run([sys.executable, "scripts/make_tiny_model.py", "llama", str(folder), "--seed", "3"], check=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
