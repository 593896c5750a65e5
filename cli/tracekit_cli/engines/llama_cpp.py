"""`tracekit record --engine llama.cpp MODEL.gguf`: a generation of llama.cpp, out of the package xllamacpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tracekit.selfcheck.options import WithOptions
from tracekit.selfcheck.variation import CHUNK, KEEP_PREFIX, PROMPT_IDS, REQUESTS, THREADS
from tracekit.trace import Trace
from tracekit.verdict.live_repair import LiveRepair
from tracekit_cli.engines import Engine, in_process, out_option


@click.command(name="llama.cpp", short_help="Record a generation of llama.cpp.")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.gguf")
@out_option
@click.option("--prompt", metavar="TEXT", help="What the model goes on from.")
@click.option("--prompt-ids", metavar="N,N,...", help="The same as token ids.")
@click.option("--max-new-tokens", type=int, default=32, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-k", type=int, default=0, help="0: all tokens.", show_default=True)
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--min-p", type=float, default=0.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of llama.cpp's own generator, 32 bits.")
@click.option("--level", default="all", show_default=True, help="tokens, logits, layers or all.")
@click.option("--sites", metavar="REGEX", help="Keep only sites whose name this finds.")
@click.option("--follow", metavar="TRACE", type=click.Path(), help="Force the tokens of this trace.")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--context", type=int, default=0, help="Positions of the context. Default: as many as are needed.")
@click.option("--batch", type=int, default=2048, show_default=True, help="Tokens of a call.")
@click.option("--micro-batch", type=int, default=512, show_default=True, help="Tokens that are computed at a time.")
@click.option("--flash-attention", default="auto", show_default=True, help="on, off or auto.")
@click.option("--cache-type", default="f16", show_default=True, help="Format of cached keys and values.")
@click.option("--requests", type=int, default=1, show_default=True, help="Generate so many times in one context.")
@click.option("--keep-prefix", type=int, default=0, help="Positions of the cache that a later request keeps.")
@click.option("--repack/--no-repack", default=True, show_default=True, help="Let llama.cpp reorder weights.")
def command(model: Path, out: Path | None, prompt: str | None, prompt_ids: str | None, **settings: Any) -> None:
    """Generate with llama.cpp from a GGUF file, and record it: values of all modules, logits, draws, tokens."""
    from tracekit_llama_cpp import record

    if (prompt is None) == (prompt_ids is None):
        raise click.UsageError("give --prompt TEXT or --prompt-ids N,N,...")
    target = out or Path("traces") / f"{model.stem}.h5"
    done = record(model, target, prompt=prompt if prompt is not None else _ids(prompt_ids or ""), **settings)
    click.echo(done.text)
    click.echo(f"tracekit: wrote {target}: {len(done.tokens)} tokens", err=True)


def _ids(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise click.UsageError("--prompt-ids: give numbers with commas between them")
    return [int(word) for word in words]


OPTIONS = {
    PROMPT_IDS: "--prompt-ids",
    CHUNK: "--batch",
    THREADS: "--threads",
    REQUESTS: "--requests",
    KEEP_PREFIX: "--keep-prefix",
    "micro_batch": "--micro-batch",
    "flash_attention": "--flash-attention",
    "cache_type": "--cache-type",
}
VALUES = {THREADS: ("1", "2"), "micro_batch": ("1", "3"), "flash_attention": ("on", "off"), "cache_type": ("f32",)}


def varied(words: tuple[str, ...]) -> WithOptions:
    """A model with options, and what may be varied of them."""
    return WithOptions(words, OPTIONS, VALUES, in_process(command))


def repair(reference: Trace, candidate: Trace, **options: Any) -> LiveRepair:
    """The run of a trace again with the right values at its culprits."""
    from tracekit_llama_cpp.repair import repair

    return repair(reference, candidate, **options)


ENGINE = Engine("llama.cpp", command, varied, repair)
