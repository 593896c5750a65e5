"""`tracekit audit`: one trace against its checkpoint, without a reference run."""

from __future__ import annotations

import json
import sys

import click

import tracekit


@click.command("audit")
@click.argument("trace", type=click.Path())
@click.option(
    "--weights", type=click.Path(), help="The checkpoint: a Hugging Face folder, a .safetensors or a GGUF file."
)
@click.option("--names", type=click.Path(), help="A map of the engine's names to the checkpoint's (TOML).")
@click.option("--json", "as_json", is_flag=True, help="Print the whole audit as JSON.")
def command(trace: str, weights: str | None, names: str | None, as_json: bool) -> None:
    """Recompute every site of TRACE from its recorded input and the checkpoint, and name those that are wrong.

    Exit code 0: every site is within its rounding bound, 1: some are not, 2: trouble.
    """
    found = tracekit.audit(trace, weights, names=names)
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else found.text)
    sys.exit(found.exit_code)
