"""Builds that are versions of a package in a registry, each in a virtual environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tracekit.bisect.history import CannotBuild, Ready
from tracekit.errors import TraceError
from tracekit.programs.child import last_line
from tracekit.programs.python import as_python

PINNED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?P<extras>\[[\w,. -]*\])?==(?P<version>[\w.!+-]+)")
LISTED = re.compile(r"^Available versions: (?P<versions>.*)$", re.MULTILINE)


@dataclass
class Packages:
    """Versions of one package from `good` to `bad`, as pip lists them. The interpreter of a command that begins with
    `python` or `tracekit` is the environment's.

    What else the program needs is taken from the environment that runs tracekit, unless the package asks for another
    version of it.
    """

    good: str  # NAME==VERSION
    bad: str
    words: tuple[str, ...]

    @cached_property
    def _versions(self) -> list[str]:
        good, bad = (PINNED.fullmatch(each) for each in (self.good, self.bad))
        for text, found in ((self.good, good), (self.bad, bad)):
            if found is None:
                raise TraceError(f"{text}: is no version of a package; give NAME==VERSION, or --repo DIR and revisions")
        assert good is not None and bad is not None
        if good["name"] != bad["name"]:
            raise TraceError(f"{self.good} and {self.bad} are two packages; give two versions of one")
        done = _pip("index", "versions", "--pre", good["name"])
        listed = LISTED.search(done.stdout.decode(errors="replace"))
        if done.returncode or listed is None:
            raise TraceError(f"{good['name']}: its versions cannot be listed{_said(done)}")
        versions = [each.strip() for each in listed["versions"].split(",")][::-1]  # newest first
        places = [versions.index(each["version"]) if each["version"] in versions else -1 for each in (good, bad)]
        for text, place in zip((self.good, self.bad), places, strict=True):
            if place < 0:
                raise TraceError(f"{text}: the registry has no such version; it has {versions[0]} to {versions[-1]}")
        return versions[places[0] : places[1] + 1]

    @property
    def builds(self) -> Seq[str]:
        """As `History`: the version of each."""
        return self._versions

    def ready(self, index: int, folder: Path) -> Ready:
        """As `History`."""
        found = PINNED.fullmatch(self.good)
        assert found is not None
        wanted = f"{found['name']}{found['extras'] or ''}=={self._versions[index]}"
        make = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        done = subprocess.run(make, capture_output=True, check=False)
        if done.returncode:
            raise CannotBuild(f"{folder}: no environment can be made{_said(done)}")
        python = folder / "bin" / "python"
        _share(folder)
        done = _pip("--python", str(python), "install", "--quiet", "--no-input", wanted)
        if done.returncode:
            raise CannotBuild(f"{wanted}: cannot be installed{_said(done)}")
        bare = self.words[0] in ("python", "python3")
        own = as_python(list(self.words), str(python.absolute()))
        words = (str(python.absolute()), *self.words[1:]) if bare else tuple(own)
        return Ready(words, variables={"PATH": f"{python.parent.absolute()}:{_path()}"})

    def close(self) -> None:
        """Nothing is left outside of the folders."""


def _share(folder: Path) -> None:
    """Let an environment see what the one that runs tracekit has, after its own; packages that are installed to be
    edited, too, which a folder's own .pth files name."""
    own = next(folder.glob("lib/python*/site-packages"))
    paths = [path for path in sys.path if path and Path(path).is_dir() and not path.startswith(sys.base_prefix)]
    (own / "tracekit_shared.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in paths))


def _path() -> str:
    return os.environ.get("PATH", os.defpath)


def _pip(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *words], capture_output=True, check=False
    )


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    line = last_line(done.stdout + b"\n" + done.stderr)
    return f": {line}" if line else ""
