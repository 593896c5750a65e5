"""Builds that are revisions of a git repository, each in a work tree of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tracekit.bisect.history import CannotBuild, Ready
from tracekit.errors import TraceError
from tracekit.programs.child import last_line


@dataclass
class Revisions:
    """Revisions from `good` to `bad`, along first parents. `build`: a shell command that is run in each work tree."""

    repository: Path
    good: str
    bad: str
    words: tuple[str, ...]
    build: str | None = None

    @cached_property
    def _commits(self) -> list[str]:
        for name in (self.good, self.bad):
            self._git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", mend=f"{name} is no revision of it")
        between = self._git("rev-list", "--reverse", "--first-parent", f"{self.good}..{self.bad}", mend="")
        return [self._git("rev-parse", f"{self.good}^{{commit}}", mend="").strip(), *between.split()]

    @property
    def builds(self) -> Seq[str]:
        """As `History`: the short name of each commit and its subject."""
        shown = self._git("show", "-s", "--format=%h %s", *self._commits, mend="").splitlines()
        return shown if len(shown) == len(self._commits) else self._commits

    def ready(self, index: int, folder: Path) -> Ready:
        """As `History`."""
        commit = self._commits[index]
        try:
            self._git("worktree", "prune", mend="")
            self._git("worktree", "add", "--quiet", "--force", "--detach", str(folder.resolve()), commit, mend="")
        except TraceError as error:
            raise CannotBuild(str(error)) from None
        if self.build is not None:
            done = subprocess.run(self.build, shell=True, cwd=folder, capture_output=True, check=False)
            if done.returncode:
                raise CannotBuild(f"the build ended with exit code {done.returncode}{_said(done)}")
        return Ready(self.words, folder)

    def close(self) -> None:
        """Forget work trees whose folders are gone."""
        self._git("worktree", "prune", mend="")

    def _git(self, *words: str, mend: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(self.repository), *words], capture_output=True, check=False)
        except OSError as error:
            raise TraceError(f"git: cannot be started: {error.strerror}") from None
        if done.returncode:
            raise TraceError(f"{self.repository}: {mend or 'git ' + words[0]}{_said(done)}")
        return done.stdout.decode(errors="replace")


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    line = last_line(done.stderr + b"\n" + done.stdout)
    return f": {line}" if line else ""
