"""Hostile files: one clear line that names the file, exit code 2, no traceback, little memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks import make_hostile
from tests.small_run import write_run

TRACEKIT = str(Path(sys.executable).parent / "tracekit")
MEMORY = 2 << 30
"""Address space that reading a hostile file may take: Python, numpy and HDF5 need about 700 MB of it."""

NAMES = [f"{name}.tklog" for name in make_hostile.logs()]
NAMES += [f"{name}.h5" for name in [*make_hostile.archives(), "cut", "unrelated"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hostile")
    make_hostile.make(made)
    return made


def read_fully(path: Path, reference: Path) -> list[subprocess.CompletedProcess[str]]:
    """Every reading command that would meet what is wrong."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    commands = [["diff", str(reference), str(path)], ["show", str(path), "--site", "up", "--step", "1"]]
    return [
        subprocess.run([TRACEKIT, *words], check=False, capture_output=True, text=True, timeout=60, preexec_fn=limit)
        for words in commands
    ]


@pytest.mark.parametrize("name", NAMES)
def test_one_line_and_exit_2(folder: Path, name: str) -> None:
    for done in read_fully(folder / name, folder / "sound.tklog"):
        assert done.returncode == 2, (done.args, done.stdout, done.stderr)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert name in done.stderr
        assert "Traceback" not in done.stderr


def test_an_import_of_a_hostile_log_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    done = subprocess.run(
        [TRACEKIT, "import", str(folder / "huge-shape.tklog"), "-o", str(out)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert (folder / "huge-shape.tklog").exists()


def test_damage_after_sound_frames_keeps_them(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.tklog", close=False)
    with path.open("ab") as file:
        file.write(make_hostile.logs()["huge-shape"])
    done = subprocess.run([TRACEKIT, "show", str(path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert "recovered 6 complete steps of sequence 0" in done.stdout
