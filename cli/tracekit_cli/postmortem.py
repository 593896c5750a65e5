"""`tracekit postmortem`: which seeds fail, and why, from two programs or from traces that exist."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from tracekit.exit_codes import ExitCode
from tracekit.postmortem.plan import LEVELS, Plan, checked, parse_seeds
from tracekit.trace import TraceError
from tracekit.verdict.outcome import Postmortem

KEEP = ("failing", "all", "none")
DEFAULT_JOBS = 2
"""One program starts up, on one core, while the other generates. More of them may not fit into memory."""
RECORDER = ("-m", "tracekit_cli.main")
"""Arguments of an interpreter that run this program."""


@click.command("postmortem")
@click.argument("traces", required=False, type=click.Path(path_type=Path), metavar="[DIR_OF_TRACES]")
@click.option("--seeds", metavar="SEEDS", help="0:100 (0 to 99), 0:100:7 or 1,4,9.")
@click.option("--ref", "reference", metavar="COMMAND", help="The reference; {seed} stands for the seed.")
@click.option("--cand", "candidate", metavar="COMMAND", help="The candidate; {seed} stands for the seed.")
@click.option("-o", "--out", default="postmortem", show_default=True, metavar="DIR", help="Folder, or an fsspec URL.")
@click.option("--jobs", type=click.IntRange(min=1), help="Programs at a time. Default: 2 where there are 2 cores.")
@click.option("--scheduler", metavar="ADDRESS", help="Run on a Dask cluster, tcp://host:port, that shares the folder.")
@click.option(
    "--fail",
    default="tokens",
    show_default=True,
    metavar="RULE",
    help="What a failure is: tokens, length, exit, values (anything beyond rounding), or an expression of ref.tokens, "
    "cand.tokens, ref.exit, first_difference, ...",
)
@click.option("--keep", type=click.Choice(KEEP), default="failing", show_default=True, help="Whose traces are kept.")
@click.option(
    "--level", default="all", show_default=True, help=f"Of the second run of failing seeds: {', '.join(LEVELS)}."
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds that one run may take.")
@click.option("--no-repro", is_flag=True, help="Leave out the repros.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def command(
    traces: Path | None, seeds: str | None, reference: str | None, candidate: str | None, **options: Any
) -> None:
    """Run both programs over many seeds, and say which fail and why.

    Every seed is recorded sparsely (tokens, survivors, draws); seeds that fail are recorded again in full. DIR gets
    postmortem.json, report.html, and a repro for each group of seeds that fail alike. Called again after it was
    stopped, it continues.

    With DIR_OF_TRACES, the traces there are paired by seed, and nothing is run.

    Exit code 0: every seed passes, 1: some fail, 2: trouble.
    """
    if traces is not None:
        if seeds or reference or candidate:
            raise click.UsageError("give a folder of traces, or --ref, --cand and --seeds; not both")
        found = _of_traces(traces, options)
    elif seeds is None or reference is None or candidate is None:
        raise click.UsageError("give --seeds, --ref and --cand, or a folder of traces")
    else:
        found = _of_programs(seeds, reference, candidate, options)
    _print(found, options)
    sys.exit(ExitCode.DIFFER if found.failing.count else ExitCode.AGREE)


def _of_programs(seeds: str, reference: str, candidate: str, options: dict[str, Any]) -> Postmortem:
    from tracekit.postmortem.conduct import Conduct
    from tracekit.postmortem.failure import rule
    from tracekit.postmortem.finish import check_libraries, finish
    from tracekit.postmortem.store import open_store
    from tracekit_cli.seed_progress import SeedProgress

    check_libraries("cluster" if options["scheduler"] or "://" in options["out"] else "postmortem")
    numbers = parse_seeds(seeds)
    rule(options["fail"])
    plan = checked(
        Plan(
            reference,
            candidate,
            str(Path.cwd()),
            options["level"],
            options["fail"],
            options["timeout"],
            options["keep"],
            RECORDER,
        )
    )
    store = open_store(_absolute(options["out"]))
    try:
        with _crew(options["jobs"], options["scheduler"]) as crew, SeedProgress() as progress:
            found = Conduct(plan, store, numbers, crew, progress).run()
    except KeyboardInterrupt:
        click.echo("tracekit: stopped; the same command goes on from here", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    without = finish(store, found, plan, with_repros=not options["no_repro"])
    for line in without:
        click.echo(f"tracekit: no repro of {line}", err=True)
    return found


def _of_traces(folder: Path, options: dict[str, Any]) -> Postmortem:
    from tracekit.postmortem.conduct import FOUND
    from tracekit.postmortem.finish import Places, check_libraries, write_report
    from tracekit.postmortem.groups import conclude
    from tracekit.postmortem.recorded import examined, pairs, traces
    from tracekit.postmortem.store import open_store, write_json
    from tracekit.report.postmortem_text import postmortem_json

    check_libraries("postmortem")
    found_pairs = pairs(folder)
    alone = len(traces(folder)) - 2 * len(found_pairs)
    if alone:
        click.echo(f"tracekit: {alone} traces in {folder} have no partner of the same seed: left out", err=True)
    with click.progressbar(found_pairs, label="tracekit: comparing", file=sys.stderr) as shown:
        seeds = [examined(pair, folder, options["fail"]) for pair in shown]
    found = conclude(str(folder), str(folder), seeds, len(found_pairs))
    store = open_store(_absolute(options["out"]))
    write_json(store, FOUND, postmortem_json(found))
    write_report(store, Places(None, folder), found)
    return found


def _absolute(place: str) -> str:
    """A folder's path as every worker understands it."""
    return place if "://" in place else str(Path(place).resolve())


@contextlib.contextmanager
def _crew(jobs: int | None, scheduler: str | None) -> Iterator[Executor]:
    """Who does the work: threads that wait for programs of this machine, or a Dask cluster."""
    if scheduler is None:
        from tracekit.postmortem.program import SLOTS

        jobs = jobs or min(DEFAULT_JOBS, os.cpu_count() or 1)
        SLOTS.limit(jobs)
        # One thread more than programs: a seed is compared while the next one's programs run.
        with ThreadPoolExecutor(jobs + 1) as crew:
            try:
                yield crew
            finally:
                crew.shutdown(wait=True, cancel_futures=True)
        return
    if jobs is not None:
        raise click.UsageError("--jobs is for this machine; of a cluster, the workers' threads say it")
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise TraceError("--scheduler needs Dask: pip install 'tracekit[cluster]'") from None
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise TraceError(f"--scheduler {scheduler}: cannot be reached: {error}") from None
    with client:
        yield client.get_executor(pure=False)


def _print(found: Postmortem, options: dict[str, Any]) -> None:
    from tracekit.report.postmortem_text import postmortem_json, postmortem_text

    if options["as_json"]:
        click.echo(json.dumps(postmortem_json(found), indent=1))
        return
    click.echo(postmortem_text(found))
    click.echo(f"report: {options['out']}/report.html")
