"""A native program that records itself: what it is told, through its environment, and the trace that it follows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tracekit.formats.log import LogWriter, TensorLike
from tracekit.formats.opening import open_trace
from tracekit.programs.levels import LEVELS
from tracekit.trace import Draw, Json, Sequence, Trace, TraceError


@dataclass(frozen=True)
class NativeOptions:
    """What a native program is asked to record; see `tracekit record --help`. Raises TraceError for a level or a count
    that means nothing."""

    seed: int | None = None
    level: str = "all"
    sites: str | None = None
    logits: str = "full"
    follow: str | None = None
    follow_draws: bool = False
    follow_inputs: bool = False
    keep_log: bool = False

    def __post_init__(self) -> None:
        # The program would run and not be recorded: it does not end at a setting that means nothing.
        if self.level not in LEVELS:
            raise TraceError(f"--level {self.level}: give one of {', '.join(LEVELS)}")
        if self.logits != "full" and not (self.logits.isdecimal() and int(self.logits) > 0):
            raise TraceError(f"--logits {self.logits}: give `full` or a count of at least 1")


def environment(log: Path, options: NativeOptions, scratch: Path) -> dict[str, str]:
    """The environment of a program that is to write `log`. What it follows is laid down in the folder `scratch`.

    Raises TraceError where the trace to follow cannot be read.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_FOLLOW")}
    # The first process that records takes the log; another one of the same run must not begin it anew.
    variables |= {"TRACEKIT_LOG": str(log.resolve()), "TRACEKIT_LOG_IS_NEW": "1", "TRACEKIT_LEVEL": options.level}
    variables["TRACEKIT_LOGITS"] = options.logits
    if options.sites is not None:
        variables["TRACEKIT_SITES"] = options.sites
    if options.seed is not None:
        variables["TRACEKIT_SEED"] = str(options.seed)
    if options.follow is not None:
        followed = scratch / "follow.tklog"
        with open_trace(options.follow) as trace:
            write_tokens(trace, followed)
        variables["TRACEKIT_FOLLOW"] = str(followed)
        variables["TRACEKIT_FOLLOWED"] = options.follow
        variables["TRACEKIT_FOLLOW_DRAWS"] = "1" if options.follow_draws else "0"
        variables["TRACEKIT_FOLLOW_INPUTS"] = "1" if options.follow_inputs else "0"
    return variables


def write_tokens(trace: Trace, path: Path) -> None:
    """Write what a native program follows as a log: prompts with all their inputs, tokens and draws, no sites."""
    with LogWriter(path) as writer:
        writer.open(trace.implementation, **{name: value for name, value in trace.config.items() if name != "recorder"})
        for sequence in trace.sequences:
            _write_sequence(writer, sequence)


def _write_sequence(writer: LogWriter, sequence: Sequence) -> None:
    inputs: dict[str, TensorLike] = {f"prompt/{name}": value for name, value in sequence.inputs.items()}
    if sequence.rng_state is not None:
        inputs["rng/state"] = np.frombuffer(sequence.rng_state, dtype=np.uint8)
    writer.sequence(sequence.index, inputs, sampling=sequence.sampling, seed=sequence.seed)
    for index in range(sequence.step_count):
        step = sequence.step(index)
        draws = [draw_row(draw) for draw in step.draws]
        writer.step(sequence.index, step.index, step.position, step.token, {}, text=step.text, draws=draws or None)
    writer.end_sequence(sequence.index, sequence.step_count, sequence.end_reason or "left")


def draw_row(draw: Draw) -> Json:
    """A draw as a step's metadata has it (docs/format.md, kind `step`)."""
    return {name: getattr(draw, name) for name in ("op", "generator", "seed", "offset", "words", "result")}
