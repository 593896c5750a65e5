"""A verdict as another process left it: JSON of format 2 (docs/verdict.md) read back, ids and places as types.

Sentences are carried, and nothing reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tracekit.align.pair import Side
from tracekit.compare.findings import Chosen
from tracekit.trace import Json
from tracekit.verdict.cause import Cause
from tracekit.verdict.coverage import Share
from tracekit.verdict.decision import Decision

FORMAT = 2


@dataclass(frozen=True)
class FindingRecord:
    """A finding that the verdict is founded on."""

    type: str  # id of the finding's type
    text: str


@dataclass(frozen=True)
class ExplanationRecord:
    """A mistake that accounts for what was recorded."""

    mistake: str  # id
    values: Mapping[str, Any]
    where: Mapping[str, Any]
    parts: tuple[ExplanationRecord, ...]
    residual: float
    precision: bool  # a choice of precision and no wrong formula
    text: str

    def same(self, other: ExplanationRecord) -> bool:
        """Whether both name the same mistake with the same values at the same positions, whatever they leave."""
        mine, theirs = (self.mistake, self.values, self.where), (other.mistake, other.values, other.where)
        if mine != theirs or len(self.parts) != len(other.parts):
            return False
        return all(one.same(part) for one, part in zip(self.parts, other.parts, strict=True))

    @classmethod
    def from_json(cls, row: Json) -> ExplanationRecord:
        """Of `explanation`. Raises KeyError or TypeError where it is none."""
        parts = tuple(map(cls.from_json, row["parts"]))
        return cls(str(row["kind"]), row["values"], row["where"], parts, row["residual"], row["precision"], row["text"])


@dataclass(frozen=True)
class CulpritRecord:
    """A site at fault. Without an audit: the first that is wrong, and `side` and `own` are None."""

    site: str
    step: int
    position: int | None
    side: Side | None
    own: float | None  # local error over its rounding bound
    explanation: ExplanationRecord | None

    @classmethod
    def from_json(cls, row: Json) -> CulpritRecord:
        """Of one of `culprits`. Raises KeyError, TypeError or ValueError where it is none."""
        side, explanation = row.get("side"), row.get("explanation")
        return cls(
            row["site"],
            row["step"],
            row["position"],
            None if side is None else Side(side),
            row.get("own"),
            None if explanation is None else ExplanationRecord.from_json(explanation),
        )


@dataclass(frozen=True)
class TokenRecord:
    """The first token that differs."""

    step: int
    reference: Chosen
    candidate: Chosen


@dataclass(frozen=True)
class CoverageRecord:
    """How much of what the programs computed was compared."""

    steps: Share
    sites: Share
    parameters: Share
    skipped: tuple[str, ...]  # sites without a value
    in_part: tuple[str, ...]  # sites without one in some calls


@dataclass(frozen=True)
class VerdictRecord:
    """What a page, a repro and a postmortem ask of a verdict; `json` is the whole of it."""

    decision: Decision
    cause: Cause | None
    sequence: int | None
    step: int | None
    position: int | None
    site: str | None
    evidence: tuple[FindingRecord, ...]
    explanation: ExplanationRecord | None
    culprits: tuple[CulpritRecord, ...]
    token: TokenRecord | None
    narrowest: tuple[int, int] | None  # sequence and step at which the two largest logits are nearest to each other
    coverage: CoverageRecord | None
    differences: tuple[str, ...]  # names of the settings
    checkpoint: str | None  # that the audit used
    consequences: tuple[str, ...]  # sentences: how far the logits are off, and the tokens once it is mended
    unexercised: tuple[str, ...]
    notes: tuple[str, ...]
    json: Json = field(repr=False)

    @property
    def explained(self) -> str | None:
        """The sentence of the explanation among the evidence."""
        return next((each.text for each in self.evidence if each.type == EXPLAINED), None)

    @property
    def further_culprits(self) -> tuple[CulpritRecord, ...]:
        """The culprits besides the one that the verdict names."""
        return tuple(each for each in self.culprits if (each.site, each.step) != (self.site, self.step))

    @classmethod
    def from_json(cls, row: Json) -> VerdictRecord:
        """Raises KeyError, TypeError or ValueError where it is no verdict of format 2."""
        if row["format"] != FORMAT:
            raise ValueError(f"a verdict of format {row['format']}; this version reads format {FORMAT}")
        gap, audit, told = row["margins"].get("logit_gap"), row["audit"], row["consequences"]
        explanation, token = row["explanation"], row["token"]
        return cls(
            Decision(row["verdict"]),
            None if row["cause"] is None else Cause(row["cause"]),
            row["sequence"],
            row["step"],
            row["position"],
            row["site"],
            tuple(FindingRecord(each["type"], each["text"]) for each in row["findings"]),
            None if explanation is None else ExplanationRecord.from_json(explanation),
            tuple(map(CulpritRecord.from_json, row["culprits"])),
            None if token is None else _token(token),
            None if gap is None else (gap["sequence"], gap["step"]),
            None if row["coverage"] is None else _coverage(row["coverage"]),
            tuple(each["name"] for each in row["differences"]),
            None if audit is None else audit["checkpoint"],
            () if told is None else tuple(each["text"] for each in (told, told["repaired"]) if each is not None),
            tuple(row["unexercised"]),
            tuple(row["notes"]),
            row,
        )


EXPLAINED = "explained"
"""Id of the type `Explained` of a verdict's findings."""


def by_mistake(culprits: Iterable[CulpritRecord]) -> list[tuple[ExplanationRecord | None, list[str]]]:
    """Sites of culprits, those with the same mistake together, with its explanation; None: not explained."""
    groups: list[tuple[ExplanationRecord | None, list[str]]] = []
    for culprit in culprits:
        mine = culprit.explanation
        sites = next((sites for other, sites in groups if _same(mine, other)), None)
        if sites is None:
            groups.append((mine, [culprit.site]))
        else:
            sites.append(culprit.site)
    return groups


def _same(one: ExplanationRecord | None, other: ExplanationRecord | None) -> bool:
    return one is other if one is None or other is None else one.same(other)


def _token(row: Json) -> TokenRecord:
    return TokenRecord(row["step"], Chosen(**row["reference"]), Chosen(**row["candidate"]))


def _coverage(row: Json) -> CoverageRecord:
    return CoverageRecord(
        Share(**row["steps"]),
        Share(**row["sites"]),
        Share(**row["parameters"]),
        *(tuple(row[key]) for key in ("skipped", "in_part")),
    )
