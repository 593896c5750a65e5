"""`tracekit config`: what a model's configuration says against what each side used."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import click

import tracekit
from tracekit.exit_codes import ExitCode
from tracekit.extra.cosyvoice3.declared import compare_declared, differs
from tracekit.report.declared_text import declared_json, declared_text


@click.command("config")
@click.argument("file", type=click.Path())
@click.argument("traces", type=click.Path(), nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: str, traces: tuple[str, ...], as_json: bool) -> None:
    """Compare what FILE declares with what each of TRACES used: sampling numbers and sizes.

    FILE is cosyvoice3.yaml (its tags are read as data; nothing is run), config.json or generation_config.json.
    Exit code 0: they agree, 1: a side uses something else, 2: trouble.
    """
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(tracekit.open(path)) for path in traces]
        rows = compare_declared(Path(file), opened)
    click.echo(json.dumps(declared_json(file, rows), indent=2) if as_json else declared_text(file, rows))
    sys.exit(ExitCode.DIFFER if differs(rows) else ExitCode.AGREE)
