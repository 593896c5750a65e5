"""`--engine transformers`: a model folder, generated from greedily in the ways in which engines serve a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tracekit.errors import TraceError
from tracekit.selfcheck.options import WithOptions
from tracekit.selfcheck.variation import BATCH, CHUNK, DTYPE, KEEP_PREFIX, PROMPT_IDS, REQUESTS, THREADS
from tracekit_cli.engines import Engine, in_process, out_option


@click.command(name="transformers", short_help="Record a greedy generation of a model folder or GGUF file.")
@click.argument("model", type=click.Path(), metavar="FOLDER | MODEL.gguf")
@out_option
@click.option("--prompt", metavar="TEXT", help="What the model goes on from.")
@click.option("--prompt-ids", metavar="N,N,...", help="The same as token ids.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=16, show_default=True)
@click.option("--chunk", type=click.IntRange(0), default=0, help="Tokens of a prefill call. Default: all.")
@click.option("--requests", type=click.IntRange(1), default=1, show_default=True, help="Generate so many times.")
@click.option("--keep-prefix", type=click.IntRange(0), default=0, help="Positions that a later request keeps.")
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Rows of a call, padded on the left."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch. Default: as torch has it.")
@click.option("--dtype", metavar="DTYPE", help="float64, float32, bfloat16 or float16. Default: the checkpoint's.")
@click.option("--attention", metavar="NAME", help="eager, sdpa, ... Default: transformers'.")
def command(model: str, out: Path | None, prompt: str | None, prompt_ids: str | None, **settings: Any) -> None:
    """Generate greedily from a folder or GGUF file that transformers loads, through a loop of calls, and record it."""
    if (prompt is None) == (prompt_ids is None):
        raise click.UsageError("give --prompt TEXT or --prompt-ids N,N,...")
    try:
        import torch
        from tracekit_torch.greedy_requests import Request, ids_of, load, record
    except ModuleNotFoundError as error:
        raise TraceError(f"--engine transformers needs {error.name}: pip install 'tracekit[torch]'") from None
    threads = settings.pop("threads")
    loaded = load(model, settings.pop("dtype"), settings.pop("attention"))
    target = out or Path("traces") / f"{Path(model).name}.h5"
    request = Request(ids_of(model, prompt, prompt_ids), **settings)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for tokens in record(loaded, target, request):
            click.echo(" ".join(map(str, tokens)))
    finally:
        torch.set_num_threads(before)


OPTIONS = {
    PROMPT_IDS: "--prompt-ids",
    CHUNK: "--chunk",
    THREADS: "--threads",
    DTYPE: "--dtype",
    REQUESTS: "--requests",
    KEEP_PREFIX: "--keep-prefix",
    BATCH: "--batch",
    "attention": "--attention",
}
VALUES = {THREADS: ("1", "2"), DTYPE: ("float32", "float64"), "attention": ("eager", "sdpa")}
"""Chunks of the prompt are not among them: a loop that is given one token says nothing of whether it was chosen."""


def varied(words: tuple[str, ...]) -> WithOptions:
    """A model folder with options, and what may be varied of them."""
    return WithOptions(words, OPTIONS, VALUES, in_process(command))


ENGINE = Engine("transformers", command, varied)
