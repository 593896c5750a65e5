"""`tracekit report`: one page for a browser that shows where traces part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

import tracekit
from tracekit.report import verdict_text
from tracekit.report.page import Alone, Pair, write_page, write_trace_page
from tracekit.trace import TraceError


@click.command("report")
@click.argument("traces", nargs=-1, required=True, type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    help="File to write. [default: report.html]",
)
@click.option("--oracle", type=click.Path(), help="The reference in higher precision, as `tracekit oracle` makes it.")
@click.option("--weights", type=click.Path(), help="The checkpoint, if it is not where the traces say.")
def command(traces: tuple[str, ...], output: Path, oracle: str | None, weights: str | None) -> None:
    """Write one self-contained page: the first of TRACES is the reference, each other one is compared with it.

    One trace alone: what is in it, and its audit where its checkpoint is found.
    """
    if oracle and len(traces) == 1:
        raise TraceError(f"{traces[0]}: one trace alone is not compared with anything; leave out --oracle")
    with contextlib.ExitStack() as stack:
        reference = stack.enter_context(tracekit.open(traces[0]))
        truth = stack.enter_context(tracekit.open(oracle)) if oracle else None
        if len(traces) == 1:
            write_trace_page(output, Alone(traces[0], reference, weights))
        else:
            write_page(output, _pairs(reference, traces[1:], truth, weights))
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def _pairs(
    reference: tracekit.Trace, candidates: tuple[str, ...], oracle: tracekit.Trace | None, weights: str | None
) -> Iterator[Pair]:
    for path in candidates:
        with tracekit.open(path) as candidate:
            verdict = tracekit.diff(reference, candidate, oracle, weights=weights)
            text = verdict_text(verdict, reference, candidate, oracle)
            yield Pair(path, reference, candidate, verdict.to_json(), text, oracle, weights)
