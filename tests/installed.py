"""tracekit as a user gets it: sdist and wheel made from the tree, an empty environment, the packages of one extra."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from email import message_from_bytes
from functools import cached_property
from importlib import metadata
from pathlib import Path, PurePath
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
NOT_PACKED = ("hooks/rust/", "tests/", "traces/", "benchmarks/")
"""Parts of the tree that no Python package has."""


@dataclass(frozen=True)
class Built:
    """What an index would hold."""

    sdist: Path
    wheel: Path

    @cached_property
    def metadata(self) -> dict[str, list[str]]:
        """The wheel's metadata: field -> values."""
        with ZipFile(self.wheel) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            message = message_from_bytes(wheel.read(name))
        fields = defaultdict(list)
        for field, value in message.items():
            fields[field].append(value)
        return fields | {"Description": [message.get_payload(decode=True).decode()]}


def build(folder: Path) -> Built:
    """Build the sdist from the tree's files, and the wheel from the sdist alone. Needs the registry for setuptools."""
    tree = folder / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        source, target = ROOT / name, tree / name
        if source.is_file() and not name.startswith(NOT_PACKED):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    words = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(tree)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Built(next((folder / "dist").glob("*.tar.gz")), next((folder / "dist").glob("*.whl")))


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and folders of packages that it sees besides its own."""

    folder: Path
    also: tuple[Path, ...] = ()

    def run(self, words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment; a variable of the developer's does not reach it."""
        variables = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "PYTHONPATH": ":".join(map(str, self.also))}
        program = str(self.folder / "bin" / words[0])
        return subprocess.run(
            [program, *words[1:]], cwd=cwd, env=variables, capture_output=True, text=True, check=False
        )

    def python(self, code: str, cwd: Path) -> str:
        """What a program prints."""
        done = self.run(["python", "-c", code], cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def distributions(self) -> set[str]:
        """Names of what is installed in the environment itself."""
        found = next((self.folder / "lib").glob("python*/site-packages"))
        return {canonicalize_name(one.name) for one in metadata.distributions(path=[str(found)])}


def empty_environment(folder: Path, wheel: Path) -> Environment:
    """A new environment that holds the wheel and what it requires, and nothing besides. Needs the registry."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    words = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Environment(folder)


def with_extra(core: Environment, built: Built, extra: str, folder: Path) -> Environment:
    """The environment with what an extra of the wheel brings: links to this interpreter's packages, so that PyTorch is
    not installed again."""
    wanted = _closure([Requirement(text) for text in built.metadata["Requires-Dist"]], extra) - core.distributions()
    folder.mkdir()
    _link(folder, _owned(), wanted)
    return Environment(core.folder, (folder,))


def _closure(requirements: list[Requirement], extra: str) -> set[str]:
    """Canonical names of what requirements ask for, and of what that requires in turn."""
    found: set[str] = set()
    waiting = [(requirement, extra) for requirement in requirements]
    while waiting:
        requirement, asked = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker is not None and not requirement.marker.evaluate({"extra": asked})):
            continue
        found.add(name)
        for inner in ["", *requirement.extras]:
            waiting += [(Requirement(text), inner) for text in metadata.requires(name) or []]
    return found


def _owned() -> dict[PurePath, tuple[Path, str]]:
    """Every installed file, below the folder of packages it is in -> that folder, and the distribution it is of."""
    owned = {}
    for one in metadata.distributions():
        record, base = one.read_text("RECORD"), Path(one.locate_file(""))
        name = canonicalize_name(one.name)
        for row in csv.reader((record or "").splitlines()):
            if not row[0].startswith(".."):
                owned[PurePath(row[0])] = (base, name)
    return owned


def _link(folder: Path, owned: dict[PurePath, tuple[Path, str]], wanted: set[str], depth: int = 0) -> None:
    """Links in `folder` to all files of the wanted distributions; to whole folders where those are theirs alone."""
    entries: dict[str, dict[PurePath, tuple[Path, str]]] = defaultdict(dict)
    for path, owner in owned.items():
        entries[path.parts[depth]][path] = owner
    for name, files in entries.items():
        owners = {owner for _, owner in files.values()}
        if not owners & wanted or name == "__pycache__":
            continue
        path, base = next((path, base) for path, (base, owner) in files.items() if owner in wanted)
        if owners <= wanted:
            (folder / name).symlink_to(base.joinpath(*path.parts[: depth + 1]))
        else:
            (folder / name).mkdir()
            _link(folder / name, files, wanted, depth + 1)
