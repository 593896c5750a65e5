"""`tracekit audio`: sounds measured, beside the tokens that they were made from."""

from __future__ import annotations

import contextlib
import json

import click

import tracekit
from tracekit.extra.cosyvoice3.audio import Sound, Spoken, measure, sound_row, spoken_tokens
from tracekit.formats.opening import is_trace
from tracekit.report.sound_text import sound_notes, sound_text
from tracekit.trace import TraceError


def _partner(sounds: list[Sound], index: int, made: Spoken | None) -> Sound | None:
    """The sound that one is compared with; None for one that others are compared with."""
    at = 0 if made is None else made.against
    return None if at == index else sounds[at]


@click.command("audio")
@click.argument("files", type=click.Path(), nargs=-1, required=True)
@click.option(
    "--traces", type=click.Path(), multiple=True, help="The trace of each file, or of several, in the same order."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(files: tuple[str, ...], traces: tuple[str, ...], as_json: bool) -> None:
    """Measure FILES (WAV and what else libsndfile reads), each against the first, or, with a file for each sequence of
    several traces, against the first trace's sequence of the same index.

    RMS and maximum are fractions of full scale. The largest difference is sample by sample over what both have, where
    rate and channels are the same. With --traces: what the tokens last at 25 a second.
    """
    sounds_at = [path for path in files if not is_trace(path)]
    if not sounds_at:
        raise TraceError(f"{files[0]}: is a trace; give WAV files, and traces after --traces")
    with contextlib.ExitStack() as stack:
        traces += tuple(path for path in files if is_trace(path))
        opened = [stack.enter_context(tracekit.open(path)) for path in traces]
        spoken: list[Spoken] | list[None] = spoken_tokens(opened, len(sounds_at)) if opened else [None] * len(sounds_at)
    sounds = [measure(path) for path in sounds_at]
    rows = [
        sound_row(sound, _partner(sounds, index, made), made)
        for index, (sound, made) in enumerate(zip(sounds, spoken, strict=True))
    ]
    notes = sound_notes(sounds, spoken)
    click.echo(json.dumps({"files": rows, "notes": notes}, indent=2) if as_json else sound_text(rows, notes))
