"""Hostile files: one clear line that names the file, exit code 2, no traceback, little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks import make_hostile
from tests.forked import Done, Forks
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


def read_fully(reading: Forks, path: Path, reference: Path, cwd: Path) -> list[Done]:
    """Every reading command that would meet what is wrong."""
    commands = [["diff", str(reference), str(path)], ["show", str(path), "--site", "up", "--step", "1"]]
    return [reading.tracekit(*words, cwd=cwd, AS=MEMORY) for words in commands]


@pytest.mark.parametrize("name", NAMES)
def test_one_line_and_exit_2(reading: Forks, folder: Path, name: str, tmp_path: Path) -> None:
    for done in read_fully(reading, folder / name, folder / "sound.tklog", tmp_path):
        assert done.code == 2, done
        assert done.out == ""
        assert len(done.err.splitlines()) == 1, done.err
        assert name in done.err
        assert "Traceback" not in done.err


def test_what_is_sound_is_read_within_the_memory(reading: Forks, folder: Path, tmp_path: Path) -> None:
    """The twin."""
    sound = folder / "sound.tklog"
    assert [done.code for done in read_fully(reading, sound, sound, tmp_path)] == [0, 0]


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
