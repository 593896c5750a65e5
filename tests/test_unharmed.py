"""The recorded program is never harmed: what becomes of the recording is said, and the program runs as it would."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tracekit
from tests.forked import Forks
from tests.test_engine import QWEN2, Engine, FolderOf, engine, folder_of, native  # noqa: F401
from tracekit.formats.archive import write_archive
from tracekit.formats.log import LogWriter
from tracekit.formats.log_trace import LogTrace

TRACEKIT = [sys.executable, "-m", "tracekit_cli.main"]
STOPPED = "tracekit: recording stopped, the program goes on: "


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(forks: Forks) -> Run:
    def tracekit(*words: str, cwd: Path, most: int | None = None) -> subprocess.CompletedProcess[str]:
        """A command of tracekit's; no file may grow beyond `most` bytes."""
        done = forks.tracekit(*words, cwd=cwd, **({} if most is None else {"FSIZE": most}))
        return subprocess.CompletedProcess(words, done.code, done.out, done.err)

    return tracekit


# ---------------------------------------------------------------- native programs under `tracekit record`


def program(engine: Engine, folder: Path, *more: str) -> str:  # noqa: F811
    """The engine as a shell's command."""
    words = [str(engine.path), "--model", str(folder), "--prompt-ids", "1,2,3", "--max-new-tokens", "20", "--show-ids"]
    return " ".join([*words, "--threads", "1", *more])


def test_a_log_that_cannot_be_written_harms_no_run(engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:  # noqa: F811
    folder = folder_of(QWEN2)
    plain = engine.tokens(folder)
    for log, why in (("/dev/full", "No space left"), (str(tmp_path / "missing" / "x.tklog"), "No such file")):
        ids = ",".join(map(str, [5, 6, 7]))
        done = engine.run(folder, "--prompt-ids", ids, "--show-ids", TRACEKIT_LOG=log)
        assert done.returncode == 0
        assert done.stdout == engine.run(folder, "--prompt-ids", ids, "--show-ids").stdout
        said = [line for line in done.stderr.splitlines() if line.startswith("tracekit: ")]
        assert len(said) == 1 and said[0].startswith(STOPPED) and why in said[0] and log in said[0]
    assert engine.tokens(folder, TRACEKIT_LOG="/dev/full", TRACEKIT_LEVEL="nonsense") == plain


def test_record_says_what_a_native_trace_lacks(run: Run, engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:  # noqa: F811
    words = program(engine, folder_of(QWEN2))
    whole = run("record", "-o", "whole.tklog", "--", "sh", "-c", words, cwd=tmp_path)
    assert whole.returncode == 0 and "incomplete" not in whole.stderr
    blocks = (tmp_path / "whole.tklog").stat().st_size // 2 // 512
    cut = run("record", "-o", "cut.h5", "--", "sh", "-c", f"ulimit -f {blocks}; {words}; exit 7", cwd=tmp_path)
    assert cut.returncode == 7 and cut.stdout == whole.stdout
    lines = [line for line in cut.stderr.splitlines() if line.startswith("tracekit: ")]
    assert len(lines) == 3 and lines[0].startswith(STOPPED)
    trace = tracekit.open(tmp_path / "cut.h5")
    assert trace.status == "recovered" and trace.status_detail is not None
    assert lines[1] == f"tracekit: the trace is incomplete: {trace.status_detail}"
    assert "complete steps of sequence 0; " in lines[1] and "File too large" in lines[1]
    assert 0 < trace.sequences[0].step_count < 20


def test_the_first_process_of_a_run_has_the_log(run: Run, engine: Engine, folder_of: FolderOf, tmp_path: Path) -> None:  # noqa: F811
    first, second = (program(engine, folder_of(QWEN2), "--seed", seed) for seed in "12")
    alone = run("record", "-o", "alone.h5", "--", "sh", "-c", first, cwd=tmp_path)
    both = run("record", "-o", "both.h5", "--", "sh", "-c", f"{first}; {second}", cwd=tmp_path)
    assert both.returncode == 0
    assert both.stderr.count("was written by another process of this run; this process (") == 1
    assert both.stdout.startswith(alone.stdout) and len(both.stdout) > len(alone.stdout)
    trace = tracekit.open(tmp_path / "both.h5")
    assert trace.status == "complete"
    assert [sequence.tokens.tolist() for sequence in trace.sequences] == [[int(id) for id in alone.stdout.split()]]


def test_a_log_that_is_gone_or_cannot_be_made_is_said(run: Run, tmp_path: Path) -> None:
    removed = run("record", "-o", "run.h5", "--", "sh", "-c", 'rm "$TRACEKIT_LOG"; exit 3', cwd=tmp_path)
    assert removed.returncode == 3 and "its log was removed while it ran" in removed.stderr
    nothing = run("record", "-o", "run.h5", "--", "true", cwd=tmp_path)
    assert nothing.returncode == 2 and nothing.stderr.count("\n") == 1 and "recorded nothing" in nothing.stderr
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    refused = run("record", "-o", "file/run.h5", "--", "touch", "ran", cwd=tmp_path)
    assert refused.returncode == 2 and "cannot be written" in refused.stderr and not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- logs


def interleaved(path: Path, *, trouble: str | None = None, close: bool = True) -> Path:
    """Two generations that take turns, as two threads write them."""
    log = LogWriter(path)
    log.open("native", dtype="float32")
    log.sites([{"name": name, "class": "tap", "order": order} for order, name in enumerate("ab")])
    for sequence in (0, 1):
        log.sequence(sequence, {"prompt/token_ids": np.arange(2 + sequence)})
    for step in range(4):
        for sequence in (1, 0):
            prompt = 2 + sequence
            first, rows = (0, prompt) if step == 0 else (prompt - 1 + step, 1)
            value = np.full((rows, 3), 100 * sequence + step, dtype=np.float32)
            log.call(sequence, first, rows, {"a": value, "b": value + 50})
            log.step(sequence, step, prompt - 1 + step, 10 * sequence + step, {})
        if trouble is not None and step == 2:
            log.trouble(trouble)
    for sequence in (1, 0):
        log.end_sequence(sequence, 4, "length")
    if close:
        log.close()
    log.abandon()
    return path


def test_sequences_that_interleave_are_read_apart(run: Run, tmp_path: Path) -> None:
    log = interleaved(tmp_path / "run.tklog")
    imported = run("import", "--keep-log", str(log), "-o", "run.h5", cwd=tmp_path)
    assert imported.returncode == 0, imported.stderr
    for trace in (tracekit.open(log), tracekit.open(tmp_path / "run.h5")):
        assert trace.status == "complete"
        for sequence in trace.sequences:
            index = sequence.index
            assert sequence.tokens.tolist() == [10 * index + step for step in range(4)]
            rows = sequence.read("b", 0, sequence.positions)[:, 0].tolist()
            assert rows == [100 * index + 50] * (2 + index) + [100 * index + step + 50 for step in (1, 2, 3)]
    assert tracekit.diff(tracekit.open(log), tracekit.open(tmp_path / "run.h5")).verdict == "parity"


def test_a_log_with_a_trouble_is_recovered_and_says_it(tmp_path: Path) -> None:
    closed = LogTrace(interleaved(tmp_path / "closed.tklog", trouble="one draw is lost"))
    assert (closed.status, closed.status_detail) == ("recovered", "one draw is lost")
    cut = LogTrace(interleaved(tmp_path / "cut.tklog", trouble="the disk is full", close=False))
    assert cut.status_detail == "recovered 4 complete steps of sequence 1; the disk is full"


def test_a_frame_that_does_not_fit_is_taken_back(run: Run, tmp_path: Path) -> None:
    script = f"""
        import resource, numpy as np
        from tracekit.formats.log import LogWriter
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        log = LogWriter({str(tmp_path / "run.tklog")!r})
        log.open("python")
        log.sequence(0)
        try:
            for position in range(100):
                log.call(0, position, 1, {{"a": np.zeros((1, 1000), np.float32)}})
        except OSError as error:
            log.trouble(str(error.strerror))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    trace = tracekit.open(tmp_path / "run.tklog")
    assert trace.sequences[0].positions == 4
    assert trace.status_detail is not None and trace.status_detail.endswith("; File too large")


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "run.tklog"
    first = LogWriter(path)
    first.open("python")
    with pytest.raises(OSError, match="another process writes it"):
        LogWriter(path)
    first.close()
    LogWriter(path).close()


# ---------------------------------------------------------------- Python programs


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    def write(body: str) -> str:
        text = "import sys, torch\ntorch.manual_seed(0)\nlayer = torch.nn.Linear(4, 300)\n" + textwrap.dedent(body)
        (tmp_path / "program.py").write_text(text)
        return "program.py"

    return write


def test_a_disk_that_fills_up_in_a_python_run(run: Run, tmp_path: Path, script: Callable[[str], str]) -> None:
    path = script("for _ in range(40):\n    print(layer(torch.rand(2, 4)).sum().item())\nsys.exit(5)\n")
    plain = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    recorded = run("record", "-o", "run.tklog", path, cwd=tmp_path, most=50_000)
    assert (recorded.returncode, recorded.stdout) == (plain.returncode, plain.stdout) == (5, plain.stdout)
    lines = [line for line in recorded.stderr.splitlines() if "File too large" in line]
    assert len(lines) == 1 and lines[0].startswith(STOPPED) and "Traceback" not in recorded.stderr
    trace = tracekit.open(tmp_path / "run.tklog")
    assert trace.status == "recovered" and trace.status_detail is not None and "File too large" in trace.status_detail
    assert 0 < len(trace.sequences) < 40


def test_an_archive_that_cannot_be_written_leaves_the_log(
    run: Run, tmp_path: Path, script: Callable[[str], str]
) -> None:
    path = script(
        """
        import tracekit_torch, pathlib
        out = pathlib.Path("run.h5")
        with tracekit_torch.record(layer, out):
            layer(torch.ones(2, 4))
            out.mkdir()
        print("goes on")
        """
    )
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr
    assert done.stderr.count("\n") == 1 and f"what was recorded is in {tmp_path / 'run.tklog'}" in done.stderr
    assert tracekit.open(tmp_path / "run.tklog").status == "complete"


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_are_not_recorded_and_write_nothing(tmp_path: Path, script: Callable[[str], str], start: str) -> None:
    path = script(
        f"""
        from torch.utils.data import DataLoader, Dataset

        class Rows(Dataset):
            def __len__(self):
                return 6
            def __getitem__(self, index):
                with torch.no_grad():
                    return layer(torch.full((1, 4), float(index)))

        if __name__ == "__main__":
            torch.set_num_threads(1)
            layer(torch.ones(2, 4))
            rows = DataLoader(Rows(), num_workers=2, multiprocessing_context={start!r})
            print(sum(row.shape[0] for row in rows))
            layer(torch.ones(3, 4))
        """
    )
    # A worker that is spawned begins as the process of its parent was begun.
    words = [*TRACEKIT, "record", "-o", "run.h5", path]
    recorded = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (recorded.returncode, recorded.stdout) == (0, "6\n"), recorded.stderr
    trace = tracekit.open(tmp_path / "run.h5")
    assert trace.status == "complete" and [sequence.positions for sequence in trace.sequences] == [2, 3]


def test_what_goes_wrong_around_a_draw_is_not_the_programs(
    run: Run, tmp_path: Path, script: Callable[[str], str]
) -> None:
    path = script(
        """
        import tracekit_torch
        from tracekit_torch import draws, recorder

        def broken(*_):
            raise RuntimeError("what stands around a draw")

        draws._generator = broken
        recorder.Recorder.listening = lambda self: True
        with tracekit_torch.record(layer, "run.h5"):
            layer(torch.ones(2, 4))
            print(torch.rand(3).tolist(), torch.multinomial(torch.ones(5), 2).tolist())
        """
    )
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    script("layer(torch.ones(2, 4))\nprint(torch.rand(3).tolist(), torch.multinomial(torch.ones(5), 2).tolist())\n")
    plain = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == plain.stdout
    assert done.stderr.count("recording stopped") == 1


# ---------------------------------------------------------------- where a trace is written


ODD_NAMES = ("a\nb", "-o", "#1%20", "näme ✓", "x" * 200, "a'b\"c", "%s{0}$HOME")


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_a_path_may_have_any_characters(run: Run, tmp_path: Path, name: str) -> None:
    log = interleaved(tmp_path / f"{name}.tklog")
    imported = run("import", "--keep-log", str(log), "-o", str(tmp_path / f"{name}.h5"), cwd=tmp_path)
    assert imported.returncode == 0 and imported.stderr == "", imported.stderr
    for path in (log, tmp_path / f"{name}.h5"):
        with tracekit.open(path) as trace:
            assert trace.status == "complete" and len(trace.sequences) == 2
        shown = run("show", str(path), cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr


def test_a_path_may_be_no_text(run: Run, tmp_path: Path) -> None:
    log = interleaved(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.tklog")))
    imported = run("import", os.fspath(log), cwd=tmp_path)
    assert imported.returncode == 0 and imported.stderr == "", imported.stderr
    with tracekit.open(log.with_suffix(".h5")) as trace:
        assert trace.status == "complete"
    missing = run("show", os.fspath(log), cwd=tmp_path)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1 and "No such file" in missing.stderr


def test_a_name_that_is_too_long_is_said(run: Run, tmp_path: Path) -> None:
    log = interleaved(tmp_path / "run.tklog")
    done = run("import", str(log), "-o", "x" * 300 + ".h5", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "name too long" in done.stderr
    assert log.exists()


def test_an_import_onto_a_full_disk_leaves_the_log(run: Run, tmp_path: Path) -> None:
    log = interleaved(tmp_path / "run.tklog")
    before = log.read_bytes()
    for most in (1000, 3000):
        done = run("import", str(log), cwd=tmp_path, most=most)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "File too large" in done.stderr, done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["run.tklog"] and log.read_bytes() == before


def test_two_imports_at_once_leave_one_archive(tmp_path: Path) -> None:
    log = interleaved(tmp_path / "run.tklog")
    words = [*TRACEKIT, "import", "--keep-log", str(log)]
    both = [subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.h5", "run.tklog"]
    assert tracekit.open(tmp_path / "run.h5").status == "complete"


def test_a_clock_that_is_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = interleaved(tmp_path / "run.tklog")
    with LogTrace(log) as trace:
        write_archive(trace, tmp_path / "first.h5")
        for name, now in (("back", 1), ("never", 0)):
            monkeypatch.setattr("time.time_ns", lambda now=now: now)
            monkeypatch.setattr("time.time", lambda now=now: float(now))
            write_archive(trace, tmp_path / f"{name}.h5")
            assert tracekit.diff(
                tracekit.open(tmp_path / "first.h5"), tracekit.open(tmp_path / f"{name}.h5")
            ).verdict == ("parity")
