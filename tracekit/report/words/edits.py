"""Edits of the reference's source: `as if modeling_gemma2.py:197 (attn_weights = torch.tanh(attn_weights)) were left
out`."""

from __future__ import annotations

from tracekit.mistakes.edited_line import EditedLine, EditKind
from tracekit.mistakes.explanation import InTheSource, NotToldApart, TriedInPart, Untried
from tracekit.report.words import sentence, words

CHANGES = {
    EditKind.LEFT_OUT: "{place} were left out",
    EditKind.BRANCH: "the condition at {place} had the other value",
    EditKind.OTHER_VALUE: "{place} read another value",
    EditKind.SCALED: "the result of {operation} at {place} were multiplied by {number}",
    EditKind.OFFSET: "{number} were added to the result of {operation} at {place}",
    EditKind.CONSTANT: "{place} had {number} in place of {stated}",
    EditKind.INDEX: "{operation} at {place} had {number} in place of {stated}",
    EditKind.OPERATOR: "{place} had {other} in place of {operation}",
    EditKind.EXCHANGED: "the operands of {operation} at {place} were exchanged",
    EditKind.TAKEN_FOR: "two values that {place} reads were taken for each other",
    EditKind.MOVED: "the result of {operation} at {place} were {other}",
    EditKind.RESHAPED: "{operation} at {place} took the values in the order in which they lie, under other sizes",
    EditKind.LOOKED_UP: "{place} looked up rows {other}",
    EditKind.NORMALISED: "the result of {operation} at {place} were {other}",
    EditKind.ROUNDED: "the result of {operation} at {place} were rounded to {other}",
    EditKind.ROUNDED_ONWARDS: "every result from {operation} at {place} on were rounded to {other}",
}
UNTRIED = {
    Untried.EDITS: ("edits", "record more sites before this one to have the line named"),
    Untried.CONDITIONS: ("conditions", "record fewer positions, or a smaller model, to have a wrong one named"),
}
"""What was not all tried, and how to have it tried."""
SHOWN, LISTED = 80, 4
"""Characters of a source line, and lines of a list, that are shown."""


@words(EditedLine)
def _edited(one: EditedLine) -> str:
    lines = str(one.line) if one.last == one.line else f"{one.line}-{one.last}"
    text = one.source if len(one.source) <= SHOWN else f"{one.source[:SHOWN]}…"
    said = CHANGES[one.kind].format(
        place=f"{one.name}:{lines} ({text})",
        operation=one.operation,
        number="" if one.number is None else f"{one.number:.9g}",
        stated="" if one.stated is None else f"{one.stated:.9g}",
        other=one.other,
    )
    return f"as if {said}"


@words(InTheSource)
def _in_the_source(said: InTheSource) -> str:
    return f"in the reference's source: {sentence(said.edit)}"


@words(NotToldApart)
def _not_told_apart(said: NotToldApart) -> str:
    lines = [f"{one.name}:{one.line}" for one in said.edits]
    more = f" and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return f"these values do not tell it from a change at {', '.join(lines[:LISTED])}{more}"


@words(TriedInPart)
def _in_part(said: TriedInPart) -> str:
    what, remedy = UNTRIED[said.untried]
    then = "others may fit as well" if said.found else remedy
    return f"not all {what} of the reference's source were tried: {then}"
