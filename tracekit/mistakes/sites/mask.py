"""Which keys a query sees: the causal mask and the sliding window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tracekit.auditing.operations import Core
from tracekit.mistakes.core import ATTENTION, attended, changed, core_of, exactly, rounds
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

    values = {"stated": "no window" if core.window is None else core.window}
    yield Hypothesis(make, values, flips=rounds(core), core_at=lambda window: replace(core, window=window))


def _decoding(case: Case) -> Iterator[Hypothesis]:
    """A mask of decoding that is shorter than the cache: what lies beyond it is not seen."""
    core = core_of(case)
    decoding = np.flatnonzero(case.window.rows >= case.prompt)[-1:]

    def make() -> Made | None:
        longest = int(case.window.rows[decoding[0]])
        if longest > LONGEST:
            return None
        options = range(1, longest + 1)
        best = min(options, key=lambda seen: case.distance(exactly(case, change(seen), decoding), decoding))
        return attended(case, change(best)), {"found": best}

    def change(seen: int) -> Core:
        return replace(core, decoding_sees=seen, prompt=case.prompt)

    if decoding.size and case.wrong[decoding].all():
        yield Hypothesis(make, flips=rounds(core), core_at=change)


def _padding(case: Case) -> Iterator[Hypothesis]:
    if core_of(case).masked or core_of(case).sees:
        yield changed(case, masked=(), sees=b"")


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
DECODING = SiteMistake(
    "decoding_mask_length",
    "in decoding only positions below {found} are seen",
    main="found",
    at=ATTENTION,
    complexity=Complexity.NUMBER,
    hypotheses=_decoding,
)
PADDING_SEEN = SiteMistake(
    "padding_seen", "masked positions of the prompt are attended to", at=ATTENTION, hypotheses=_padding
)
