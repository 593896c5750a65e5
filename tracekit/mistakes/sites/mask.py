"""Which keys a query sees: the causal mask and the sliding window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tracekit.mistakes.core import ATTENTION, attended, changed, core_of, exactly
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, Made

LONGEST = 2048
"""Positions up to which every window is tried."""


def _ignored(case: Case) -> Iterator[Hypothesis]:
    window = core_of(case).window
    if window is not None:
        yield changed(case, {"stated": window}, window=None)


def _window(case: Case) -> Iterator[Hypothesis]:
    """The window whose edge lies where the last wrong row says."""
    core = core_of(case)

    def make() -> Made | None:
        last = np.flatnonzero(case.wrong)[-1:]
        longest = int(case.window.rows[last[0]]) + 1
        if longest > LONGEST:
            return None
        options = range(1, longest + 1)
        best = min(options, key=lambda window: case.distance(exactly(case, replace(core, window=window), last), last))
        return attended(case, replace(core, window=best)), {"found": best}

    yield Hypothesis(make, {"stated": "no window" if core.window is None else core.window})


MISSING = SiteMistake(
    "mask_missing",
    "no causal mask: the prompt attends to all of its positions",
    at=ATTENTION,
    hypotheses=lambda case: [changed(case, mask="open", prompt=case.prompt)],
)
ONE_AHEAD = SiteMistake(
    "mask_one_ahead",
    "the mask lets one key too many through",
    at=ATTENTION,
    hypotheses=lambda case: [changed(case, mask="future", prompt=case.prompt)],
)
ONE_BEHIND = SiteMistake(
    "mask_one_behind",
    "a position does not attend to its own key",
    at=ATTENTION,
    hypotheses=lambda case: [changed(case, mask="past")],
)
WINDOW_IGNORED = SiteMistake(
    "window_ignored", "the sliding window of {stated} is ignored", at=ATTENTION, hypotheses=_ignored
)
WINDOW = SiteMistake(
    "window",
    "a window of {found} positions instead of {stated}",
    main="found",
    at=ATTENTION,
    complexity=Complexity.NUMBER,
    hypotheses=_window,
)
