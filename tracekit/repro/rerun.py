"""Running the candidate again on a cut input: what it follows, what it records, and for how long it may."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tracekit.formats.log import LogWriter, TensorLike
from tracekit.formats.opening import open_trace
from tracekit.programs.child import end, start
from tracekit.programs.native import draw_row
from tracekit.repro.failing_run import Command, Fed, Input
from tracekit.trace import Trace, TraceError

LOG, FOLLOW = "{log}", "{follow}"
"""Stand for files in a kept command: where the program writes, and what it follows."""
FOLLOW_FILE = "follow.tklog"


@dataclass(frozen=True)
class Recording:
    """What a candidate is asked to record."""

    level: str
    sites: str | None = None

    def environment(self, fed: Input) -> dict[str, str]:
        """What a native program is told, but for its log: `FOLLOW` stands for the file that it follows."""
        out = {"TRACEKIT_LEVEL": self.level, "TRACEKIT_LOGITS": "full"}
        if self.sites is not None:
            out["TRACEKIT_SITES"] = self.sites
        if fed.tokens:
            out["TRACEKIT_FOLLOW"] = FOLLOW
            out["TRACEKIT_FOLLOW_DRAWS"] = "1" if fed.draws else "0"
            out["TRACEKIT_FOLLOW_INPUTS"] = "1" if fed.prompts else "0"
        return out

    def words(self, command: Command, fed: Input) -> list[str]:
        """What goes before a Python program's own words; nothing before a native one's."""
        if command.native:
            return []
        words = [*command.recorder, "record", "-o", LOG, "--level", self.level]
        seed = command.environment.get("TRACEKIT_SEED")
        words += [] if seed is None else ["--seed", seed]
        words += [] if self.sites is None else ["--sites", self.sites]
        if fed.tokens:
            words += ["--follow", FOLLOW, *(["--follow-draws"] if fed.draws else [])]
        return words


@dataclass
class Rerun:
    """Runs a candidate again, `most` times at most and each run for at most `limit` seconds."""

    command: Command
    scratch: Path
    most: int
    limit: float
    runs: int = field(default=0)

    @property
    def spent(self) -> bool:
        """Whether there is no run left."""
        return self.runs >= self.most

    def run(self, fed: Input, recording: Recording) -> Trace | None:
        """The trace of a run; None where it recorded none, or ran out of time."""
        if self.spent:
            return None
        self.runs += 1
        log, follow = self.scratch / f"{self.runs}.tklog", self.scratch / FOLLOW_FILE
        write_followed(fed, follow)
        variables = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_")}
        variables |= dict(self.command.environment)
        if self.command.native:
            variables |= recording.environment(fed) | {"TRACEKIT_LOG": str(log)}
        words = [*recording.words(self.command, fed), *self.command.words]
        places = {LOG: str(log), FOLLOW: str(follow)}
        variables = {name: places.get(value, value) for name, value in variables.items()}
        if not _ran([places.get(word, word) for word in words], self.command.folder, variables, self.limit):
            return None
        try:
            return open_trace(log)
        except TraceError:
            return None


def _ran(words: list[str], folder: str, variables: Mapping[str, str], limit: float) -> bool:
    """Whether a program came to its end in time; how it ended is for its log to say."""
    try:
        process = start(words, folder, variables, subprocess.DEVNULL)
    except OSError:
        return False
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            end(process)
    return True


def write_followed(fed: Input, path: Path) -> None:
    """The log that a candidate follows: prompts, tokens and draws."""
    writer = LogWriter(path)
    writer.open("reference")
    for index, sequence in enumerate((*fed.before, fed.fed)):
        inputs: dict[str, TensorLike] = {f"prompt/{name}": part for name, part in sequence.parts.items()}
        writer.sequence(index, inputs, sampling=sequence.sampling, seed=sequence.seed)
        _write_steps(writer, index, sequence)
    writer.close()


def _write_steps(writer: LogWriter, index: int, sequence: Fed) -> None:
    for step, token in enumerate(sequence.tokens.tolist()):
        draws = [draw_row(draw) for draw in sequence.draws[step]] if step < len(sequence.draws) else []
        writer.step(index, step, step, token, {}, draws=draws or None)
    writer.end_sequence(index, len(sequence.tokens), "left")
