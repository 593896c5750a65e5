"""`tracekit audit`: one trace against its checkpoint, without a reference run."""

from __future__ import annotations

import json
import sys

import click

import tracekit
from tracekit.exit_codes import ExitCode
from tracekit_cli.reference import MODEL, MODULE, auditor


@click.command("audit")
@click.argument("trace", type=click.Path())
@click.option(
    "--weights",
    type=click.Path(),
    help="The checkpoint: a folder or file of any kind that `tracekit weights` reads.",
)
@click.option("--names", type=click.Path(), help="A map of the engine's names to the checkpoint's (TOML).")
@MODEL
@click.option("--reference", type=click.Path(), help="The same by the model of the program that this trace recorded.")
@MODULE
@click.option(
    "--original",
    type=click.Path(),
    help="What a quantised checkpoint was made of, or a recording of that: what does the rounding cost, by layer?",
)
@click.option("--strict", is_flag=True, help="Choices of precision count as departures (exit 1).")
@click.option("--json", "as_json", is_flag=True, help="Print the whole audit as JSON.")
def command(
    trace: str,
    weights: str | None,
    names: str | None,
    model: str | None,
    reference: str | None,
    module: str | None,
    original: str | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Recompute every site of TRACE from its recorded input and the checkpoint, and name those that are wrong.

    Exit code 0: every site is within its rounding bound, or off by a choice of precision alone, 1: some are not, 2:
    trouble.
    """
    by = auditor(model, module, reference, "--model, --reference, --module")
    found = tracekit.audit(
        trace, weights or model, names=names, original=original, **({} if by is None else {"by": by})
    )
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else found.text)
    precise = strict and found.precise and found.exit_code is ExitCode.AGREE
    sys.exit(ExitCode.DIFFER if precise else found.exit_code)
