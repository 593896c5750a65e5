"""`tracekit tokens`: token ids out of a trace, for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import click

import tracekit
from tracekit.extra.cosyvoice3.speech import prompt_speech_ids
from tracekit.formats.exported_tokens import generated_ids, ids_text, write_token_ids
from tracekit.generations import not_listed
from tracekit.trace import TraceError


@click.command("tokens")
@click.argument("trace", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write: .safetensors, .json or .txt. [default: print]",
)
@click.option(
    "--prompt-speech", is_flag=True, help="The prompt's speech tokens (`speech_token_ids`), not what followed."
)
@click.option("--sequence", type=int, help="Only this sequence, counted from 0. [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(trace: str, output: Path | None, prompt_speech: bool, sequence: int | None, as_json: bool) -> None:
    """Token ids of TRACE: `sequence_0`, `sequence_1`, ... a line each; a stop token that ends speech is left out."""
    with tracekit.open(trace) as opened:
        if sequence is not None and not 0 <= sequence < len(opened.sequences):
            raise TraceError(f"{trace}: has no sequence {sequence}; it holds {len(opened.sequences)}, counted from 0")
        for one in opened.sequences:
            missing = 0 if prompt_speech or sequence not in (None, one.index) else not_listed(one)
            if missing:
                said = f"the log lists the first {one.step_count} of {one.step_count + missing} tokens"
                click.echo(f"tracekit: {trace}: sequence {one.index}: {said}", err=True)
        ids = prompt_speech_ids(opened, sequence) if prompt_speech else generated_ids(opened)
    if sequence is not None and not prompt_speech:
        ids = {f"sequence_{sequence}": ids[f"sequence_{sequence}"]}
    if output is None:
        click.echo(json.dumps({name: array.tolist() for name, array in ids.items()}) if as_json else ids_text(ids))
        return
    write_token_ids(ids, output)
    told = {name: len(array) for name, array in ids.items()}
    listed = ", ".join(f"{name} [{count}]" for name, count in told.items())
    click.echo(json.dumps({"file": str(output), "tensors": told}) if as_json else f"{output}: {listed}")
