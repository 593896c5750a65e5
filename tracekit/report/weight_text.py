"""The difference of two checkpoints as a person reads it."""

from __future__ import annotations

from collections import Counter

from tracekit.checkpoints.compare import Parameters, ValueDifference, WeightDiff
from tracekit.report.summary_text import aligned

SHOWN = 20
"""Rows of a table before the rest is only counted."""
NAMED = 4
"""Names of a list before the rest is only counted."""


def weight_text(found: WeightDiff, one: Parameters, other: Parameters) -> str:
    """Heads, the verdict, then names, shapes, dtypes and values; the largest value difference first."""
    lines = _heads(one, other)
    lines.append(f"{'SAME' if found.same else 'DIFFERENT'}  {found.compared} tensors compared")
    lines += _listed("only in the first", found.missing, one)
    lines += _listed("only in the second", found.extra, other)
    shapes = [f"{name} {list(a)} | {list(b)}" for name, (a, b) in found.shapes.items()]
    lines += [f"  shapes differ: {line}" for line in shapes[:SHOWN]] + _more(len(shapes))
    lines += _dtypes(found)
    lines += [f"  note: {note}" for note in found.notes]
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
            one.note or "",
        ]
        for one in differences
    ]
    return aligned(rows, ["tensor", "relative", "largest", "at", "first", "second", "elements", "note"])


def _more(count: int) -> list[str]:
    return [f"  and {count - SHOWN} more"] if count > SHOWN else []
