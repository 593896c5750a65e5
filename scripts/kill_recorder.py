"""Kill a recorded program at random moments, and count how many complete steps its log lost.

    python scripts/kill_recorder.py                                  # a PyTorch program of a tiny model
    python scripts/kill_recorder.py -- tracekit-native --model ...   # a native program, the same settings each time

The program runs once to its end, which gives its tokens. Then it is killed with SIGKILL at moments spread evenly at
random over the time in which its log grows. Each log must open; its steps must be the first ones of the whole run, no
fewer than the program had reported on stdout (PyTorch), and every value of their forward calls must be there. A call
whose step is missing is the step in flight.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tracekit
from tracekit.trace import Sequence, Trace, TraceError

PROGRAM = '''
import torch
from transformers import LlamaConfig, LlamaForCausalLM

class Report:
    """Prints a line a token, after the step is over."""
    def put(self, tokens):
        print("token", flush=True)
    def end(self):
        pass

torch.manual_seed(0)
torch.set_num_threads(1)
config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=8, num_attention_heads=4, vocab_size=300,
                     initializer_range=0.3, bos_token_id=1, eos_token_id=None, max_position_embeddings=512)
model = LlamaForCausalLM(config).eval()
prompt = torch.arange(20, 40)[None]
model.generate(prompt, max_new_tokens=200, do_sample=True, top_k=50, streamer=Report())
'''


@dataclass(frozen=True)
class Outcome:
    """What one killed run left."""

    steps: int
    lost: int
    """Complete steps that the program made and the log does not have."""
    in_flight: int
    """Forward calls whose step was not over."""


def main() -> int:
    """Exit code 0 where no complete step was lost in any run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("native", nargs="*", help="a native program and its arguments, after `--`")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="tracekit-kill-") as folder:
        command, log = prepare(Path(folder), arguments.native)
        whole, seconds = run_whole(command, log)
        print(f"whole run: {[len(tokens) for tokens in whole]} steps, log grows for {seconds:.2f} s", flush=True)
        outcomes = [
            run_killed(command, log, whole, moments.uniform(0.0, seconds), number) for number in range(arguments.runs)
        ]
    lost = sum(outcome.lost for outcome in outcomes)
    steps = [outcome.steps for outcome in outcomes]
    in_flight = sum(outcome.in_flight for outcome in outcomes)
    print(
        f"{len(outcomes)} kills: {sum(steps)} complete steps recovered ({min(steps)} to {max(steps)} a run), "
        f"{lost} lost; {in_flight} runs were killed between a forward call and its token"
    )
    return 0 if lost == 0 else 1


def prepare(folder: Path, native: list[str]) -> tuple[list[str], Path]:
    """The command to run and the log that it writes."""
    log = folder / "run.tklog"
    if native:
        return native, log
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return [sys.executable, "-m", "tracekit_cli.main", "record", "-o", str(log), str(program)], log


def start(command: list[str], log: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start the program and wait until its log is there."""
    log.unlink(missing_ok=True)
    environment = os.environ | {"TRACEKIT_LOG": str(log), "HF_HUB_OFFLINE": "1"}
    with output.open("wb") as file:
        program = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.DEVNULL)
    while not (log.exists() and log.stat().st_size) and program.poll() is None:
        time.sleep(0.001)
    return program


def run_whole(command: list[str], log: Path) -> tuple[list[list[int]], float]:
    """Tokens of every sequence of the uninterrupted run, and for how many seconds its log grew."""
    program = start(command, log, log.with_suffix(".out"))
    began = time.time()
    if program.wait() != 0:
        raise SystemExit(f"kill_recorder: {' '.join(command)} failed with {program.returncode}")
    seconds = max(0.0, log.stat().st_mtime - began)
    with tracekit.open(log) as trace:
        return [[int(token) for token in sequence.tokens] for sequence in trace.sequences], seconds


def run_killed(command: list[str], log: Path, whole: list[list[int]], after: float, number: int) -> Outcome:
    """Kill a run `after` seconds of growing, and look at what is there."""
    output = log.with_suffix(".out")
    program = start(command, log, output)
    time.sleep(after)
    program.send_signal(signal.SIGKILL)
    program.wait()
    reported = output.read_bytes().count(b"token\n")
    # The streamer is handed the prompt first.
    outcome = look(log, whole, max(0, reported - 1))
    print(f"  kill {number}: after {after:.3f} s: {outcome}", flush=True)
    return outcome


def look(log: Path, whole: list[list[int]], reported: int) -> Outcome:
    """Compare a log that was cut off with the whole run. Raises TraceError where it is not that run's beginning."""
    try:
        trace = tracekit.open(log)
    except TraceError:
        if reported:
            raise
        return Outcome(0, 0, 0)  # killed while the first frame was written
    with trace:
        for sequence, tokens in zip(trace.sequences, whole, strict=False):
            steps = sequence.step_count
            if sequence.tokens.tolist() != tokens[:steps]:
                raise TraceError(f"{log}: sequence {sequence.index} holds other tokens than the whole run")
        in_flight = sum(check_values(trace, sequence) for sequence in trace.sequences)
        steps = sum(sequence.step_count for sequence in trace.sequences)
        return Outcome(steps, max(0, reported - steps), in_flight)


def check_values(trace: Trace, sequence: Sequence) -> int:
    """Whether a call without its step is there (0 or 1). Raises TraceError where a step lacks values of its call."""
    if not sequence.sites or sequence.prompt_ids is None:
        return 0
    needed = len(sequence.prompt_ids) + sequence.step_count - 1 if sequence.step_count else 0
    for name, data in sequence.sites.items():
        if data.rows < needed:
            raise TraceError(f"{trace.path}: site {name} holds {data.rows} positions, its steps need {needed}")
    return int(sequence.positions > needed)


if __name__ == "__main__":
    sys.exit(main())
