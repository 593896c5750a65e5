"""The `tracekit` command: a group whose commands are imported when they are called, so that `--help` is quick."""

from __future__ import annotations

import importlib
import io
import sys

import click

from tracekit.errors import TraceError

COMMANDS = {
    "record": "tracekit_cli.record",
    "oracle": "tracekit_cli.oracle",
    "import": "tracekit_cli.import_log",
    "show": "tracekit_cli.show",
    "diff": "tracekit_cli.diff",
    "audit": "tracekit_cli.audit",
    "report": "tracekit_cli.report",
    "names": "tracekit_cli.names",
    "summary": "tracekit_cli.summary",
    "tokens": "tracekit_cli.tokens",
    "audio": "tracekit_cli.audio",
    "weights": "tracekit_cli.weights",
    "config": "tracekit_cli.config",
    "postmortem": "tracekit_cli.postmortem",
}
"""Command name -> module that defines `command`, in the order of the help."""


class LazyGroup(click.Group):
    """Imports a command's module only when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(module).command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tracekit")
def group() -> None:
    """Record a language model in PyTorch and in Rust, and name the first step, layer or draw where they diverge."""
    for stream in (sys.stdout, sys.stderr):
        # Texts out of a file may hold what no encoding can say: a lone surrogate, or é on an ASCII terminal.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Entry point. Exit codes as diff(1): 0 the same, 1 different, 2 trouble, with one line on stderr."""
    try:
        group(prog_name="tracekit")
    except TraceError as error:
        click.echo(f"tracekit: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
