"""`--engine native`: tracekit-native, the engine of this repository, or another with its options."""

from __future__ import annotations

from pathlib import Path

import click

from tracekit.selfcheck.options import WithOptions
from tracekit.selfcheck.variation import CHUNK, DTYPE, KEEP_PREFIX, PROMPT_IDS, REQUESTS, THREADS
from tracekit_cli.engines import Engine, out_option


@click.command(
    name="native",
    short_help="Record a program that is built with tracekit's crate.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@out_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, required=True, metavar="PROGRAM [ARGS]...")
def command(words: tuple[str, ...], out: Path | None) -> int:
    """Run a program that is built with tracekit's crate, and record it, as `tracekit record -- PROGRAM` does."""
    from tracekit.programs.native import NativeOptions
    from tracekit_cli.native import run_native

    return run_native(list(words), out or Path("traces") / f"{Path(words[0]).name}.h5", NativeOptions())


OPTIONS = {
    PROMPT_IDS: "--prompt-ids",
    CHUNK: "--prefill-chunk",
    THREADS: "--threads",
    DTYPE: "--dtype",
    REQUESTS: "--requests",
    KEEP_PREFIX: "--keep-prefix",
}
VALUES = {THREADS: ("1", "2"), CHUNK: ("1", "3"), DTYPE: ("float32",)}


def varied(words: tuple[str, ...]) -> WithOptions:
    """The engine's command line, and its options."""
    return WithOptions(words, OPTIONS, VALUES, words_of={"float32": "f32"})


ENGINE = Engine("native", command, varied)
