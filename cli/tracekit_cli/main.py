"""The `tracekit` command: a group whose commands are imported when they are called, so that `--help` is quick."""

from __future__ import annotations

import importlib
import io
import sys

import click

from tracekit.errors import TraceError
from tracekit.exit_codes import ExitCode

COMMANDS = {
    "record": "Run a program and record what its model does.",
    "oracle": "Run a recorded Python program again, in float64, on the same tokens.",
    "import": "Turn a log (*.tklog) into an archive, also where the program was killed.",
    "show": "Show what a trace (a log or an archive) holds.",
    "diff": "Compare a candidate with a reference, and name the first divergence.",
    "audit": "Recompute every site of one trace, and name those that are wrong.",
    "repair": "Run an engine with the right values at the sites that are wrong.",
    "check": "Compare an engine with itself: the same request computed in other ways.",
    "bisect": "Find the first build that computes something else than the good one.",
    "report": "Write one self-contained page of one trace, or of several compared.",
    "names": "Propose a map of a candidate's names to a reference's.",
    "summary": "Lengths, stop steps and seconds, a row a sequence.",
    "tokens": "Token ids of a trace, for other programs.",
    "audio": "Duration, RMS and maximum of WAV files, beside token counts.",
    "weights": "Compare two checkpoints, tensor by tensor.",
    "config": "What cosyvoice3.yaml or config.json says against what was used.",
    "postmortem": "Run both programs over many seeds, and say which fail and why.",
}
"""Command name -> its line of the help, in that order. The module of that name defines `command`."""
MODULES = {"import": "import_log"}
"""Names that no module can have."""


class LazyGroup(click.Group):
    """Imports a command's module only when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"tracekit_cli.{MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tracekit")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Record a language model in PyTorch and in Rust, and name the first step, layer or draw where they diverge."""
    if ctx.invoked_subcommand == "record":
        return  # the streams are the program's
    for stream in (sys.stdout, sys.stderr):
        # Texts out of a file may hold what no encoding can say: a lone surrogate, or é on an ASCII terminal.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Entry point. Trouble is one line on stderr."""
    try:
        group(prog_name="tracekit")
    except TraceError as error:
        click.echo(f"tracekit: {error}", err=True)
        sys.exit(ExitCode.TROUBLE)


if __name__ == "__main__":
    main()
