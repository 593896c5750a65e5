"""The Python program that a trace says it was recorded from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tracekit
from tracekit.trace import Json, TraceError

if TYPE_CHECKING:
    from tracekit_torch.options import Options
    from tracekit_torch.running import Program


@dataclass(frozen=True)
class RecordedProgram:
    """A script or module with its arguments, and how it was recorded."""

    trace: Path
    argv: tuple[str, ...]
    is_module: bool
    folder: str
    settings: Json
    seed: int | None

    def program(self) -> Program:
        """As the recorder runs it."""
        from tracekit_torch.running import Program

        if self.is_module:
            return Program(self.argv[1], self.argv[2:], True)
        return Program(self.argv[0], self.argv[1:])

    def options(self, **more: Any) -> Options:
        """Those it was recorded with, but for `more`."""
        from tracekit_torch.options import Options

        names = ("level", "sites", "logits", "module", "rng")
        kept: dict[str, Any] = {name: self.settings[name] for name in names if name in self.settings}
        return Options(**(kept | {"seed": self.seed} | more))


def recorded_program(path: str) -> RecordedProgram:
    """The program of a trace. Raises TraceError where the trace names none."""
    with tracekit.open(path) as trace:
        config = dict(trace.config)
    command = config.get("command")
    if (
        not isinstance(command, dict)
        or not isinstance(command.get("argv"), list)
        or len(command["argv"]) < 1 + ("module" in command)
        or not all(isinstance(word, str) for word in command["argv"])
        or not isinstance(command.get("cwd"), str)
        or not ("script" in command or "module" in command)
    ):
        raise TraceError(
            f"{path}: does not say which Python program made it; record that with `tracekit record script.py`"
        )
    settings = dict(config.get("recorder") or {})
    argv, is_module = tuple(command["argv"]), "module" in command
    return RecordedProgram(Path(path), argv, is_module, command["cwd"], settings, config.get("seed"))
