"""Engines that `tracekit record --engine NAME` runs and records by itself: one file an engine, with `ENGINE` in it.

Another package declares its own by an entry point of the group `tracekit.engines`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tracekit.errors import TraceError
from tracekit.plugins import loaded
from tracekit.selfcheck.variation import Varied
from tracekit.verdict.live_repair import LiveRepair

GROUP = "tracekit.engines"


@dataclass(frozen=True)
class Engine:
    """An engine by its name. `command` takes what follows `--engine NAME` on the command line: the model and options of
    its own; it records, and raises TraceError where it cannot. `varied` takes the words that `tracekit check --engine
    NAME` is given, and computes their request in the engine's ways; None of an engine whose ways are not known.
    `repair` takes a reference, a trace of the engine, and `tracekit repair`'s options by name; None of an engine that
    cannot be written into while it runs."""

    name: str
    command: click.Command
    varied: Callable[[tuple[str, ...]], Varied] | None = None
    repair: Callable[..., LiveRepair] | None = None


def engines() -> dict[str, Engine]:
    """The engines by name, those of installed packages before tracekit's own."""
    found: dict[str, Engine] = {}
    for engine in loaded(GROUP, __name__, "ENGINE")[0]:
        found.setdefault(engine.name, engine)
    return found


def engine_of(name: str) -> Engine:
    """The engine of a name. Raises TraceError where there is none."""
    found = engines()
    if name not in found:
        raise TraceError(f"--engine {name}: there is no such engine; give one of {', '.join(sorted(found))}")
    return found[name]


def in_process(command: click.Command) -> Callable[[list[str], Path], None]:
    """Runs an engine's command with words of a command line and a file to record into. What goes wrong in it, in
    whatever library, is a TraceError: another way of the same engine may work."""

    def run(words: list[str], out: Path) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                command.main([*words, "-o", str(out)], prog_name=command.name, standalone_mode=False)
        except TraceError:
            raise
        except click.ClickException as error:
            raise TraceError(error.format_message()) from None
        except Exception as error:
            said = (str(error).splitlines() or [""])[0]
            raise TraceError(f"{command.name}: {type(error).__name__}: {said}") from None

    return run


def out_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-o`, as every engine has it."""
    said = "Archive to make. Default: traces/<model>.h5"
    return click.option("-o", "--out", type=click.Path(path_type=Path), help=said)(function)
