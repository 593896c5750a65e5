"""Explanations: the mistake's template with its values, and their JSON."""

from __future__ import annotations

from collections.abc import Mapping

from tracekit.mistakes.explanation import Explained, Explanation, Extent, FitsAsWell, Value, Where
from tracekit.report.words import fields_and_text, sentence, words
from tracekit.report.words.numbers import MANY, ranges
from tracekit.trace import Json

WHERE = {
    Extent.ALL: "",
    Extent.PROMPT: ", in the prompt alone",
    Extent.DECODING: ", in decoding alone",
    Extent.ONWARDS: ", from position {first}",
}


@words(Explanation)
def _explanation(one: Explanation) -> str:
    shown: Mapping[str, object] = {name: _shown(value) for name, value in one.values.items()}
    parts = tuple(sentence(part) for part in one.parts)
    edit = "" if one.edit is None else sentence(one.edit)
    return one.mistake.words.format_map({**shown, "parts": parts, "edit": edit}) + sentence(one.where)


@words(Where)
def _where(where: Where) -> str:
    return WHERE[where.extent].format(first=where.first)


@words(Explained)
def _explained(said: Explained) -> str:
    one = said.explanation
    if one.steps is not None:
        return f"explained: {sentence(one)} (at {one.steps} step{'' if one.steps == 1 else 's'})"
    left = "" if one.residual == 0.0 else f" (residual {one.residual:.1f}×)"
    return f"explained: {sentence(one)}{left}"


@words(FitsAsWell)
def _as_well(said: FitsAsWell) -> str:
    return f"fits as well: {sentence(said.explanation)}"


def explanation_json(one: Explanation | None) -> Json | None:
    """`kind`, the mistake's id; `value`, its one number; `values`, all; `residual`, over the rounding bound at a site,
    nats of probability at a filter; `steps`; `also`, ids of others that fit; `parts` of two mistakes at once;
    `precision`, whether it is a choice of precision and no wrong formula; `lines`, edits of the reference's source, the
    first of which is named, the others cannot be told from it; `where`, `text`."""
    if one is None:
        return None
    return {
        "kind": one.mistake.id,
        "value": _plain(one.value),
        "values": {name: _plain(value) for name, value in one.values.items()},
        "residual": one.residual,
        "steps": one.steps,
        "also": [other.mistake.id for other in one.also],
        "parts": [explanation_json(part) for part in one.parts],
        "precision": one.precision,
        "lines": [fields_and_text(line) for line in one.lines],
        "where": {"extent": one.where.extent.value, "first": one.where.first},
        "text": sentence(one),
    }


def _plain(value: Value) -> object:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _shown(value: Value) -> object:
    if not isinstance(value, tuple):
        return value
    numbers = [each for each in value if type(each) is int]
    return f"[{ranges(numbers)}]" if len(numbers) == len(value) > MANY else _plain(value)
