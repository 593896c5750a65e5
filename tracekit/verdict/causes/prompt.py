"""`input`: the prompt differs, or other rows were fed for the same prompt."""

from __future__ import annotations

from tracekit.align.pair import Side
from tracekit.compare.findings import InputDiffers, RowsDiffer
from tracekit.verdict.cause import Cause
from tracekit.verdict.evidence import EntryDiffers, RowsFed, RowsUnknown, RowUnmatched
from tracekit.verdict.outcome import Agreement
from tracekit.verdict.rule import Case, CauseRule, Grouping, Luck, ReproNeeds, Shows
from tracekit.verdict.ruling import Ruling


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    """Not where chance decided which of a program's calls is on record: those compared may be two."""
    first = case.first
    if ruling is None and isinstance(first, RowsDiffer):
        return Ruling(Cause.INPUT, first, tuple(_rows(first)))
    if ruling is None and isinstance(first, InputDiffers) and not case.coverage.by_chance:
        return Ruling(Cause.INPUT, first, tuple(_entries(first)))
    return None


def _rows(first: RowsDiffer) -> list[object]:
    """Rows were fed that no prompt entry tells of, or fewer than there are entries."""
    sides = [RowsFed(side, first.fed[at], first.entries[at]) for at, side in enumerate(Side)]
    if first.unmatched is None:
        return [*sides, RowsUnknown()]
    side = first.unmatched.side
    at = list(Side).index(side)
    return [*sides, RowUnmatched(side, first.unmatched.rows, first.fed[at] > first.entries[at])]


def _entries(first: InputDiffers) -> list[object]:
    """Lengths, the first entry that differs, and the parts that the prompt is made of."""
    out: list[object] = [first]
    if first.values is not None and first.position is not None:
        out.append(EntryDiffers(first.position, first.values, first.texts))
    return [*out, *first.parts]


RULE = CauseRule(
    Cause.INPUT,
    order=20,
    holds=_holds,
    headline="The prompts differ",
    grouping=Grouping(Luck.AGREE, Agreement.PROMPTS, proven_by_tokens=True, stands_alone=True),
    repro=ReproNeeds(Shows.PROMPT, forces_prompt=False),
)
