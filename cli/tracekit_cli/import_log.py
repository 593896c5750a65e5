"""`tracekit import`: a log, or what another importer reads, becomes an archive."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tracekit.errors import TraceError
from tracekit.formats.importers import Imported, import_trace
from tracekit.formats.importers.log import IMPORTER as LOGS
from tracekit.formats.opening import is_trace
from tracekit.trace import Json


@click.command("import")
@click.argument("log", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Archive to write [default: LOG with suffix .h5]."
)
@click.option("--keep-log", is_flag=True, help="Leave the log where it is.")
@click.option("--json", "as_json", is_flag=True, help="Print what was imported as JSON.")
def command(log: Path, output: Path | None, keep_log: bool, as_json: bool) -> None:
    """Turn LOG (*.tklog) into an HDF5 archive, also where the program was killed.

    Every step that was complete is kept; the log is removed once the archive is on disk.

    LOG may also be what another importer reads, which then stays as it is: dumps of SGLang, transformers' model
    debugger, TensorRT Edge-LLM or llama.cpp's eval-callback, folders of .npy or .safetensors, the text log of a
    CosyVoice program, of which the archive holds the counts, or what an installed package brings an importer for.
    """
    target = output or log.with_suffix(".h5")
    if not log.exists():
        raise TraceError(f"{log}: cannot be read: no such file")
    if is_trace(log) and not LOGS.knows(log):
        raise TraceError(f"{log}: is an archive already; every command reads it as it is")
    if target.resolve() == log.resolve():
        raise TraceError(f"{log}: would be overwritten by its own archive; give another name with -o")
    made = import_trace(log, target)
    if made.kept_nothing_else and not keep_log:
        log.unlink()
    click.echo(json.dumps(_as_json(target, made)) if as_json else _as_text(target, made))


def _as_json(target: Path, made: Imported) -> Json:
    told: Json = {"archive": str(target), "sequences": made.sequences, "steps": made.steps}
    told |= {"implementation": made.implementation, "status": made.status, "detail": made.detail}
    return told | ({"counts": list(made.counts)} if made.counts else {})


def _as_text(target: Path, made: Imported) -> str:
    if made.counts:
        return f"{target}: {made.implementation}, {made.sequences} sequences, counts only"
    return f"{target}: {made.sequences} sequences, {made.steps} steps, {made.detail or 'complete'}"
