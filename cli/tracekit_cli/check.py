"""`tracekit check`: an engine compared with itself."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from tracekit.errors import TraceError
from tracekit.report.check_text import check_json, check_text, finding_text
from tracekit.selfcheck.command import Command
from tracekit.selfcheck.conduct import check
from tracekit.selfcheck.variation import PROMPT_IDS, Varied


@click.command("check", short_help="Compare an engine with itself: the same request computed in other ways.")
@click.option(
    "--engine",
    metavar="NAME",
    help="An engine whose options are known; its command needs no places: native, transformers, llama.cpp, onnx.",
)
@click.option("--vary", multiple=True, metavar="NAME=BASE,OTHER,...", help="Values of a place in the command.")
@click.option("--prompt-ids", metavar="N,N,...", help="What goes where the command has {prompt_ids}.")
@click.option("--weights", type=click.Path(), help="The checkpoint, if it is not where the trace says.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Keep the traces in this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
def command(
    words: tuple[str, ...],
    engine: str | None,
    vary: tuple[str, ...],
    prompt_ids: str | None,
    weights: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run COMMAND, then run it in other ways that must give the same, and compare each with the first run.

    What varies has a place in the command: --vary threads=1,2 -- ./engine --threads {threads}. The places {prompt_ids},
    {chunk}, {requests} and {keep_prefix} have a meaning of their own: see docs/check.md.
    Exit code 0: every way gives the same, 1: one does not, 2: trouble.
    """
    if not words:
        raise click.UsageError("give a command after `--`")
    program = _program(words, engine, vary, prompt_ids)
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tracekit-check-")))
        checked = check(program, folder, weights, (lambda finding: None) if as_json else _say)
    click.echo(json.dumps(check_json(checked), indent=2) if as_json else check_text(checked))
    sys.exit(checked.exit_code)


def _say(finding: object) -> None:
    click.echo(finding_text(finding))  # type: ignore[arg-type]


def _program(words: tuple[str, ...], engine: str | None, vary: tuple[str, ...], prompt_ids: str | None) -> Varied:
    if engine is not None:
        from tracekit_cli.engines import engine_of

        if vary or prompt_ids:
            raise click.UsageError("--vary and --prompt-ids are for a command with places; an engine has its own ways")
        varied = engine_of(engine).varied
        if varied is None:
            raise TraceError(f"--engine {engine}: check does not know its ways; give a command with places")
        return varied(words)
    given: dict[str, str] = {} if prompt_ids is None else {PROMPT_IDS: prompt_ids}
    values: dict[str, tuple[str, ...]] = {}
    for each in vary:
        name, _, listed = each.partition("=")
        first, *others = listed.split(",")
        if not name or not first:
            raise click.UsageError(f"--vary {each}: give NAME=BASE,OTHER,...")
        given[name], values[name] = first, tuple(others)
    return Command(words, given, values)
