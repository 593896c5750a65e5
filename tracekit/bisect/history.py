"""Builds in the order in which they were made, and how one is made ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tracekit.errors import TraceError


class CannotBuild(TraceError):
    """A build that cannot be made ready: the search goes on without it."""


@dataclass(frozen=True)
class Ready:
    """A build that can be run: the command, the folder to run it in, what is added to the environment."""

    words: tuple[str, ...]
    cwd: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


class History(Protocol):
    """Builds, the good one first and the bad one last."""

    @property
    def builds(self) -> Seq[str]:
        """What each build is called."""

    def ready(self, index: int, folder: Path) -> Ready:
        """Make a build ready in an empty folder. Raises CannotBuild, in one line."""

    def close(self) -> None:
        """Leave nothing behind, after the folders are gone."""
