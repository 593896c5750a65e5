"""`tracekit weights`: two checkpoints compared, whatever their format."""

from __future__ import annotations

import json
import sys

import click

from tracekit.checkpoints.adapter import Adapter
from tracekit.checkpoints.compare import diff_weights
from tracekit.checkpoints.parameters import open_parameters
from tracekit.exit_codes import ExitCode
from tracekit.report.weight_text import weight_json, weight_text


@click.command("weights")
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path())
@click.option("--adapter", type=click.Path(), help="A LoRA adapter: how many times it is in SECOND and not in FIRST.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(first: str, second: str, adapter: str | None, as_json: bool) -> None:
    """Compare the tensors of SECOND with those of FIRST: missing, extra, shape, dtype, values.

    Each is a .safetensors file, a PyTorch or TorchScript file (.pt, .jit; read without running anything in it), a GGUF
    file, an ONNX file or a HF folder. Tensors are paired by name, and by content where the names differ.
    Exit code 0: the same, 1: different, 2: trouble.
    """
    one, other = open_parameters(first), open_parameters(second)
    found = diff_weights(one, other, None if adapter is None else Adapter(adapter))
    if as_json:
        click.echo(json.dumps({"first": first, "second": second} | weight_json(found), indent=2))
    else:
        click.echo(weight_text(found, one, other))
    sys.exit(ExitCode.AGREE if found.same else ExitCode.DIFFER)
