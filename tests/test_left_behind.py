"""What a run that was killed leaves: its log; no archive of an earlier run under its name, nor half an archive."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

import tracekit
from tracekit.formats.archive import write_archive
from tracekit.formats.log_beside import begin_anew
from tracekit.trace import TraceError

PROGRAM = """
import os, sys, torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(31, 8), nn.Linear(8, 31)).eval()
ids = torch.tensor([[3, 4, 5]])
with torch.no_grad():
    for _ in range(3):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
print(ids.tolist(), flush=True)
if len(sys.argv) > 1:
    os._exit(int(sys.argv[1]))
"""


def engine(path: Path, token: int, *, end: bool = True) -> tracekit.Recording:
    recording = tracekit.Recording("engine", path)
    generation = recording.sequence([1, 2])
    generation.next_token(token)
    if end:
        generation.end("length")
        recording.close()
    return recording


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix == ".partial"]


def test_an_earlier_run_is_not_taken_for_one_that_was_killed(tmp_path):
    engine(tmp_path / "run.h5", 7)
    engine(tmp_path / "run.h5", 8, end=False)  # kept alive by nobody: as after SIGKILL, no archive is made
    with pytest.raises(TraceError, match=r"run\.h5: was not made.*run\.tklog"):
        tracekit.open(tmp_path / "run.h5")
    with tracekit.open(tmp_path / "run.tklog") as left:
        assert left.sequences[0].tokens.tolist() == [8]


def test_what_is_followed_stays(tmp_path):
    archive = tmp_path / "run.h5"
    engine(archive, 7)
    assert begin_anew(archive, str(archive)) == tmp_path / "run.tklog" and archive.exists()
    begin_anew(archive, str(tmp_path / "another.h5"))
    assert not archive.exists()


def test_a_program_that_ends_at_once_ends_so_and_it_is_said_where_its_log_is(tmp_path):
    pytest.importorskip("torch")
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    command = ("-m", "tracekit_cli.main", "record", "-o", "run.h5", "program.py")
    first = run(*command)
    assert first.returncode == 0 and (tmp_path / "run.h5").exists(), first.stderr
    second = run(*command, "3")
    assert second.returncode == 3 and second.stdout == first.stdout
    (line,) = [line for line in second.stderr.splitlines() if line.startswith("tracekit:")]
    assert "os._exit" in line and "run.tklog" in line
    assert not (tmp_path / "run.h5").exists()
    verdict = tracekit.diff(tmp_path / "run.tklog", tmp_path / "run.tklog")
    assert verdict.coverage.steps.done >= 2


def test_half_an_archive_is_removed_by_the_next_one_and_named_to_a_reader(tmp_path):
    engine(tmp_path / "log.tklog", 7)
    (tmp_path / ".run.h5.dead.partial").write_bytes(b"\x89HDF\r\n\x1a\n half")
    (tmp_path / ".other.h5.dead.partial").write_bytes(b"half")
    with (tmp_path / ".run.h5.alive.partial").open("wb") as alive:
        alive.write(b"half")
        alive.flush()
        fcntl.flock(alive, fcntl.LOCK_EX)
        with pytest.raises(TraceError, match="cut off"):
            tracekit.open(tmp_path / ".run.h5.dead.partial")
        with tracekit.open(tmp_path / "log.tklog") as log:
            write_archive(log, tmp_path / "run.h5")
        assert [path.name for path in sorted(unfinished(tmp_path))] == [
            ".other.h5.dead.partial",
            ".run.h5.alive.partial",
        ]
    with tracekit.open(tmp_path / "run.h5") as made:
        assert made.sequences[0].tokens.tolist() == [7]
    assert (tmp_path / "run.h5").stat().st_mode & 0o777 == 0o644
