"""The summary as a table: sides under each other, columns that nobody fills left out, `-` for what is not recorded."""

from __future__ import annotations

from tabulate import tabulate

from tracekit.inspection.summary import columns
from tracekit.trace import Json


def summary_text(rows: list[Json]) -> str:
    """The rows of `tracekit.inspection.summary.summarise`; lengths in tokens."""
    heads = {key: head for key, head in columns().items() if any(row[key] is not None for row in rows)}
    return aligned([[_cell(row[key]) for key in heads] for row in rows], list(heads.values()))


def aligned(cells: list[list[str]], heads: list[str]) -> str:
    """A table of texts, columns of numbers to the right, without trailing spaces."""
    sides = ["right" if all(_is_number(cell) for cell in column) else "left" for column in zip(*cells, strict=True)]
    text = tabulate(cells, headers=heads, disable_numparse=True, colalign=sides or None)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _is_number(cell: str) -> bool:
    try:
        float(0 if cell in ("", "-") else cell)
    except ValueError:
        return False
    return True


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
