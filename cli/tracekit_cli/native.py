"""Running a native program that records itself: where its log goes is told through its environment."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

import tracekit
from tracekit.archive import write_archive
from tracekit.log import LogWriter, TensorLike
from tracekit.log_trace import LogTrace
from tracekit.trace import Sequence, Trace, TraceError


@dataclass(frozen=True)
class NativeOptions:
    """What a native program is asked to record; see `tracekit record --help`."""

    seed: int | None = None
    level: str = "all"
    sites: str | None = None
    logits: str = "full"
    follow: str | None = None
    follow_draws: bool = False
    follow_inputs: bool = False
    keep_log: bool = False


def run_native(words: list[str], out: Path, options: NativeOptions) -> int:
    """Run `words` with recording on, make the archive `out`, and return the exit code to pass on.

    Raises TraceError where the program cannot be started, records nothing, or the archive cannot be written.
    """
    log = out if out.suffix == ".tklog" else out.with_suffix(".tklog")
    _prepare(log)
    with tempfile.TemporaryDirectory(prefix="tracekit-") as scratch:
        environment = _environment(log, options, Path(scratch))
        code = _run(words, environment)
    if not log.exists():
        if code == 0:
            raise TraceError(f"{words[0]}: ran, but recorded nothing; it has to be built with tracekit's crate")
        return code
    with LogTrace(log) as trace:
        steps = sum(sequence.step_count for sequence in trace.sequences)
        count = len(trace.sequences)
        if log != out:
            write_archive(trace, out)
    if log != out and not options.keep_log:
        log.unlink()
    click.echo(f"tracekit: wrote {out}: {_counted(count, 'sequence')}, {_counted(steps, 'step')}", err=True)
    return code


def _prepare(log: Path) -> None:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        # A log of an earlier run must not be taken for this one's.
        log.unlink(missing_ok=True)
    except OSError as error:
        raise TraceError(f"{log}: cannot be written: {error.strerror}") from None


def _environment(log: Path, options: NativeOptions, scratch: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_FOLLOW")}
    environment |= {"TRACEKIT_LOG": str(log.resolve()), "TRACEKIT_LEVEL": options.level}
    environment["TRACEKIT_LOGITS"] = options.logits
    if options.sites is not None:
        environment["TRACEKIT_SITES"] = options.sites
    if options.seed is not None:
        environment["TRACEKIT_SEED"] = str(options.seed)
    if options.follow is not None:
        followed = scratch / "follow.tklog"
        with tracekit.open(options.follow) as trace:
            write_tokens(trace, followed)
        environment["TRACEKIT_FOLLOW"] = str(followed)
        environment["TRACEKIT_FOLLOWED"] = options.follow
        environment["TRACEKIT_FOLLOW_DRAWS"] = "1" if options.follow_draws else "0"
        environment["TRACEKIT_FOLLOW_INPUTS"] = "1" if options.follow_inputs else "0"
    return environment


def _run(words: list[str], environment: dict[str, str]) -> int:
    try:
        program = subprocess.Popen(words, env=environment)
    except OSError as error:
        raise TraceError(f"{words[0]}: cannot be started: {error.strerror}") from None
    while True:
        try:
            code = program.wait()
            break
        except KeyboardInterrupt:
            # The terminal sent it to the program too; it decides when to end.
            continue
    # As a shell says it, where a signal ended the program.
    return code if code >= 0 else 128 - code


def write_tokens(trace: Trace, path: Path) -> None:
    """Write what a native program follows as a log: prompts with all their inputs, tokens and draws, no sites."""
    writer = LogWriter(path)
    writer.open(trace.implementation, **{name: value for name, value in trace.config.items() if name != "recorder"})
    for sequence in trace.sequences:
        _write_sequence(writer, sequence)
    writer.close()


def _write_sequence(writer: LogWriter, sequence: Sequence) -> None:
    inputs: dict[str, TensorLike] = {f"prompt/{name}": value for name, value in sequence.inputs.items()}
    if sequence.rng_state is not None:
        inputs["rng/state"] = np.frombuffer(sequence.rng_state, dtype=np.uint8)
    writer.sequence(sequence.index, inputs, sampling=sequence.sampling, seed=sequence.seed)
    for index in range(sequence.step_count):
        step = sequence.step(index)
        draws = [
            {
                "op": draw.op,
                "generator": draw.generator,
                "seed": draw.seed,
                "offset": draw.offset,
                "words": draw.words,
                "result": draw.result,
            }
            for draw in step.draws
        ]
        writer.step(sequence.index, step.index, step.position, step.token, {}, text=step.text, draws=draws or None)
    writer.end_sequence(sequence.index, sequence.step_count, sequence.end_reason or "left")


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
