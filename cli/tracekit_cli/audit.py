"""`tracekit audit`: one trace against its checkpoint, without a reference run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import click

import tracekit
from tracekit.auditing.audit import Audit
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.errors import TraceError
from tracekit.trace import Trace


@click.command("audit")
@click.argument("trace", type=click.Path())
@click.option(
    "--weights", type=click.Path(), help="The checkpoint: a Hugging Face folder, a .safetensors or a GGUF file."
)
@click.option("--names", type=click.Path(), help="A map of the engine's names to the checkpoint's (TOML).")
@click.option(
    "--model",
    type=click.Path(),
    help="Audit by the reference itself: this Hugging Face folder, run in float64 on the trace's tokens. Any model.",
)
@click.option("--strict", is_flag=True, help="Choices of precision count as departures (exit 1).")
@click.option("--json", "as_json", is_flag=True, help="Print the whole audit as JSON.")
def command(trace: str, weights: str | None, names: str | None, model: str | None, strict: bool, as_json: bool) -> None:
    """Recompute every site of TRACE from its recorded input and the checkpoint, and name those that are wrong.

    Exit code 0: every site is within its rounding bound, or off by a choice of precision alone, 1: some are not, 2:
    trouble.
    """
    if model is None:
        found = tracekit.audit(trace, weights, names=names)
    else:
        found = tracekit.audit(trace, weights or model, names=names, by=_reference(model))
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else found.text)
    sys.exit(max(found.exit_code, int(strict and found.precise)))


def _reference(folder: str) -> Callable[[Trace, Checkpoint], Audit]:
    """The auditor that runs a model of transformers. Raises TraceError where that is not installed."""
    try:
        import transformers  # noqa: F401
        from tracekit_torch import by_reference
    except ModuleNotFoundError as error:
        raise TraceError(f"--model needs {error.name}: pip install 'tracekit[torch]' transformers") from None
    return by_reference(folder)
