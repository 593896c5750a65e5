"""SIGKILL at random moments of a recording, of its close, and of `tracekit import`: no complete step is lost, and what
has its final name is whole.

    python -m tests.attacks.kills --kills 1000 --seed 0 --native hooks/rust/target/release/tracekit-native

A program runs once to its end. Then it is killed when its log has reached a length drawn at random, or a random while
after the log was complete. What was in the log just before must be in what is left, bit for bit as in the whole run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tracekit
from tests import forked
from tests.small_run import write_run
from tracekit.trace import Trace, TraceError

PROGRAM = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
config = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=40,
                     initializer_range=0.3, bos_token_id=1, eos_token_id=None, max_position_embeddings=64)
model = LlamaForCausalLM(config).eval()
for first in (3, 9):
    model.generate(torch.arange(first, first + 4)[None], max_new_tokens=12, do_sample=True, top_k=20)
"""
AFTER_CLOSE = 0.5
"""Seconds after the log is complete in which a kill may fall: the archive is made then."""


@dataclass(frozen=True)
class Subject:
    """Something to kill. `begin` starts it in a folder, for `run.tklog` or `run.h5`, and gives its process."""

    name: str
    begin: Callable[[Path], int]


def python(folder: Path) -> int:
    """A recorded PyTorch program."""
    (folder / "program.py").write_text(PROGRAM)
    return _fork(folder, ["record", "-o", "run.h5", "program.py"])


def importing(folder: Path) -> int:
    """`tracekit import` of a log that is complete."""
    write_run(folder / "run.tklog", steps=40)
    return _fork(folder, ["import", "run.tklog"])


def native(engine: Path, model: Path) -> Callable[[Path], int]:
    """The native engine, recorded."""

    def begin(folder: Path) -> int:
        words = [str(engine), "--model", str(model), "--prompt-ids", "1,2,3", "--max-new-tokens", "40", "--seed", "7"]
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
        environment = os.environ | {"TRACEKIT_LOG": str(folder / "run.tklog")}
        process = os.posix_spawn(words[0], [*words, "--threads", "1"], environment, file_actions=actions)
        os.close(null)
        return process

    return begin


def _fork(folder: Path, words: list[str]) -> int:
    child = os.fork()
    if child == 0:
        out = str(folder / ".out")
        forked.become({"words": words, "cwd": str(folder), "out": out, "err": out, "limits": {}})
    return child


Content = list[tuple[list[int], dict[str, bytes]]]
"""Of each sequence: its tokens, and what it holds of each site."""


def content(trace: Trace) -> Content:
    return [
        (
            sequence.tokens.tolist(),
            {name: sequence.read(name, 0, data.rows).tobytes() for name, data in sequence.sites.items()},
        )
        for sequence in trace.sequences
    ]


def left(folder: Path) -> Content:
    """What a killed run left. Raises AssertionError where it is not whole."""
    archive, log = folder / "run.h5", folder / "run.tklog"
    found: Content = []
    if archive.exists():
        with tracekit.open(archive) as trace:
            assert trace.status == "complete", trace.status_detail
            found = content(trace)
        if not log.exists():
            return found
    try:
        with tracekit.open(log) as trace:
            return content(trace)
    except TraceError:
        # Killed before the first frame was there.
        return found


def steps(path: Path) -> int:
    """Complete steps in a log as it is now."""
    try:
        with tracekit.open(path) as trace:
            return sum(sequence.step_count for sequence in trace.sequences)
    except TraceError:
        return 0


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def prefix(part: Content, whole: Content) -> bool:
    """Whether a run is the beginning of another, bit for bit."""
    return len(part) <= len(whole) and all(
        tokens == more[: len(tokens)] and all(sites.get(name, b"").startswith(data) for name, data in held.items())
        for (tokens, held), (more, sites) in zip(part, whole, strict=False)
    )


def whole(subject: Subject, folder: Path) -> tuple[Content, int]:
    """What an uninterrupted run holds, and the length of its log in bytes."""
    process = subject.begin(folder)
    length = 0
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        length = max(length, size(folder / "run.tklog"))
        time.sleep(0.0005)
    found = left(folder)
    assert found and all(tokens for tokens, _ in found), "the uninterrupted run left nothing"
    return found, max(length, size(folder / "run.tklog"))


def kill(subject: Subject, folder: Path, expected: Content, length: int, rng: random.Random) -> str:
    """Kill one run. Gives when it was: `running`, `closing`, or `over` where it had ended by itself."""
    log = folder / "run.tklog"
    closing = subject.name == "import" or rng.random() < 0.4
    until = length if closing else rng.randrange(length)
    process = subject.begin(folder)
    gone = False
    while size(log) < until and not gone:
        gone = os.waitpid(process, os.WNOHANG)[0] != 0
        time.sleep(0.0002)
    if closing and not gone:
        time.sleep(rng.uniform(0.0, AFTER_CLOSE))
    before = steps(log)
    if not gone:
        gone = os.waitpid(process, os.WNOHANG)[0] != 0
    if not gone:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    found = left(folder)
    assert prefix(found, expected), "what is left is not the beginning of the whole run"
    after = sum(len(tokens) for tokens, _ in found)
    assert after >= before, f"{before} steps were complete, {after} are left"
    return "over" if gone else "closing" if closing else "running"


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the block. No `TemporaryDirectory`, which a fork that ends would remove."""
    folder = Path(tempfile.mkdtemp(prefix="tracekit-kills-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run(subjects: list[Subject], kills: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Kill the subjects in turn. What happened how often, and the faults."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    faults: list[str] = []
    with scratch() as root:
        runs = []
        for subject in subjects:
            folder = root / subject.name
            folder.mkdir()
            runs.append((subject, *whole(subject, folder)))
        for number in range(kills):
            subject, expected, length = runs[number % len(runs)]
            folder = root / "killed"
            folder.mkdir()
            try:
                counts[f"{subject.name} {kill(subject, folder, expected, length, rng)}"] += 1
            except (AssertionError, TraceError) as error:
                faults.append(f"kill {number} of seed {seed}, {subject.name}: {error}")
                print(faults[-1], flush=True)
            shutil.rmtree(folder)
    return counts, faults


def main() -> int:
    """Exit code 0 where nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--native", type=Path, help="the native engine; without it only Python is killed")
    arguments = parser.parse_args()
    forked.load()
    subjects = [Subject("python", python), Subject("import", importing)]
    with scratch() as root:
        if arguments.native is not None:
            from tests.test_engine import tiny

            tiny.make("llama", root / "llama", tied=True)
            subjects.append(Subject("native", native(arguments.native.resolve(), root / "llama")))
        counts, faults = run(subjects, arguments.kills, arguments.seed)
    told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    print(
        f"{arguments.kills} kills, seed {arguments.seed}: {told}; {len(faults)} lost a step or left what is not whole"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
