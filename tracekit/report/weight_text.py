"""The difference of two checkpoints as a person reads it."""

from __future__ import annotations

import math
from collections import Counter

from tracekit.checkpoints.compare import Part, ValueDifference, WeightDiff
from tracekit.checkpoints.pairing import Order, PairedBy
from tracekit.checkpoints.parameters import Parameters
from tracekit.extra.cosyvoice3.speaker_weights import speaker_projection
from tracekit.report.summary_text import aligned
from tracekit.report.words import fields_of, sentence
from tracekit.trace import Json

SHOWN = 20
"""Rows of a table before the rest is only counted."""
UNRELATED = "unrelated: no nearer to each other than to zero"
NAMED = 4
"""Names of a list before the rest is only counted."""


def weight_text(found: WeightDiff, one: Parameters, other: Parameters) -> str:
    """Heads, the verdict, then names, shapes, dtypes and values; the largest value difference first."""
    lines = _heads(one, other)
    lines.append(f"{'SAME' if found.same else 'DIFFERENT'}  {found.compared} tensors compared")
    lines += _parts(found.parts)
    lines += _listed("only in the first", found.missing, one)
    lines += _listed("only in the second", found.extra, other)
    turned = {name: ", transposed" for name in found.transposed}
    shapes = [f"{name} {list(a)} | {list(b)}{turned.get(name, '')}" for name, (a, b) in found.shapes.items()]
    lines += [f"  shapes differ: {line}" for line in shapes[:SHOWN]] + _more(len(shapes))
    lines += _dtypes(found)
    lines += [f"  note: {note}" for note in (*_paired(found), *_notes(found))]
    if found.values:
        lines += ["", f"values differ in {len(found.values)} tensors, the largest difference first"]
        lines += [_table(found.values[:SHOWN]), *_more(len(found.values))]
    return "\n".join(lines)


def _heads(one: Parameters, other: Parameters) -> list[str]:
    rows = [[role, side.path, f"{len(side.names)} tensors", _held(side)] for role, side in _roles(one, other)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _roles(one: Parameters, other: Parameters) -> list[tuple[str, Parameters]]:
    return [("first", one), ("second", other)]


def _held(side: Parameters) -> str:
    kinds = Counter(side.dtype(name) for name in side.names)
    return ", ".join(f"{dtype}" if len(kinds) == 1 else f"{count} {dtype}" for dtype, count in kinds.most_common())


def _listed(said: str, names: tuple[str, ...], side: Parameters) -> list[str]:
    if not names:
        return []
    shown = ", ".join(f"{name} {list(side.shape(name))}" for name in names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"  {said}: {shown}{more}"]


def _parts(parts: tuple[Part, ...]) -> list[str]:
    """A line a part of the model, where parts fare differently."""
    rows = []
    for part in parts:
        held = part.tensors - part.missing
        if not held:
            said = "only in the first"
        elif not part.differing:
            said = "all equal" if held == part.tensors else f"{held} equal, {part.missing} only in the first"
        else:
            said = f"{part.differing} of {held} differ"
            said += f" ({part.unrelated} unrelated)" if part.unrelated else ""
            if part.largest is not None:
                said += f", by up to {part.largest.max_abs:.3g} ({part.largest.name})"
        rows.append((f"{part.name}.*", f"{part.tensors} tensors", said))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    return [f"  {name:<{widths[0]}}  {count:<{widths[1]}}  {said}" for name, count, said in rows]


WHY = {
    PairedBy.SPELLING: "by the words of their names",
    PairedBy.CONTENT: "by content: they hold the same numbers",
    PairedBy.MODULE: "by their module, of which another tensor is paired",
    PairedBy.NEAREST: "by nearest values",
}


def _paired(found: WeightDiff) -> list[str]:
    """How tensors of different names were paired, and which of them are in another arrangement."""
    lines = []
    for why, words in WHY.items():
        pairs = [pair for pair in found.pairs if pair.by is why]
        if pairs:
            lines.append(f"{len(pairs)} paired {words}, such as {pairs[0].one} | {pairs[0].other}")
    turned = [pair for pair in found.pairs if pair.order is Order.TRANSPOSED]
    if turned:
        lines.append(f"{len(turned)} are transposed in the second, such as {turned[0].other}")
    if found.alike:
        ours, theirs = (sum(len(group[at]) for group in found.alike) for at in (0, 1))
        first = found.alike[0]
        lines.append(
            f"{ours} of the first and {theirs} of the second hold the same numbers, and which is which cannot be told, "
            f"such as {first[0][0]} | {first[1][0]}"
        )
    for side, count in zip(("first", "second"), found.settings, strict=True):
        if count:
            lines.append(f"{count} constants of the {side}'s graph have no partner (axes, shapes, single numbers)")
    return lines


def _dtypes(found: WeightDiff) -> list[str]:
    """A line a pair of dtypes."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for name, pair in found.dtypes.items():
        pairs.setdefault(pair, []).append(name)
    return [
        f"  dtypes differ: {a} | {b} in {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
        for (a, b), names in pairs.items()
    ]


def _table(differences: tuple[ValueDifference, ...]) -> str:
    rows = [
        [
            one.name,
            f"{one.relative:.2e}",
            f"{one.max_abs:.3g}",
            str(list(one.index)),
            f"{one.one:.6g}",
            f"{one.other:.6g}",
            f"{one.differing} of {one.elements}",
            _note(one),
        ]
        for one in differences
    ]
    return aligned(rows, ["tensor", "relative", "largest", "at", "first", "second", "elements", "note"])


def _note(difference: ValueDifference) -> str:
    if difference.held_as is not None:
        return f"the second holds it as {difference.held_as}"
    if difference.relation is not None:
        return sentence(difference.relation)
    return UNRELATED if difference.unrelated else ""


def _more(count: int) -> list[str]:
    return [f"  and {count - SHOWN} more"] if count > SHOWN else []


def weight_json(found: WeightDiff) -> Json:
    """The same as an object. `relation` has the type of a relation and its numbers, `note` is its sentence."""
    return {
        "format": 1,
        "verdict": "same" if found.same else "different",
        "compared": found.compared,
        "missing": list(found.missing),
        "extra": list(found.extra),
        "shapes": {name: [list(one), list(other)] for name, (one, other) in found.shapes.items()},
        "dtypes": {name: list(pair) for name, pair in found.dtypes.items()},
        "values": [_difference_json(difference) for difference in found.values],
        "transposed": sorted(found.transposed),
        "renamed": [
            {"first": pair.one, "second": pair.other, "by": pair.by.value, "order": pair.order.value}
            for pair in found.pairs
            if pair.by is not PairedBy.NAME
        ],
        "alike": [[list(ours), list(theirs)] for ours, theirs in found.alike],
        "settings": list(found.settings),
        "notes": _notes(found),
    }


def _notes(found: WeightDiff) -> list[str]:
    return [sentence(note) for note in (*found.notes, *speaker_projection((*found.missing, *found.extra)))]


def _difference_json(one: ValueDifference) -> Json:
    numbers = {name: _finite(getattr(one, name)) for name in ("relative", "max_abs", "one", "other")}
    relation = None if one.relation is None else fields_of(one.relation)
    note = None if one.relation is None else sentence(one.relation)
    return vars(one) | numbers | {"index": list(one.index), "relation": relation, "note": note}


def _finite(value: float) -> float | str:
    """JSON has no word for what is not finite."""
    return value if math.isfinite(value) else str(value)
