"""The tokens of two traces step by step, and the first step where they are not the same."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.align.pair import Pair
from tracekit.trace import Draw, Json, Sequence, Step


@dataclass(frozen=True)
class TokenRow:
    """One step on both sides; None where a side has no such step."""

    step: int
    reference: Step | None
    candidate: Step | None

    @property
    def difference(self) -> str | None:
        """`"token"`, `"draw"`, `"length"` (one side has ended), or None where both sides did the same."""
        if self.reference is None or self.candidate is None:
            return "length"
        if self.reference.token != self.candidate.token:
            return "token"
        return None if _same_draws(self.reference.draws, self.candidate.draws) else "draw"

    def to_json(self) -> Json:
        sides = {"reference": _step_json(self.reference), "candidate": _step_json(self.candidate)}
        return {"step": self.step, **sides, "difference": self.difference}


@dataclass(frozen=True)
class TokenTable:
    """The first steps of a pair of sequences; `sequence` is the reference's index."""

    sequence: int
    rows: tuple[TokenRow, ...]

    @property
    def first_difference(self) -> TokenRow | None:
        return next((row for row in self.rows if row.difference), None)

    def to_json(self) -> Json:
        first = self.first_difference
        rows = [row.to_json() for row in self.rows]
        return {"sequence": self.sequence, "first_difference": None if first is None else first.step, "rows": rows}


def token_tables(pair: Pair, steps: int) -> list[TokenTable]:
    """The first `steps` tokens of every pair of sequences."""
    return [TokenTable(each.index, _rows(each.reference, each.candidate, steps)) for each in pair.sequences]


def _rows(one: Sequence, other: Sequence, steps: int) -> tuple[TokenRow, ...]:
    last = min(steps, max(one.step_count, other.step_count))
    return tuple(TokenRow(index, _step(one, index), _step(other, index)) for index in range(last))


def _step(sequence: Sequence, index: int) -> Step | None:
    return sequence.step(index) if index < sequence.step_count else None


def _same_draws(ours: tuple[Draw, ...], theirs: tuple[Draw, ...]) -> bool:
    """Whether the generators did the same; a side that recorded no draws is not held against it."""
    if not ours or not theirs:
        return True
    if len(ours) != len(theirs):
        return False
    names = ("op", "generator", "seed", "offset", "words", "result")
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(ours, theirs, strict=True) for name in names]
    return all(one == other for one, other in pairs if None not in (one, other))


def _step_json(step: Step | None) -> Json | None:
    if step is None:
        return None
    draws = [{name: value for name, value in vars(draw).items() if name != "step"} for draw in step.draws]
    events = [{"kind": event.kind, "detail": event.detail} for event in step.events]
    return {"token": step.token, "text": step.text, "draws": draws, "events": events}
