"""Running a native program that records itself: where its log goes is told through its environment."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import click

import tracekit
from tracekit.exit_codes import ExitCode
from tracekit.formats.archive import write_archive
from tracekit.formats.log_beside import begin_anew
from tracekit.formats.log_trace import LogTrace
from tracekit.inspection.following import ask, shortfalls
from tracekit.inspection.losses import lost_rows
from tracekit.inspection.sanity import no_such_site, written
from tracekit.programs.child import exit_code
from tracekit.programs.native import NativeOptions, environment
from tracekit.report.words import sentence
from tracekit.trace import TraceError


def run_native(words: list[str], out: Path, options: NativeOptions, strict: bool = False) -> int:
    """Run `words` with recording on, make the archive `out`, and return the exit code to pass on; 2, if `strict`, where
    the program succeeds but did not follow what it was told to.

    Raises TraceError where the program cannot be started, records nothing, or the archive cannot be written.
    """
    log = _prepare(out, options)
    try:
        with tempfile.TemporaryDirectory(prefix="tracekit-") as scratch:
            code = _run(words, environment(log, options, Path(scratch)))
    except TraceError:
        log.unlink(missing_ok=True)
        raise
    if not log.exists() or not log.stat().st_size:
        return _nothing(words[0], log, code)
    with LogTrace(log) as trace:
        held = written(trace)
        missed = [*map(sentence, (*no_such_site(trace, options.sites), *lost_rows(trace)))]
        lacking = _not_followed(trace, options)
        lost = trace.status_detail
        if log != out:
            write_archive(trace, out)
    if log != out and not options.keep_log:
        log.unlink()
    for said in (*missed, *lacking):
        click.echo(f"tracekit: {said}", err=True)
    if lost is not None:
        click.echo(f"tracekit: the trace is incomplete: {lost}", err=True)
    click.echo(f"tracekit: wrote {out}: {held}", err=True)
    return ExitCode.TROUBLE if code == 0 and strict and lacking else code


def _not_followed(trace: LogTrace, options: NativeOptions) -> list[str]:
    """What the program was to follow and did not; what it was told is kept in the trace, if it does not say so."""
    if options.follow is None:
        return []
    trace.config = ask(trace.config, options.follow, options.follow_draws, options.follow_inputs)
    with tracekit.open(options.follow) as followed:
        return [sentence(each) for each in shortfalls(trace, followed)]


def _prepare(out: Path, options: NativeOptions) -> Path:
    try:
        log = begin_anew(out, options.follow)
        # A log of an earlier run must not be taken for this one's; where none can be made, the program need not run.
        log.unlink(missing_ok=True)
        log.touch()
    except OSError as error:
        raise TraceError(f"{out}: cannot be written: {error.strerror}") from None
    return log


def _nothing(program: str, log: Path, code: int) -> int:
    """The exit code of a program that left no log, and what to do. Raises TraceError where it succeeded."""
    gone = not log.exists()
    log.unlink(missing_ok=True)
    why = "its log was removed while it ran" if gone else "it has to be built with tracekit's crate and to call it"
    sentence = f"{program}: ran, but recorded nothing; {why}, or it says above why it could not"
    if code == 0:
        raise TraceError(sentence)
    click.echo(f"tracekit: {sentence}", err=True)
    return code


def _run(words: list[str], variables: dict[str, str]) -> int:
    try:
        program = subprocess.Popen(words, env=variables)
    except OSError as error:
        raise TraceError(f"{words[0]}: cannot be started: {error.strerror}") from None
    while True:
        try:
            code = program.wait()
            break
        except KeyboardInterrupt:
            # The terminal sent it to the program too; it decides when to end.
            continue
    # As a shell says it, where a signal ended the program.
    return exit_code(code)
