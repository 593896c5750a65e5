"""`tracekit record --engine onnx MODEL.onnx`: a generation, or one run, of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tracekit.errors import first_line
from tracekit.selfcheck.options import WithOptions
from tracekit.selfcheck.variation import BATCH, CHUNK, KEEP_PREFIX, PROMPT_IDS, REQUESTS, THREADS
from tracekit.trace import TraceError
from tracekit_cli.engines import Engine, in_process, out_option


@click.command(name="onnx", short_help="Record a run of ONNX Runtime.")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@out_option
@click.option("--prompt-ids", metavar="N,N,...", help="Token ids that a decoder goes on from, greedily.")
@click.option("--inputs", metavar="FILE.npz", type=click.Path(), help="Instead: arrays by the graph's names; one run.")
@click.option("--max-new-tokens", type=int, default=32, show_default=True)
@click.option("--stop-ids", metavar="N,N,...", help="Tokens that end the generation.")
@click.option("--optimisation", default="all", show_default=True, help="disabled, basic, extended or all.")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--chunk", type=click.IntRange(0), default=0, help="Tokens of a prefill call. Default: all.")
@click.option("--requests", type=click.IntRange(1), default=1, show_default=True, help="Generate so many times.")
@click.option("--keep-prefix", type=click.IntRange(0), default=0, help="Positions that a later request keeps.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Rows of a call.")
@click.option("--sites", metavar="REGEX", help="Keep only sites whose name this finds.")
def command(
    model: Path, out: Path | None, prompt_ids: str | None, inputs: str | None, sites: str | None, **settings: Any
) -> None:
    """Run an ONNX file with ONNX Runtime, and record the values of the modules that it was exported from."""
    from tracekit_onnx.generation import Served, generate
    from tracekit_onnx.inputs import read_inputs
    from tracekit_onnx.recording import record
    from tracekit_onnx.sessions import load_session, session_options

    if (prompt_ids is None) == (inputs is None):
        raise click.UsageError("give --prompt-ids N,N,... or --inputs FILE.npz")
    target = out or Path("traces") / f"{model.stem}.h5"
    session = load_session(str(model), session_options(settings["optimisation"], settings["threads"]))
    if inputs is not None:
        feeds = read_inputs(inputs)
        try:
            record(session, feeds, target, sites=sites)
        except TraceError:
            raise
        except Exception as error:  # the library raises many of its own
            raise TraceError(f"{inputs}: ONNX Runtime does not run {model} with it: {first_line(error)}") from None
        click.echo(f"tracekit: wrote {target}", err=True)
        return
    most, stop = settings["max_new_tokens"], _ids("--stop-ids", settings["stop_ids"] or "")
    if most < 1:
        raise click.UsageError("--max-new-tokens: give 1 or more")
    served = Served(**{name: settings[name] for name in (CHUNK, REQUESTS, KEEP_PREFIX, BATCH)})
    ids = _ids("--prompt-ids", prompt_ids or "")
    done = generate(session, ids, target, max_new_tokens=most, stop=stop, sites=sites, served=served)
    click.echo(",".join(str(token) for token in done.tokens))
    click.echo(f"tracekit: wrote {target}: {len(done.tokens)} tokens", err=True)


def _ids(option: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise click.UsageError(f"{option}: give numbers with commas between them")
    return [int(word) for word in words]


OPTIONS = {PROMPT_IDS: "--prompt-ids", THREADS: "--threads", "optimisation": "--optimisation"}
SERVED = {CHUNK: "--chunk", REQUESTS: "--requests", KEEP_PREFIX: "--keep-prefix", BATCH: "--batch"}
"""Of these, what the graph has inputs for."""
VALUES = {THREADS: ("2",), "optimisation": ("disabled", "basic", "extended")}


def varied(words: tuple[str, ...]) -> WithOptions:
    """A decoder's file with options, and what may be varied of them. Raises TraceError where it cannot be loaded."""
    from tracekit_onnx.generation import ways

    model = next((word for word in words if word.endswith(".onnx")), None)
    allowed = frozenset() if model is None else ways(model)
    served = {name: option for name, option in SERVED.items() if name in allowed}
    return WithOptions(words, OPTIONS | served, VALUES, in_process(command))


ENGINE = Engine("onnx", command, varied)
