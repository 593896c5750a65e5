"""`tracekit oracle`: the reference's run once more, in higher precision, forced onto the same tokens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

import tracekit
from tracekit.trace import Json, TraceError


@click.command()
@click.argument("reference", type=click.Path(), metavar="REF.h5")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Archive to make. Default: REF.oracle.h5")
@click.option("--dtype", default="float64", show_default=True, help="float64, or float32 for a 16-bit model.")
def command(reference: str, out: Path | None, dtype: str) -> None:
    """Run the program that REF.h5 was recorded from again, in its folder, in float64, forced onto REF's tokens.

    The result tells rounding noise from a fault: give it to `tracekit diff` with --oracle.
    """
    with tracekit.open(reference) as trace:
        config = dict(trace.config)
    recorded = _command(reference, config)
    path = Path(reference)
    out = (out or path.with_name(f"{path.stem}.oracle.h5")).resolve()
    try:
        from tracekit_torch.options import Options
        from tracekit_torch.running import Program, run
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise TraceError("an oracle needs PyTorch: pip install 'tracekit[torch]'") from None
    settings: dict[str, Any] = dict(config.get("recorder") or {})
    options = Options(
        level=settings.get("level", "all"),
        sites=settings.get("sites"),
        logits=settings.get("logits", "full"),
        module=settings.get("module"),
        rng=settings.get("rng", "fast"),
        follow=str(path.resolve()),
        dtype=dtype,
        seed=config.get("seed"),
    )
    try:
        os.chdir(recorded["cwd"])
    except OSError as error:
        raise TraceError(f"{reference}: its folder {recorded['cwd']} cannot be entered: {error.strerror}") from None
    argv = recorded["argv"]
    is_module = "module" in recorded
    name = recorded["module"] if is_module else argv[0]
    run(Program(name, tuple(argv[2:] if is_module else argv[1:]), is_module), out, options)


def _command(reference: str, config: Json) -> Json:
    recorded = config.get("command")
    if (
        not isinstance(recorded, dict)
        or not isinstance(recorded.get("argv"), list)
        or not recorded["argv"]
        or not all(isinstance(word, str) for word in recorded["argv"])
        or not isinstance(recorded.get("cwd"), str)
        or not ("script" in recorded or "module" in recorded)
    ):
        raise TraceError(
            f"{reference}: does not say which Python program made it; record that with `tracekit record script.py`"
        )
    return recorded
