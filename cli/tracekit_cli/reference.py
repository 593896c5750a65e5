"""What runs as the reference in an audit: a folder, a callable, or the program of a recorded run."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracekit.api import Auditor
from tracekit.trace import TraceError
from tracekit_cli.recorded_program import recorded_program

if TYPE_CHECKING:
    from torch import nn

MODEL = click.option(
    "--model",
    type=click.Path(),
    help="Judge by the reference itself: this Hugging Face folder, run in float64 on the trace's tokens. Any model.",
)
MODULE = click.option(
    "--module",
    metavar="PACKAGE:FACTORY",
    help="Judge by the torch module that this callable without arguments returns, with its weights loaded.",
)


def auditor(model: str | None, module: str | None, program: str | None, options: str) -> Auditor | None:
    """What judges by the reference program that one of them names: a folder, a callable, a trace whose program is run;
    None without any. `options`: what they are called on the command line. Raises TraceError."""
    given = [value for value in (model, module, program) if value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise TraceError(f"{options}: give one of them, not {len(given)}")
    try:
        from tracekit_torch import by_reference
        from tracekit_torch.reference_program.loading import made_by

        if model is not None:
            import transformers  # noqa: F401

            return by_reference(model)
        if module is not None:
            sys.path.insert(0, str(Path.cwd()))
            return by_reference(made_by(module), module)
        assert program is not None
        return by_reference(_of_run(program), f"the program of {program}")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise TraceError(f"{options}: needs {error.name}: pip install 'tracekit[torch]' transformers") from None


def _of_run(path: str) -> Callable[[str], nn.Module]:
    """The model of the program that a trace was recorded from, by the dtype of its parameters."""
    from tracekit_torch.reference_program.loading import prepared
    from tracekit_torch.running import caught

    recorded = recorded_program(path)

    @cache
    def model() -> nn.Module:
        try:
            return caught(recorded.program(), recorded.folder, recorded.options(level="tokens"))
        except TraceError as error:
            raise TraceError(f"{path}: its program gives no model: {error}") from None

    return lambda dtype: prepared(copy.deepcopy(model()), dtype)
