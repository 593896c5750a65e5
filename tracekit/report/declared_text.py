"""Declared settings and what each side used, as a table."""

from __future__ import annotations

from typing import Any

from tracekit.extra.cosyvoice3.declared import Row, Used, differs
from tracekit.report.summary_text import aligned
from tracekit.trace import Json


def declared_text(path: str, rows: list[Row]) -> str:
    """`*` marks what a side uses differently; an empty cell is a setting that it does not state."""
    head = f"{'DIFFERENT' if differs(rows) else 'AGREE'}  {path}"
    sides = [used.trace for used in rows[0].used]
    cells = [[row.setting.name, said(row.setting.value), *map(_cell, row.used), row.setting.place] for row in rows]
    notes = [f"note: {used.trace}: {used.note}" for row in rows for used in row.used if used.note]
    seeds = [row for row in rows if row.setting.part == "seed"]
    if seeds:
        notes.append("note: the seed is set where the file is loaded; a program that seeds later uses its own")
    return "\n".join([head, "", aligned(cells, ["setting", "declared", *sides, "declared by"]), *notes])


def declared_json(path: str, rows: list[Row]) -> Json:
    """Everything, ready for `json.dumps`."""
    verdict = "different" if differs(rows) else "agree"
    return {"format": 1, "verdict": verdict, "file": path, "settings": [row.to_json() for row in rows]}


def said(value: Any) -> str:
    """A setting's value; two numbers in a list are a range."""
    if value is None:
        return ""
    if isinstance(value, list) and len(value) == 2:
        return f"{value[0]} to {value[1]}"
    return str(value)


def _cell(used: Used) -> str:
    return said(used.value) + (" *" if used.agrees is False else "")
