"""`tracekit oracle`: the reference's run again, in higher precision, forced onto the same tokens."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tracekit.trace import TraceError
from tracekit_cli.recorded_program import recorded_program


@click.command()
@click.argument("reference", type=click.Path(), metavar="REF.h5")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Archive to make. Default: REF.oracle.h5")
@click.option("--dtype", default="float64", show_default=True, help="float64, or float32 for a 16-bit model.")
def command(reference: str, out: Path | None, dtype: str) -> None:
    """Run the program that REF.h5 was recorded from again, in its folder, in float64, forced onto REF's tokens.

    The result tells rounding noise from a fault: give it to `tracekit diff` with --oracle.
    """
    recorded = recorded_program(reference)
    path = Path(reference)
    out = (out or path.with_name(f"{path.stem}.oracle.h5")).resolve()
    try:
        from tracekit_torch.running import run
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise TraceError("an oracle needs PyTorch: pip install 'tracekit[torch]'") from None
    options = recorded.options(follow=str(path.resolve()), dtype=dtype)
    try:
        os.chdir(recorded.folder)
    except OSError as error:
        raise TraceError(f"{reference}: its folder {recorded.folder} cannot be entered: {error.strerror}") from None
    run(recorded.program(), out, options)
