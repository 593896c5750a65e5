"""`tracekit diff`: the first divergent step and site of two traces, and why."""

from __future__ import annotations

import contextlib
import json
import sys

import click

import tracekit
from tracekit.align.pair import Pair
from tracekit.compare.side_by_side import token_tables
from tracekit.exit_codes import ExitCode
from tracekit.report.token_text import token_tables_text
from tracekit.trace import TraceError
from tracekit.verdict.cause import Cause
from tracekit_cli.reference import MODEL, MODULE, auditor


@click.command("diff")
@click.argument("reference", type=click.Path())
@click.argument("candidate", type=click.Path())
@click.option("--oracle", type=click.Path(), help="The reference in higher precision, as `tracekit oracle` makes it.")
@click.option(
    "--noise", type=click.Path(), multiple=True, help="Another reference under harmless variation; repeatable."
)
@click.option("--weights", type=click.Path(), help="The checkpoint, if it is not where the traces say.")
@click.option("--names", type=click.Path(), help="A map of names (TOML), as `tracekit names` writes it.")
@MODEL
@MODULE
@click.option(
    "--run-reference", is_flag=True, help="Judge by the model of the program that REFERENCE recorded, run again."
)
@click.option("--no-audit", is_flag=True, help="Compare only; do not recompute sites from the checkpoint.")
@click.option(
    "--strict",
    is_flag=True,
    help="Sites that only one side recorded are trouble (exit 2), and choices of precision a divergence (exit 1).",
)
@click.option("--tokens", type=click.IntRange(min=1), help="Print the first N tokens of both sides next to each other.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole verdict as JSON.")
def command(
    reference: str,
    candidate: str,
    oracle: str | None,
    noise: tuple[str, ...],
    weights: str | None,
    names: str | None,
    model: str | None,
    module: str | None,
    run_reference: bool,
    no_audit: bool,
    strict: bool,
    tokens: int | None,
    as_json: bool,
) -> None:
    """Compare CANDIDATE with REFERENCE and name the first divergence.

    Exit code 0: parity, also where choices of precision alone differ and move no token, 1: divergence, 2: trouble.
    """
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(tracekit.open(path)) for path in (reference, candidate))
        truth = stack.enter_context(tracekit.open(oracle)) if oracle else None
        more = [stack.enter_context(tracekit.open(path)) for path in noise]
        options = "--model, --module, --run-reference"
        by = auditor(model, module, reference if run_reference else None, options)
        given = weights or model
        verdict = tracekit.diff(one, other, truth, more, weights=given, audited=not no_audit, names=names, by=by)
        if strict:
            _refuse_unmatched(candidate, verdict)
        tables = token_tables(Pair.of(one, other), tokens) if tokens else []
        if as_json:
            rows = {"tokens": [table.to_json() for table in tables]} if tokens else {}
            click.echo(json.dumps(verdict.to_json() | rows, indent=2))
        else:
            click.echo(verdict.text)
        if tables and not as_json:
            click.echo("\n" + token_tables_text(tables))
    precise = strict and verdict.cause == Cause.PRECISION and verdict.exit_code is ExitCode.AGREE
    sys.exit(ExitCode.DIFFER if precise else verdict.exit_code)


def _refuse_unmatched(path: str, verdict: tracekit.Verdict) -> None:
    missing = [*verdict.unmatched.reference, *verdict.unmatched.candidate]
    if missing:
        raise TraceError(
            f"{path}: {len(missing)} sites are on one side only, {missing[0]} first; leave out --strict to go on"
        )
