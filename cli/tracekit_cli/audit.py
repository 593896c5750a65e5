"""`tracekit audit`: one trace against its checkpoint, without a reference run."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import click

import tracekit
from tracekit.align.renamed import Elsewhere, named
from tracekit.align.rotary_order import in_order_of
from tracekit.auditing.audit import audit
from tracekit.checkpoints.stated import find_checkpoint, open_checkpoint, why_no_checkpoint
from tracekit.formats.name_map import gguf_names, read_names
from tracekit.report.audit import audit_json, audit_text
from tracekit.trace import TraceError
from tracekit.verdict.attribution import explained_audit


@click.command("audit")
@click.argument("trace", type=click.Path())
@click.option(
    "--weights", type=click.Path(), help="The checkpoint: a Hugging Face folder, a .safetensors or a GGUF file."
)
@click.option("--names", type=click.Path(), help="A map of the engine's names to the checkpoint's (TOML).")
@click.option("--json", "as_json", is_flag=True, help="Print the whole audit as JSON.")
def command(trace: str, weights: str | None, names: str | None, as_json: bool) -> None:
    """Recompute every site of TRACE from its recorded input and the checkpoint, and name those that are wrong.

    Exit code 0: every site is within its rounding bound, 1: some are not, 2: trouble.
    """
    with tracekit.open(trace) as run:
        path = weights or find_checkpoint(run)
        if path is None:
            raise TraceError(f"{trace}: {why_no_checkpoint(run)}")
        checkpoint = open_checkpoint(path)
        called = read_names(names) if names else gguf_names(run)
        if called is not None:
            run = named(run, called, Elsewhere(checkpoint=checkpoint))
        run, notes = in_order_of(checkpoint, run)
        found = audit(run, checkpoint)
        if not (found.clean or found.culprits):
            raise TraceError(f"{trace}: holds no site that can be audited against {path}{_why(found.unknown)}")
        found = replace(explained_audit(run, checkpoint, found), notes=tuple(notes))
        click.echo(
            json.dumps(audit_json(found, run, checkpoint), indent=2) if as_json else audit_text(found, run, checkpoint)
        )
    sys.exit(found.exit_code)


def _why(unknown: Mapping[str, str]) -> str:
    """Why most sites were not audited."""
    if not unknown:
        return "; record with --level all"
    reason, count = Counter(unknown.values()).most_common(1)[0]
    return f"; of {count} of its {len(unknown)} sites: {reason}"
