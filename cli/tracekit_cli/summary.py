"""`tracekit summary`: traces in numbers, side by side."""

from __future__ import annotations

import contextlib
import json

import click

import tracekit
from tracekit.inspection.summary import summarise
from tracekit.report.summary_text import summary_text


@click.command("summary")
@click.argument("traces", type=click.Path(), nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(traces: tuple[str, ...], as_json: bool) -> None:
    """A row for each sequence of TRACES: lengths in tokens, the step that stopped it, seconds of speech.

    Seconds are counted at 25 speech tokens a second; fallbacks are second draws because of repetition, redraws are
    draws again of a stop token that came too early.
    """
    with contextlib.ExitStack() as stack:
        rows = summarise([stack.enter_context(tracekit.open(path)) for path in traces])
    click.echo(json.dumps(rows, indent=2) if as_json else summary_text(rows))
