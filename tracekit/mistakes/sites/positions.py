"""Positions that queries are rotated to."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.mistakes.core import ATTENTION, changed, core_of
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis


def _offset(case: Case) -> Iterator[Hypothesis]:
    for offset in (-2, -1, 1, 2):
        yield changed(case, _said(offset, "late"), query_offset=offset)


def _decoding(case: Case) -> Iterator[Hypothesis]:
    stands = core_of(case).stands
    # With masked positions: those after the prompt are counted on from its last one, though that is masked.
    masked = stands[case.prompt - 1] + 1 - stands[case.prompt] if len(stands) > case.prompt else 0
    for late in dict.fromkeys((-1, 1, case.prompt, *([masked] if masked else []))):
        yield changed(case, _said(late, "too far"), late_from=case.prompt, late_by=late)


def _said(by: int, late: str) -> dict[str, int | str]:
    early = "early" if late == "late" else f"too {'early'}"
    return {
        "by": by,
        "count": abs(by),
        "positions": "positions" if abs(by) > 1 else "position",
        "direction": late if by > 0 else early,
    }


OFFSET = SiteMistake(
    "position_offset", "queries stand {count} {positions} {direction}", main="by", at=ATTENTION, hypotheses=_offset
)
DECODING_AT_0 = SiteMistake(
    "decoding_at_position_0",
    "every decoded token stands at position 0",
    at=ATTENTION,
    hypotheses=lambda case: [changed(case, late_from=case.prompt)],
)
DECODING = SiteMistake(
    "decode_positions",
    "decoded tokens stand {count} {positions} {direction}",
    main="by",
    at=ATTENTION,
    hypotheses=_decoding,
)
