"""`tracekit report`: one page for a browser that shows where traces part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import tracekit
from tracekit.formats.name_map import NameMap, read_names
from tracekit.report.json import record_of
from tracekit.report.page import Alone, Compared, write_page, write_trace_page
from tracekit.report.text import verdict_text
from tracekit.trace import TraceError
from tracekit.verdict.decide import paired, verdict_of


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
@click.option(
    "--noise", type=click.Path(), multiple=True, help="Another reference under harmless variation; repeatable."
)
@click.option("--names", type=click.Path(), help="A map of names (TOML), as `tracekit names` writes it.")
@click.option("--weights", type=click.Path(), help="The checkpoint, if it is not where the traces say.")
def command(traces: tuple[str, ...], output: Path, **options: Any) -> None:
    """Write one self-contained page: the first of TRACES is the reference, each other one is compared with it.

    One trace alone: what is in it, and its audit where its checkpoint is found.
    """
    with contextlib.ExitStack() as stack:
        reference = stack.enter_context(tracekit.open(traces[0]))
        if len(traces) == 1:
            _check_alone(traces[0], options)
            write_trace_page(output, Alone(traces[0], reference, options["weights"]))
        else:
            oracle = stack.enter_context(tracekit.open(options["oracle"])) if options["oracle"] else None
            noise = tuple(stack.enter_context(tracekit.open(path)) for path in options["noise"])
            names = read_names(options["names"]) if options["names"] else None
            measure = Measure(oracle, noise, options["weights"], names)
            write_page(output, _pairs(reference, traces[1:], measure))
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


@dataclass(frozen=True)
class Measure:
    """What every pair is measured with."""

    oracle: tracekit.Trace | None
    noise: tuple[tracekit.Trace, ...]
    weights: str | None
    names: NameMap | None


def _check_alone(trace: str, options: dict[str, Any]) -> None:
    for name in ("oracle", "noise", "names"):
        if options[name]:
            raise TraceError(f"{trace}: one trace alone is not compared with anything; leave out --{name}")


def _pairs(reference: tracekit.Trace, candidates: tuple[str, ...], by: Measure) -> Iterator[Compared]:
    for path in candidates:
        with tracekit.open(path) as candidate:
            both = paired(reference, candidate, by.names, by.weights)
            verdict = verdict_of(both, by.oracle, by.noise, weights=by.weights)
            text = verdict_text(verdict, reference, candidate, by.oracle)
            yield Compared(path, both, record_of(verdict), text, by.oracle, by.noise, by.weights)
