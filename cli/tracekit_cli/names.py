"""`tracekit names`: a map from the names of one side to those of the other, for `diff --names`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

import tracekit
from tracekit.align.proposals import Proposals, propose
from tracekit.exit_codes import ExitCode
from tracekit.formats.whole_file import write_whole
from tracekit.report.names_text import names_json, names_toml


@click.command("names")
@click.argument("reference", type=click.Path())
@click.argument("candidate", type=click.Path())
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the map here instead of printing it.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def command(reference: str, candidate: str, out: Path | None, as_json: bool) -> None:
    """Propose a map (TOML) from CANDIDATE's names to REFERENCE's, fused projections included.

    Exit code 0: every site of both sides has a partner, 1: some are left, 2: trouble.
    """
    with tracekit.open(reference) as one, tracekit.open(candidate) as other:
        found = propose(one, other)
    if out is not None:
        write_whole(out, names_toml(found).encode())
    if as_json:
        click.echo(json.dumps(names_json(found), indent=2))
    elif out is None:
        click.echo(names_toml(found), nl=False)
    click.echo(_summary(found, out), err=True)
    for side, left in (("reference", found.left_reference), ("candidate", found.left_candidate)):
        if left:
            click.echo(f"  without a partner in the {side}: {', '.join(left)}", err=True)
    sys.exit(ExitCode.DIFFER if found.left_reference or found.left_candidate else ExitCode.AGREE)


def _summary(found: Proposals, out: Path | None) -> str:
    where = f", written to {out}" if out else ""
    return f"tracekit: {found.matched} sites have one name on both sides; {len(found.lines)} lines proposed{where}"
