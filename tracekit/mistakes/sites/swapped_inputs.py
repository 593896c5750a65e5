"""The attention core with its inputs exchanged."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.mistakes.core import ATTENTION, attended_from, core_of
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, plainly


def _queries_and_keys(case: Case) -> Iterator[Hypothesis]:
    """Where their widths allow it."""
    core, (q, k, v) = core_of(case), case.inputs
    if core.heads == core.kv_heads and len(q) == len(k):
        yield plainly(attended_from, case, core, k, q, v)


def _keys_and_values(case: Case) -> Iterator[Hypothesis]:
    q, k, v = case.inputs
    yield plainly(attended_from, case, core_of(case), q, v, k)


QUERIES_AND_KEYS = SiteMistake(
    "queries_and_keys_swapped", "queries and keys swapped", at=ATTENTION, hypotheses=_queries_and_keys
)
KEYS_AND_VALUES = SiteMistake(
    "keys_and_values_swapped", "keys and values swapped", at=ATTENTION, hypotheses=_keys_and_values
)
