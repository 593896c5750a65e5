"""`tracekit repair`: an engine run again with the right values where it was wrong."""

from __future__ import annotations

import json
import sys

import click

import tracekit
from tracekit.errors import TraceError
from tracekit.report.repair_text import repair_json, repair_text
from tracekit_cli.engines import engines


@click.command("repair")
@click.argument("reference", type=click.Path())
@click.argument("candidate", type=click.Path())
@click.option("--weights", type=click.Path(), help="What right values are computed from, if not REFERENCE's own.")
@click.option("--model", type=click.Path(), help="The file that CANDIDATE ran with, if it is not where the trace says.")
@click.option("--site", "sites", multiple=True, help="Write at this site alone; repeatable. Default: all culprits.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    reference: str, candidate: str, weights: str | None, model: str | None, sites: tuple[str, ...], as_json: bool
) -> None:
    """Run the engine of CANDIDATE again, write the right values at its culprits while it computes, and show the tokens
    that come out beside REFERENCE's.

    Exit code 0: they are the reference's, 1: they are not, 2: trouble.
    """
    with tracekit.open(reference) as one, tracekit.open(candidate) as other:
        known = engines()
        engine = known.get(other.implementation)
        if engine is None or engine.repair is None:
            able = ", ".join(sorted(name for name, each in known.items() if each.repair is not None))
            raise TraceError(
                f"{candidate}: is a run of {other.implementation}, which cannot be written into while it runs; give a "
                f"run of {able} as the second trace"
            )
        found = engine.repair(one, other, model=model, weights=weights, sites=sites)
    click.echo(json.dumps(repair_json(found), indent=2) if as_json else repair_text(found))
    sys.exit(found.exit_code)
