"""`tracekit record`: run a program, Python or native, and keep what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tracekit.trace import TraceError

NATIVE = "\0native"
MODULE = "\0module"
"""Stand in for `--` and `-m` while click parses: what follows them is the program's, whatever it looks like."""


ENGINE_OPTION = "--engine"


class RecordCommand(click.Command):
    """Options end at the program: a script, `-m module`, or `-- program`. With `--engine` first, all that follows is
    the engine's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Mark where the program begins, so that its own options are not taken for ours."""
        if args and args[0].split("=")[0] == ENGINE_OPTION:
            ctx.exit(_run_engine(args))
        marked = list(args)
        for index, word in enumerate(args):
            if word in ("--", "-m"):
                marked[index] = NATIVE if word == "--" else MODULE
                break
        return super().parse_args(ctx, marked)


@click.command(
    cls=RecordCommand,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
    options_metavar="[OPTIONS]",
)
@click.option(
    ENGINE_OPTION,
    metavar="NAME",
    help="Record an engine that tracekit runs: llama.cpp, onnx, transformers, native. It comes first; the rest of the "
    "line is that engine's: --engine NAME --help.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Archive to make. Default: traces/<program>.h5")
@click.option("--seed", type=int, help="Seed torch, numpy and random before the program runs.")
@click.option(
    "--level", default="all", show_default=True, help="tokens, logits, layers (outputs of whole layers) or all."
)
@click.option("--sites", metavar="REGEX", help="Keep only sites whose name this finds.")
@click.option("--logits", default="full", show_default=True, metavar="full|K", help="Whole logits, or the K largest.")
@click.option(
    "--module", metavar="REGEX", help="Class name or path of the module to record, if not the language model."
)
@click.option(
    "--rng", default="fast", show_default=True, help="fast, thorough (watch every operator) or cpu (draw on the CPU)."
)
@click.option("--follow", metavar="TRACE", type=click.Path(), help="Force the tokens of this trace.")
@click.option("--follow-draws", is_flag=True, help="With --follow: force its random numbers, too.")
@click.option("--follow-inputs", is_flag=True, help="With --follow: force its prompt, too; native programs.")
@click.option("--strict", is_flag=True, help="Exit with 2 if the program did not follow what it was told to.")
@click.option("--dtype", metavar="DTYPE", help="Run the model in float64, float32, bfloat16 or float16.")
@click.option("--keep-log", is_flag=True, help="Keep the log (.tklog) beside the archive.")
@click.argument("program", nargs=-1, type=click.UNPROCESSED, metavar="(SCRIPT.PY | -m MODULE | -- PROGRAM) [ARGS]...")
def command(program: tuple[str, ...], out: Path | None, strict: bool, engine: str | None, **options: Any) -> None:
    """Run a program and record what its model does.

    A Python script runs in this process, unedited; a native program, after `--`, is told where to write its log. Either
    keeps its output and its exit code. With no model call to record, the exit code is 2.
    """
    if engine is not None:
        raise click.UsageError("--engine NAME comes first: tracekit record --engine NAME MODEL ...")
    if not program:
        raise click.UsageError("give a script, `-m module`, or `-- program`")
    _check_follow(options)
    if program[0] == NATIVE:
        _record_native(_restored(program[1:]), out, strict, options)
    words = _restored(program)
    is_module = program[0] == MODULE
    if is_module and len(words) < 2:
        raise click.UsageError("-m needs the name of a module")
    name, *arguments = words[1:] if is_module else words
    try:
        from tracekit_torch.options import Options
        from tracekit_torch.running import Program, run
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise TraceError("recording a Python program needs PyTorch: pip install 'tracekit[torch]'") from None
    if options.pop("follow_inputs"):
        raise click.UsageError("--follow-inputs is for native programs; give the Python program the prompt itself")
    target = Program(name, tuple(arguments), is_module)
    run(
        target,
        out or default_out(name.rsplit(".", 1)[-1] if is_module else Path(name).stem),
        Options(**options),
        strict,
    )


def default_out(name: str) -> Path:
    """Where a program's trace goes unless it is said."""
    return Path("traces") / f"{name}.h5"


def _run_engine(args: list[str]) -> int:
    """Run the engine that leads a command line, with the rest of it."""
    from tracekit_cli.engines import engine_of

    _, given, name = args[0].partition("=")
    rest = args[1:]
    if not given:
        if not rest:
            raise click.UsageError("--engine needs a name")
        name, rest = rest[0], rest[1:]
    called = engine_of(name)
    code = called.command.main(rest, prog_name=f"tracekit record --engine {name}", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _check_follow(options: dict[str, Any]) -> None:
    for option in ("follow_draws", "follow_inputs"):
        if options[option] and options["follow"] is None:
            raise click.UsageError(f"--{option.replace('_', '-')} needs --follow TRACE")


def _record_native(words: list[str], out: Path | None, strict: bool, options: dict[str, Any]) -> None:
    from tracekit.programs.native import NativeOptions
    from tracekit_cli.native import run_native

    if not words:
        raise click.UsageError("give a program after `--`")
    for name in ("module", "dtype"):
        if options.pop(name) is not None:
            raise click.UsageError(f"--{name} is for Python programs; give it to the program itself")
    options.pop("rng")
    raise SystemExit(run_native(words, out or default_out(Path(words[0]).name), NativeOptions(**options), strict))


def _restored(words: tuple[str, ...]) -> list[str]:
    return [{NATIVE: "--", MODULE: "-m"}.get(word, word) for word in words]
