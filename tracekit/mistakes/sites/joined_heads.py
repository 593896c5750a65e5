"""Heads joined without transposing: [heads, positions, head_dim] read as [positions, heads * head_dim]."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.auditing.operations import Floats, Result
from tracekit.mistakes.core import ATTENTION, core_of
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, plainly


def _untransposed(case: Case) -> Iterator[Hypothesis]:
    """In the prompt, which is one call; in decoding a call has one position, and nothing changes."""
    window = case.window
    if core_of(case).heads > 1 and window.first == 0 and 1 < case.prompt <= window.stop:
        yield plainly(_joined, case)


def _joined(case: Case) -> Result:
    right, core = case.right, core_of(case)

    def joined(values: Floats) -> Floats:
        heads = values[: case.prompt].reshape(case.prompt, core.heads, core.head_dim).transpose(1, 0, 2)
        return np.concatenate([heads.reshape(case.prompt, -1), values[case.prompt :]])

    return Result(joined(right.values), joined(right.variance), rounded=tuple(map(joined, right.rounded)))


UNTRANSPOSED = SiteMistake(
    "heads_joined_without_transposing",
    "heads are joined without transposing: [heads, positions, head_dim] is read as [positions, heads * head_dim]",
    at=ATTENTION,
    hypotheses=_untransposed,
)
