"""How far a postmortem is: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType
from typing import Any

import click

from tracekit.postmortem.groups import key_of
from tracekit.verdict.outcome import FAILING, Seed, State

EVERY = 10.0
"""Seconds between plain lines."""
STAGES = {"sparse": "tokens and draws", "full": "in full"}


class SeedProgress:
    """A `tracekit.postmortem.conduct.Watcher`, and a context manager."""

    def __init__(self) -> None:
        self._expected: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._known = 0
        self._states: dict[int, State] = {}
        self._groups: dict[int, str] = {}
        self._began = time.monotonic()
        self._said = self._began
        self._live: Any = None

    def __enter__(self) -> SeedProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(self._table(), console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, at)

    def expects(self, stage: str, count: int) -> None:
        """So many seeds more."""
        self._expected[stage] += count
        if stage == "full" and count and self._live is None:
            self._say(f"{count} seeds are recorded again, {STAGES[stage]}")

    def has(self, stage: str, seed: Seed, *, new: bool) -> None:
        """A seed more; one that an earlier run has examined took no time."""
        self._done[stage] += 1
        self._known += not new
        self._states[seed.seed] = seed.state
        key = key_of(seed)
        self._groups.pop(seed.seed, None)
        if key is not None:
            self._groups[seed.seed] = ", ".join(word for word in key if word)
        if self._live is not None:
            self._live.update(self._table())
        elif time.monotonic() - self._said > EVERY or self._done[stage] == self._expected[stage]:
            self._say(f"{self._counted(stage)}, {self._failing()} failing, {self._left()}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        click.echo(f"tracekit: {text}", err=True)

    def _counted(self, stage: str) -> str:
        return f"{self._done[stage]} of {self._expected[stage]} seeds, {STAGES[stage]}"

    def _failing(self) -> int:
        return sum(state in FAILING for state in self._states.values())

    def _left(self) -> str:
        """Time left, as the seeds so far took it."""
        done, expected = sum(self._done.values()), sum(self._expected.values())
        if done == expected:
            return "no more to come"
        if done == self._known:
            return "going on"
        seconds = (time.monotonic() - self._began) / (done - self._known) * (expected - done)
        return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in ("", "done", "failing", "time left"):
            table.add_column(name)
        for stage, name in STAGES.items():
            if self._expected[stage]:
                done = f"{self._done[stage]} of {self._expected[stage]}"
                first = stage == "sparse"
                table.add_row(name, done, str(self._failing()) if first else "", self._left() if first else "")
        for name, count in Counter(self._groups.values()).most_common(8):
            table.add_row(f"  {name}", str(count), "", "")
        return table
