"""`tracekit import`: a log, or what a program printed, becomes an archive."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tracekit.extra.cosyvoice3.text_log import import_text_log, read_text_log
from tracekit.formats.archive import write_archive
from tracekit.formats.log import MAGIC
from tracekit.formats.log_trace import LogTrace
from tracekit.formats.opening import is_trace
from tracekit.trace import TraceError


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

    LOG may also be what a CosyVoice program printed, Python's or the native one: the archive then holds the counts that
    it says, for `tracekit summary`, and the text log stays.
    """
    target = output or log.with_suffix(".h5")
    is_log = _is_log(log)
    if not is_log and is_trace(log):
        raise TraceError(f"{log}: is an archive already; every command reads it as it is")
    if target.resolve() == log.resolve():
        raise TraceError(f"{log}: would be overwritten by its own archive; give another name with -o")
    if not is_log:
        click.echo(_import_text(log, target, as_json))
        return
    with LogTrace(log) as trace:
        steps = sum(sequence.step_count for sequence in trace.sequences)
        told = {
            "archive": str(target),
            "status": trace.status,
            "detail": trace.status_detail,
            "sequences": len(trace.sequences),
            "steps": steps,
        }
        write_archive(trace, target)
    if not keep_log:
        log.unlink()
    if as_json:
        click.echo(json.dumps(told))
    else:
        click.echo(f"{target}: {told['sequences']} sequences, {steps} steps, {told['detail'] or 'complete'}")


def _is_log(path: Path) -> bool:
    """Whether to read it as frames: by its name, or by what it begins with."""
    if path.suffix == ".tklog":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None


def _import_text(path: Path, target: Path, as_json: bool) -> str:
    log = read_text_log(path)
    import_text_log(log, target)
    told = {"archive": str(target), "implementation": log.implementation, "sequences": len(log.segments)}
    counted = [segment.counts for segment in log.segments]
    if as_json:
        return json.dumps(told | {"counts": counted})
    return f"{target}: {log.implementation}, {len(counted)} sequences, counts only"
