"""Both sides' tokens next to each other, the first difference marked."""

from __future__ import annotations

import unicodedata

from tracekit.compare.side_by_side import TokenRow, TokenTable
from tracekit.report.summary_text import aligned
from tracekit.trace import Draw, Step

WIDEST = 24
"""Characters of a token's text that are shown."""

AGAIN = {"repetition_fallback": "fallback", "redraw": "redraw"}
"""Kinds of events that explain why a step drew more than once -> the word for it."""


def token_tables_text(tables: list[TokenTable]) -> str:
    """A table for each pair of sequences; `>` marks the first difference."""
    return "\n\n".join(_table(table) for table in tables)


def _table(table: TokenTable) -> str:
    first = table.first_difference
    head = f"sequence {table.sequence}, the first {len(table.rows)} tokens: {_said(first)}"
    if not table.rows:
        return f"sequence {table.sequence}: no tokens on either side"
    rows = [[">" if row is first else "", str(row.step), *_cells(row)] for row in table.rows]
    heads = ["", "step", "reference", "draws", "candidate", "draws"]
    return f"{head}\n{aligned(rows, heads)}"


def _said(first: TokenRow | None) -> str:
    if first is None:
        return "the same on both sides"
    what = {"token": "the tokens differ", "draw": "the draws differ", "length": "one side has ended"}
    return f"{what[first.difference or 'token']} from step {first.step}"


def _cells(row: TokenRow) -> list[str]:
    return [cell for step in (row.reference, row.candidate) for cell in (_token(step), _draws(step))]


def _token(step: Step | None) -> str:
    if step is None:
        return "-"
    return f"{step.token} {_shown(step.text)}".rstrip()


def _shown(text: str | None) -> str:
    """A token's text on one line: quoted unless it is a name in angle brackets, as speech tokens have."""
    if text is None:
        return ""
    plain = without_controls(text)
    plain = plain if len(plain) <= WIDEST else plain[: WIDEST - 1] + "…"
    return plain if plain.startswith("<") and plain.endswith(">") else f'"{plain}"'


def without_controls(text: str) -> str:
    """The text with control and format characters, line separators and lone surrogates as Python writes them."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(repr(letter)[1:-1] if _unseen(unicodedata.category(letter)) else letter for letter in text)


def lines_without_controls(text: str) -> str:
    """The same of a text of several lines, which stay lines."""
    return "\n".join(map(without_controls, text.split("\n")))


def _unseen(category: str) -> bool:
    return category[0] == "C" or category in ("Zl", "Zp")


def _draws(step: Step | None) -> str:
    """`@26 +4`: from word 26 of the generator, four words; then what the sampler did besides."""
    if step is None:
        return ""
    said = ", ".join(_draw(draw) for draw in step.draws)
    kinds = ", ".join(dict.fromkeys(AGAIN[event.kind] for event in step.events if event.kind in AGAIN))
    return f"{said} ({kinds})" if kinds else said


def _draw(draw: Draw) -> str:
    op = "" if draw.op == "multinomial" else f"{draw.op} "
    offset = "" if draw.offset is None else f"@{draw.offset}"
    words = "" if draw.words is None else f" +{draw.words}"
    return f"{op}{offset}{words}".strip() or draw.op
