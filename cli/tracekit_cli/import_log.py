"""`tracekit import`: a log becomes an archive."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tracekit.archive import write_archive
from tracekit.log_trace import LogTrace
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
    """
    target = output or log.with_suffix(".h5")
    if target.resolve() == log.resolve():
        raise TraceError(f"{log}: would be overwritten by its own archive; give another name with -o")
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
