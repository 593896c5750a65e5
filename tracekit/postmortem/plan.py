"""What a postmortem is to do: two commands, the seeds, how much is recorded, and what counts as a failure."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from tracekit.align.pair import Side
from tracekit.programs.python import interpreter_and_program, is_python
from tracekit.trace import Json, TraceError

SEED = "{seed}"
LEVELS = ("logits", "layers", "all")
"""Levels at which a failing seed may be recorded again."""
SPARSE = "tokens"
"""Level at which every seed is recorded: tokens, survivors, draws."""
MOST_SEEDS = 1_000_000
HASHED_BYTES = 1 << 30
"""Bytes of a program that tell it from another build of it."""


@dataclass(frozen=True)
class Plan:
    """All of it can be pickled: a worker on another machine gets it whole."""

    reference: str
    candidate: str
    folder: str  # where the commands run
    level: str = "all"
    fail: str = "tokens"
    timeout: float | None = None  # seconds that one run may take
    keep: str = "failing"
    recorder: tuple[str, ...] = ()  # arguments of an interpreter that run `tracekit`

    def command(self, side: Side) -> str:
        """The command of a side, with its placeholder."""
        return self.reference if side is Side.REFERENCE else self.candidate

    def words(self, side: Side, seed: int) -> list[str]:
        """The command of a side for one seed, in words; no shell is asked."""
        return [word.replace(SEED, str(seed)) for word in shlex.split(self.command(side))]

    def takes_seed(self, side: Side) -> bool:
        """Whether the command says where its seed goes; else it is seeded from outside."""
        return SEED in self.command(side)

    def identity(self) -> Json:
        """What results depend on: of two plans that differ in nothing of this, either goes on with the other's results.

        Raises TraceError where a program is not there.
        """
        fields = {name: value for name, value in asdict(self).items() if name in ("reference", "candidate", "folder")}
        return fields | {
            "level": self.level,
            "fail": self.fail,
            "programs": {side: _digest(self, side) for side in Side},
        }


def checked(plan: Plan) -> Plan:
    """The plan, if it can be carried out. Raises TraceError."""
    if plan.level not in LEVELS:
        raise TraceError(
            f"--level {plan.level}: use one of {', '.join(LEVELS)}; every seed is recorded at tokens first"
        )
    for side in Side:
        try:
            words = shlex.split(plan.command(side))
        except ValueError as error:
            raise TraceError(f"the {side}'s command cannot be split into words: {error}") from None
        if not words:
            raise TraceError(f"the {side}'s command is empty")
        _program(plan, side)
    return plan


def _program(plan: Plan, side: Side) -> Path | None:
    """The file that a side's command runs; None for `python -m module`. Raises TraceError where it is not there."""
    words = shlex.split(plan.command(side))
    folder = Path(plan.folder)
    if not is_python(words):
        name = words[0] if "/" not in words[0] else str(folder / words[0])
        found = shutil.which(name)
        if found is None:
            raise TraceError(f"{words[0]}: there is no such program; the {side}'s command runs in {folder}")
        return Path(found)
    _, program = interpreter_and_program(words)
    if not program:
        raise TraceError(f"the {side}'s command `{plan.command(side)}` runs no script")
    if program[0] == "-m":
        return None
    if program[0].startswith("-"):
        raise TraceError(f"the {side}'s command gives python the option {program[0]}; only `-m module` is known")
    script = folder / program[0]
    if not script.is_file():
        raise TraceError(f"{program[0]}: there is no such script; the {side}'s command runs in {folder}")
    return script


def _digest(plan: Plan, side: Side) -> str | None:
    path = _program(plan, side)
    if path is None:
        return None
    digest = xxhash.xxh3_64()
    try:
        with path.open("rb") as file:
            left = HASHED_BYTES
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds as they are written: `0:100`, `0:100:7`, `1,4,9`, or several of these, with commas between.

    Raises TraceError.
    """
    out: dict[int, None] = {}
    for part in text.split(","):
        try:
            numbers = [int(word) for word in part.strip().split(":")]
            span = range(*numbers) if len(numbers) > 1 else range(numbers[0], numbers[0] + 1)
        except (ValueError, TypeError):
            raise TraceError(
                f"--seeds {text}: {part.strip()!r} is no seed and no range; write 0:100 or 1,4,9"
            ) from None
        if len(span) > MOST_SEEDS:
            raise TraceError(f"--seeds {text}: {len(span):,} seeds; {MOST_SEEDS:,} at most")
        out |= dict.fromkeys(span)
    if not out:
        raise TraceError(f"--seeds {text}: no seed is in it; 0:100 are 0 to 99")
    return tuple(out)
