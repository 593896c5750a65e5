"""`tracekit bisect`: the first build that computes something else."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click

from tracekit.bisect.history import History
from tracekit.bisect.packages import Packages
from tracekit.bisect.revisions import Revisions
from tracekit.bisect.search import BisectStep, bisect
from tracekit.report.bisect_text import bisect_json, bisect_text, step_text


@click.command("bisect", short_help="Find the first build that computes something else than the good one.")
@click.option("--good", required=True, metavar="NAME==V|REV", help="The older build, taken as right.")
@click.option("--bad", required=True, metavar="NAME==V|REV", help="The later build, which departs from it.")
@click.option("--repo", type=click.Path(path_type=Path), help="Builds are git revisions of this repository.")
@click.option("--build", metavar="CMD", help="With --repo: a shell command that builds a work tree.")
@click.option("--weights", type=click.Path(), help="The checkpoint, if it is not where the traces say.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Of one run; a build that takes longer is skipped.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- COMMAND...")
def command(
    words: tuple[str, ...],
    good: str,
    bad: str,
    repo: Path | None,
    build: str | None,
    weights: str | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Run COMMAND with builds between a good and a bad one, record each, and compare it with the good one by a verdict.

    Without --repo, builds are versions of a package (--good onnxruntime==1.23.2 --bad onnxruntime==1.32.0), each in an
    environment of its own, in which `python` and `tracekit record --engine NAME` of COMMAND run. With --repo, they are
    git revisions, and COMMAND runs in each one's work tree.
    Exit code 0: a build is named, 1: it cannot be told, 2: trouble.
    """
    if build is not None and repo is None:
        raise click.UsageError("--build needs --repo DIR")
    history: History = Packages(good, bad, words) if repo is None else Revisions(repo, good, bad, words, build)
    with tempfile.TemporaryDirectory(prefix="tracekit-bisect-") as folder:
        told = (lambda step: None) if as_json else _say
        found = bisect(history, Path(folder), weights=weights, timeout=timeout, told=told)
    history.close()
    click.echo(json.dumps(bisect_json(found), indent=2) if as_json else bisect_text(found))
    sys.exit(found.exit_code)


def _say(step: BisectStep) -> None:
    click.echo(step_text(step))
