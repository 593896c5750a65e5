"""`tracekit show`: what is in a trace, at a glance."""

from __future__ import annotations

import json
from typing import Any

import click
from tabulate import tabulate

import tracekit
from tracekit.inspection.non_finite import first_non_finite
from tracekit.report import contents
from tracekit.report.words import fields_and_text
from tracekit.trace import Json, Sequence, Trace, TraceError


@click.command("show")
@click.argument("trace", type=click.Path())
@click.option("--sequence", "index", type=int, default=0, show_default=True, help="Sequence to show.")
@click.option("--step", type=int, help="One step in full: top logits, survivors, draws.")
@click.option("--site", help="One site in full, per position; `X:in` is the input of X.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(trace: str, index: int, step: int | None, site: str | None, as_json: bool) -> None:
    """Show what TRACE (a log or an archive) holds."""
    with tracekit.open(trace) as opened:
        if step is None and site is None:
            told = overview(opened, index)
            click.echo(json.dumps(told, indent=2) if as_json else overview_text(told))
            return
        sequence = pick(opened, index)
        parts: Json = {}
        if step is not None:
            parts["step"] = contents.step_detail(opened, sequence, step)
        if site is not None:
            parts["site"] = contents.site_detail(opened, sequence, site)
    click.echo(json.dumps(parts, indent=2) if as_json else detail_text(parts))


def pick(trace: Trace, index: int) -> Sequence:
    """A sequence by its index. Raises TraceError where there is none."""
    if not 0 <= index < len(trace.sequences):
        raise TraceError(f"{trace.path}: has no sequence {index}; it holds {len(trace.sequences)}, counted from 0")
    return trace.sequences[index]


def overview(trace: Trace, index: int) -> Json:
    """Header, sequences, the steps of one sequence, and the sites."""
    steps: list[Json] = []
    if trace.sequences:
        sequence = pick(trace, index)
        steps = [contents.step_row(sequence.step(number)) for number in range(sequence.step_count)]
    return {
        **contents.header(trace),
        "sequence_table": [contents.sequence_row(sequence) for sequence in trace.sequences],
        "steps": steps,
        "site_table": contents.site_rows(trace),
        "not_finite": None if (found := first_non_finite(trace)) is None else fields_and_text(found),
    }


def overview_text(told: Json) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    lines = [
        f"{told['path']}: {told['implementation']}, {told['dtype']} on {told['device']}, seed {told['seed']}",
        f"  {versions}",
        f"  {told['status']}" + (f": {told['status_detail']}" if told["status_detail"] else ""),
        f"  {told['parameters']} parameters, {told['sites']} sites recorded, {told['sequences']} sequences",
        *([] if told["not_finite"] is None else [f"  {told['not_finite']['text']}"]),
        "",
        table(told["sequence_table"], ("sequence", "prompt", "prompt_tokens", "steps", "positions", "end")),
    ]
    if told["steps"]:
        lines += ["", table(told["steps"], ("step", "position", "token", "text", "margin", "survivors", "draws"))]
    if told["site_table"]:
        lines += ["", table(told["site_table"], ("site", "class", "shape", "dtype", "input"))]
    return "\n".join(lines)


def detail_text(parts: Json) -> str:
    lines: list[str] = []
    if "step" in parts:
        step = parts["step"]
        lines += [f"step {step['step']}, position {step['position']}: token {step['token']} {quoted(step['text'])}", ""]
        lines += [table(step["top"], ("id", "logit", "prob")), ""]
        shown = step["survivors"][: contents.TOP]
        lines += [f"{len(step['survivors'])} survivors, the first {len(shown)}", table(shown, ("id", "prob")), ""]
        lines += [table(step["draws"], ("op", "generator", "seed", "offset", "words", "result"))]
    if "site" in parts:
        site = parts["site"]
        lines += [f"{site['site']} ({site['class']}, {site['dtype']}, width {site['width']}, input {site['input']})"]
        if site["stored_as"] != site["site"]:
            lines += [f"stored as {site['stored_as']}"]
        lines += ["", table(site["positions"], ("position", "norm", "min", "max", "non_finite", "first"))]
    return "\n".join(lines)


def table(rows: list[Json], columns: tuple[str, ...]) -> str:
    """Rows as an aligned table of these columns."""
    return tabulate([[cell(row[column]) for column in columns] for row in rows], headers=columns, disable_numparse=True)


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value)
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= 48 else text[:47] + "…"


def quoted(text: str | None) -> str:
    return "" if text is None else '"' + text.replace("\n", "\\n") + '"'
